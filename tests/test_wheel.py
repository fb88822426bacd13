"""What an install holds: the package, whole, and nothing of what is in the repository beside it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from test_layers import imports

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
BESIDE = {path.parent.name for path in ROOT.glob("[a-z]*/*.py")}  # folders of Python: research, tests and others


def files_of(package: Path) -> set[str]:
    """Paths as a wheel names them."""
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package.parent).as_posix() for path in files}


def without_weights(source: str, copy: str) -> None:
    """Copies a file; weights as empty files, for packing them takes longest and only their names are looked at."""
    if source.endswith(".safetensors"):
        Path(copy).touch()
    else:
        shutil.copyfile(source, copy)


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    assert {"research", "tests"}.issubset(BESIDE)
    for folder in ("src", *BESIDE):
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, tmp_path / folder, copy_function=without_weights, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == files_of(SOURCE / "probeselect")


def test_the_package_imports_nothing_that_is_not_installed() -> None:
    for path in SOURCE.rglob("*.py"):
        package = list(path.relative_to(SOURCE).parts[:-1])
        assert not {names[0] for names in imports(path, package)} & BESIDE, path


def test_sprites_are_for_rendering_alone() -> None:
    assert not [name for name in files_of(SOURCE / "probeselect") if "sprite" in name]
    assert {path.suffix for path in (ROOT / "research/embedded/sprites").iterdir()} == {".png", ""}  # and their licence
