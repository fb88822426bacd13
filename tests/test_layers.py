"""Holds the layers: parses every import of the package, so that none points upward."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "probeselect"
FLOORS = (
    "core", "embedded", "data", "policies", "backbones", "evaluators", "probe", "rollout", "scorers", "collect",
    "select", "evaluation", "diagnostics", "commands", "cli", "__main__", "__init__",
)  # fmt: skip
PURE = {"core", "policies"}  # no diffusers or transformers, not even inside a function
WITHOUT_DIFFUSERS = [
    "core",
    "evaluators",
    "policies",
    "probe",
    "data",
    "scorers",
    "evaluation",
    "commands/evaluate",
    "commands/plan",
]


def imports(path: Path, package: list[str]) -> Iterator[list[str]]:
    """Dotted names a file imports, wherever they stand; `package` is what a relative import starts from."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            yield from ([*base, alias.name] for alias in node.names)


def violations(source: Path) -> list[str]:
    """What the package in `source` imports against the floors, one line each."""
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        where, name = path.relative_to(source).as_posix(), parts[0]
        if name not in FLOORS:
            found.append(f"{where}: {name} has no floor, give it one in FLOORS")
            continue
        for imported in imports(path, [PACKAGE, *parts[:-1]]):
            if name in PURE and imported[0] in ("diffusers", "transformers"):
                found.append(f"{where} imports {imported[0]}")
            if imported[0] != PACKAGE:
                continue
            target = imported[1] if len(imported) > 1 and imported[1] in FLOORS else "__init__"
            if FLOORS.index(target) > FLOORS.index(name):
                found.append(f"{where} (floor {FLOORS.index(name)}) imports {target} (floor {FLOORS.index(target)})")
    return found


def circles(source: Path) -> list[str]:
    """Files that import each other round in a circle, inside functions too; one line a circle."""
    files = {path.relative_to(source).with_suffix("").parts: path for path in source.rglob("*.py")}
    names = {".".join(parts).removesuffix(".__init__"): path for parts, path in files.items()}
    arrows: dict[str, set[str]] = {}
    for parts, path in files.items():
        mine = ".".join(parts).removesuffix(".__init__")
        reached = (
            ".".join(imported[1:]) for imported in imports(path, [PACKAGE, *parts[:-1]]) if imported[0] == PACKAGE
        )
        ends = {name if name in names else name.rpartition(".")[0] for name in reached}
        arrows[mine] = {end for end in ends if end in names and end != mine}
    found: list[str] = []
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        if name in way:
            found.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for end in sorted(arrows[name]):
                walk(end, [*way, name])
            done.add(name)

    for name in sorted(arrows):
        walk(name, [])
    return found


def test_imports_point_downward() -> None:
    assert not violations(ROOT / "src" / PACKAGE)


def test_no_file_imports_itself_in_a_circle(tmp_path: Path) -> None:
    assert not circles(ROOT / "src" / PACKAGE)
    (tmp_path / "core").mkdir()
    (tmp_path / "core/a.py").write_text("from probeselect.core.b import f")
    (tmp_path / "core/b.py").write_text("def f():\n    from .a import g")
    assert circles(tmp_path) == ["core.a -> core.b -> core.a"]


def test_no_file_is_longer_than_a_person_reads() -> None:
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "research").rglob("*.py")]:
        assert len(path.read_text("utf-8").splitlines()) <= 300, path


@pytest.mark.parametrize(
    ("file", "code", "says"),
    [
        ("core/a.py", "from probeselect.select.sampler import X", "core/a.py (floor 0) imports select"),
        ("core/a.py", "import probeselect.backbones.taps", "imports backbones (floor 4)"),
        ("core/a.py", "def f():\n    from ..probe import network", "imports probe (floor 6)"),
        ("core/a.py", "from .. import collect", "imports collect (floor 9)"),
        ("core/a.py", "import probeselect", "imports __init__ (floor 16)"),
        ("core/a.py", "from probeselect import Probe", "imports __init__ (floor 16)"),
        ("policies/a.py", "def f():\n    import diffusers.utils", "policies/a.py imports diffusers"),
        ("data/a/b.py", "from ...rollout import rollout", "data/a/b.py (floor 2) imports rollout"),
        ("collect/a.py", "from probeselect.select import sampler", "imports select (floor 10)"),
        ("evaluation/a.py", "from probeselect.cli import main", "imports cli (floor 14)"),
        ("gadgets/a.py", "", "gadgets/a.py: gadgets has no floor"),
        ("gadget.py", "", "gadget.py: gadget has no floor"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path: Path, file: str, code: str, says: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    (found,) = violations(tmp_path)
    assert says in found


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("core/a.py", "from probeselect.core.rungs import f\nfrom .rungs import f\nimport torch"),
        ("probe/a.py", "from probeselect import core\nfrom ..evaluators import base"),
        ("cli.py", "from probeselect.commands import plan, train"),
        ("__init__.py", "from probeselect.select.sampler import X\nfrom .probe import files"),
    ],
)
def test_downward_is_allowed(tmp_path: Path, file: str, code: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert not violations(tmp_path)


def test_scoring_and_training_import_without_diffusers() -> None:
    source = ROOT / "src"
    files = [
        path
        for entry in WITHOUT_DIFFUSERS
        for path in [source / PACKAGE / f"{entry}.py", *(source / PACKAGE / entry).rglob("*.py")]
        if path.is_file()
    ]
    modules = [".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__") for path in files]
    code = "import importlib, sys\nsys.modules['diffusers'] = None\n"
    code += f"for name in {sorted(modules)}: importlib.import_module(name)"
    assert f"{PACKAGE}.core.rungs" in modules
    run = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_architecture_fits_a_page() -> None:
    page = ROOT / "ARCHITECTURE.md"
    if page.exists():
        assert len(page.read_text("utf-8").splitlines()) <= 40
