"""`probeselect evaluate`: a page that asks nobody for anything, from tables and from datasets with probes."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from test_train_job import SETTINGS, planted, run

from probeselect.cli import main
from probeselect.core.judged import Scorer
from probeselect.data.dataset import Dataset
from probeselect.jobs import judging
from probeselect.jobs.evaluate import evaluate
from probeselect.jobs.judging import of_dataset, of_score_tables, prompts_not_seen
from probeselect.jobs.train import TrainJob
from probeselect.probe.files import load_probe
from probeselect.probe.seen import read_seen
from probeselect.report.charts import charts
from probeselect.report.page import findings, page

HOSTILE = "</script><img src=x onerror=alert(1)>"


class Attributes(HTMLParser):
    """The names of all attributes of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [name for name, _ in attrs]


@pytest.fixture
def table(tmp_path):
    """A scorer that sees more and more of the reward, over 6 steps."""
    draw = np.random.default_rng(0)
    rewards = draw.standard_normal((40, 12)) + draw.standard_normal((40, 1))
    scores = [rewards + noise * draw.standard_normal(rewards.shape) for noise in (4, 2, 1, 0.5, 0.2)]
    np.savez(tmp_path / "seer.npz", score=np.stack([*scores, rewards]), steps=np.arange(6))
    np.savez(tmp_path / "late.npz", score=np.stack([scores[0] + 3 * draw.standard_normal(rewards.shape)]), steps=[1])
    return tmp_path / "seer.npz"


def said(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["probeselect", "evaluate", *map(str, arguments)])
    main()
    return capsys.readouterr().out


def test_a_table_becomes_a_page_and_figures(table, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    text = said(monkeypatch, capsys, table, "--out", out, "--against", f"weak={tmp_path / 'late.npz'}")
    report = json.loads((out / "report.json").read_text())
    assert {row["scorer"] for row in report["choosing"]} == {"seer", "weak"} and report["faults"] == []
    assert "seer: its best schedule here" in text and "FAULT" not in text
    assert json.loads(said(monkeypatch, capsys, table, "--out", out, "--json"))["evaluator"] == "seer"
    first = (out / "report.html").read_bytes()
    said(monkeypatch, capsys, table, "--out", out)
    assert (out / "report.html").read_bytes() == first  # the same command, the same bytes


def test_the_page_asks_nobody_and_runs_only_its_own_script(table, tmp_path, monkeypatch, capsys):
    said(monkeypatch, capsys, table, "--out", tmp_path / "report", "--title", HOSTILE)
    html = (tmp_path / "report" / "report.html").read_text()
    assert HOSTILE not in html and "&lt;/script&gt;" in html and "://" not in html
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    attributes = Attributes()
    attributes.feed(html)
    assert not [name for name in attributes.found if name == "style" or name.startswith("on")]


def test_what_is_hostile_in_the_data_is_escaped(table):
    judged = of_score_tables({"seer": table})
    judged = replace(judged, evaluator=HOSTILE, scorers=[Scorer(HOSTILE, judged.scorers[0].scores)])
    report = evaluate(judged) | {"faults": [HOSTILE]}
    html = page(report, charts(report), "t")
    assert HOSTILE not in html and html.count("&lt;/script&gt;") > 3
    assert all(HOSTILE in line for line in list(findings(report))[1:])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--probe", "x"], "--probe and --evaluator: need a dataset"),
        (["--against", "late.npz"], "write NAME=TABLE"),
        (["--against", "x=none.npz"], "there is no such file"),
        (["--against", "seer=late.npz"], "--against 'seer': given twice"),
    ],
)
def test_bad_use_is_one_line(table, tmp_path, monkeypatch, capsys, arguments, says):
    with pytest.raises(SystemExit) as stop:
        said(monkeypatch, capsys, table, "--out", tmp_path / "report", *arguments)
    assert stop.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dataset with previews, and a probe of it."""
    folder = tmp_path_factory.mktemp("judged")
    data = planted(folder / "data", previews=True)
    job = TrainJob(data.folder, folder / "mine", ("brightness",), kind="scalar", settings=SETTINGS, val_share=0.2)
    run(job).finish("x")
    return data.folder, folder / "mine"


def test_a_dataset_is_judged_by_prompts_that_the_probe_has_not_seen(trained, tmp_path, monkeypatch, capsys):
    data, probe = trained
    out = tmp_path / "report"
    said(monkeypatch, capsys, data, "--probe", probe, "--out", out)
    report = json.loads((out / "report.json").read_text())
    (fault,) = report["faults"]
    seen = len(read_seen(probe))
    assert fault == f"{seen} of 60 prompts were trained on: they are left out of every figure"
    assert report["prompts"] == 60 - seen and report["evaluator"] == "brightness"
    names = {row["scorer"] for row in report["choosing"]}
    assert names == {"mine", "fusion:mine", "preview:brightness", "random"}
    late = {row["scorer"]: row["spearman"] for row in report["choosing"] if row["step"] == 7}
    assert late["mine"] > 0.6 and abs(late["random"]) < 0.45 < late["preview:brightness"]


def test_two_probes_of_one_name_are_refused(trained, tmp_path, monkeypatch, capsys):
    data, probe = trained
    with pytest.raises(SystemExit):
        said(monkeypatch, capsys, data, "--probe", probe, "--probe", probe, "--out", tmp_path / "report")
    assert "--probe 'mine': given twice" in capsys.readouterr().err


def test_a_preview_that_was_not_judged_counts_nowhere(trained, monkeypatch):
    """Its candidate is left out for every scorer, so that they are judged by the same ones."""
    data, probe = Dataset(trained[0]), trained[1]
    whole = judging.open_table(data, ["brightness"])
    whole.tensors["preview/brightness/0.4"][2, 1] = float("nan")
    monkeypatch.setattr(judging, "open_table", lambda *_: whole)
    judged = of_dataset(data, "brightness", {"mine": load_probe(probe)}, {})
    assert not judged.valid[2, 1] and judged.valid.sum() == judged.valid.size - 1
    assert evaluate(judged)["candidates"] == judged.valid.size - 1


def test_a_probe_that_does_not_say_what_it_has_seen_is_named(trained, tmp_path):
    data, probe = Dataset(trained[0]), trained[1]
    unseen, notes = prompts_not_seen(data, {"mine": None})
    assert len(unseen) == 60 and notes == ["mine: does not say what it was trained on"]
    everything = frozenset(read_seen(probe)) | {"0" * 16}
    assert len(prompts_not_seen(data, {"mine": everything})[0]) == 60 - len(read_seen(probe))
    judged = of_dataset(data, "brightness", {"mine": load_probe(probe)}, {}, unseen[:20])
    assert judged.rewards.shape == (20, 4) and judged.total_steps == 20
