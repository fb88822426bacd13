"""The scripts of research/: each says what it does, and those on score tables run, on tables of a few prompts."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "research").rglob("*.py")
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Of 12 prompts x 8 candidates, 4 steps; scores get better step by step."""
    draw = np.random.default_rng(0)
    rewards = draw.standard_normal((12, 8))
    noise = draw.standard_normal((3, 12, 8)) * np.array([4, 1, 0.2])[:, None, None]
    path = tmp_path / "tables" / "some_base.npz"
    path.parent.mkdir()
    np.savez(path, score=np.concatenate([rewards + noise, rewards[None]]), steps=np.arange(4))
    return path


def run(module: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    importlib.import_module(module).main()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str) -> None:
    assert importlib.import_module(module).__doc__


def test_each_script_says_what_it_does(monkeypatch, capsys) -> None:
    scripts = [name for name in MODULES if hasattr(importlib.import_module(name), "main")]
    assert {"research.embedded.__main__", "research.planning.until"}.issubset(scripts)
    for module in scripts:
        with pytest.raises(SystemExit) as ended:
            run(module, "--help", monkeypatch=monkeypatch)
        assert ended.value.code == 0 and "usage" in capsys.readouterr().out


def test_an_unknown_stage_is_refused(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run("research.embedded.__main__", "nothing", "--work", "work", monkeypatch=monkeypatch)
    assert "unknown stage 'nothing'" in capsys.readouterr().err


def test_what_it_takes_to_reach_a_reward(table, monkeypatch, capsys) -> None:
    run("research.planning.until", table, "--budget", 8, monkeypatch=monkeypatch)
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| target | way") and len(rows) == 3 * 5
    assert {row.split(" | ")[1] for row in rows} >= {"one by one", "rounds, judged", "likely by 90%"}
    reached = [float(row.split(" | ")[2].rstrip("%")) for row in rows if "one by one" in row]
    assert reached == sorted(reached, reverse=True) and 0 <= reached[-1] < reached[0] <= 100


def test_what_plans_earn(table, tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "figures.json"
    arguments = (table.parent, "--halves", 2, "--budgets", 8, "--out", out)
    run("research.planning.earnings", *arguments, monkeypatch=monkeypatch)
    told = capsys.readouterr().out
    assert "| some_base | 8 |" in told and "Over 2 random halves" in told
    assert {line["schedule"] for line in json.loads(out.read_text())} >= {"plan", "adaptive", "best of n"}


def test_what_plans_earn_as_a_picture(table, tmp_path, monkeypatch) -> None:
    out = tmp_path / "plans.png"
    run("research.planning.plot", table, "--budgets", "8,12", "--out", out, monkeypatch=monkeypatch)
    lines = json.loads(out.with_suffix(".json").read_text())
    assert [*lines] == ["best of n", "some_base", "some_base, adaptive"] and out.stat().st_size > 1000
    assert [point["cost"] for point in lines["best of n"]] == [8, 12]
