"""Holds the layers: parses every import of the package, so that none points upward."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "probeselect"
LAYERS = {
    "core": 0,
    "backbones": 1,
    "data": 1,
    "embedded": 1,
    "embedded/build": 4,  # a program: makes what ships, with everything there is
    "evaluators": 1,
    "probe": 1,
    "sampling": 2,
    "jobs": 3,
    "report": 4,
    "engines": 4,
    "commands": 4,
    "cli": 4,
    "__main__": 4,
    "__init__": 4,  # the public names
}
PURE = {"core"}  # no diffusers or transformers, not even inside a function
WITHOUT_DIFFUSERS = [
    "core",
    "evaluators",
    "probe",
    "data",
    "jobs/train",
    "jobs/evaluate",
    "jobs/judging",
    "jobs/keeping",
    "jobs/plan",
    "commands/evaluate",
    "commands/plan",
    "commands/sources",
    "report/charts",
    "report/evaluation",
    "report/page",
    "report/sheets",
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


def place_of(parts: Sequence[str]) -> str:
    """The entry of LAYERS that a path or a dotted name belongs to."""
    nested = "/".join(parts[:2])
    return nested if nested in LAYERS else parts[0]


def violations(source: Path) -> list[str]:
    """What the package in `source` imports against the layers, one line each."""
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        where, name = path.relative_to(source).as_posix(), place_of(parts)
        if name not in LAYERS:
            found.append(f"{where}: {name} has no layer, give it one in LAYERS")
            continue
        for imported in imports(path, [PACKAGE, *parts[:-1]]):
            if name in PURE and imported[0] in ("diffusers", "transformers"):
                found.append(f"{where} imports {imported[0]}")
            if imported[0] != PACKAGE:
                continue
            target = place_of(imported[1:]) if len(imported) > 1 and imported[1] in LAYERS else "__init__"
            if LAYERS[target] > LAYERS[name]:
                found.append(f"{where} (layer {LAYERS[name]}) imports {target} (layer {LAYERS[target]})")
            if target == name == "jobs" and len(imported) > 2 and imported[2] != parts[1]:
                found.append(f"{where} imports another job, {imported[2]}")
    return found


def test_imports_point_downward() -> None:
    assert not violations(ROOT / "src" / PACKAGE)


@pytest.mark.parametrize(
    ("file", "code", "says"),
    [
        ("core/a.py", "from probeselect.sampling.select import X", "core/a.py (layer 0) imports sampling"),
        ("core/a.py", "import probeselect.backbones.taps", "imports backbones (layer 1)"),
        ("core/a.py", "def f():\n    from ..probe import network", "imports probe (layer 1)"),
        ("core/a.py", "from .. import jobs", "imports jobs (layer 3)"),
        ("core/a.py", "import probeselect", "imports __init__ (layer 4)"),
        ("core/a.py", "from probeselect import Probe", "imports __init__ (layer 4)"),
        ("core/a.py", "def f():\n    import diffusers.utils", "core/a.py imports diffusers"),
        ("data/a/b.py", "from ...sampling import rollout", "data/a/b.py (layer 1) imports sampling"),
        ("sampling/a.py", "from probeselect.jobs import plan", "imports jobs (layer 3)"),
        ("jobs/train.py", "from probeselect.cli import main", "imports cli (layer 4)"),
        ("jobs/train.py", "from probeselect.jobs.plan import f", "jobs/train.py imports another job, plan"),
        ("jobs/train.py", "from . import collect", "jobs/train.py imports another job, collect"),
        ("jobs/__init__.py", "from .plan import f", "jobs/__init__.py imports another job, plan"),
        ("gadgets/a.py", "", "gadgets/a.py: gadgets has no layer"),
        ("gadget.py", "", "gadget.py: gadget has no layer"),
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
        ("jobs/train.py", "from ..sampling import rollout\nfrom probeselect.jobs.train import f"),
        ("cli.py", "from probeselect import Probe\nfrom probeselect.jobs import plan, train"),
        ("__init__.py", "from probeselect.sampling.select import X\nfrom .probe import files"),
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
