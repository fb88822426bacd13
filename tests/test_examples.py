"""Every example runs as it stands, and so do the blocks of the pages for Python and for contributors."""

import json
import re
import runpy
from pathlib import Path

import pytest

from probeselect.scorers.table import SCORERS

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PAGES = [ROOT / "docs/python.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_watching_and_overruling_keeps_the_one_that_was_to_be_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(ROOT / "examples/watch_and_overrule.py"))
    (result,) = names["run"].results
    assert [len(candidate.scores) for candidate in result.candidates].count(2) == 2  # the policy's one and ours
    assert len(list(tmp_path.glob("seed-*.png"))) == 1
    assert len((ROOT / "examples/watch_and_overrule.py").read_text().splitlines()) <= 25


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples/first_steps.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    assert "<img" in names["result"]._repr_html_() and len(repr(names["result"])) < 200


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page, in order; what one defines, later ones may use."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probeselect.scorers.table.SCORERS", dict(SCORERS))  # a page's own row is for that page
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
