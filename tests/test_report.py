"""`probeselect evaluate`: a page that asks nobody for anything, from tables and from datasets with probes."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_train_job import OPTIONS, Brightness, planted, run

from probeselect.cli import main
from probeselect.core.errors import UsageError
from probeselect.core.rungs import rung_of, step_at
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.data.dataset import Dataset
from probeselect.data.score_table import read_score_table
from probeselect.evaluation.charts import charts, more_candidates, reward_against_compute
from probeselect.evaluation.evaluate import evaluate
from probeselect.evaluation.page import findings, page
from probeselect.evaluation.plan import plan
from probeselect.evaluation.report import report_of
from probeselect.evaluation.scoring import leaks_of, score_table
from probeselect.evaluation.sources import open_source, prompts_not_seen
from probeselect.evaluation.timing import Timing
from probeselect.policies.plans import FixedPlan
from probeselect.probe.config import Trained
from probeselect.probe.files import load_probe, save_probe
from probeselect.probe.splits import digest_of, read_seen

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


@pytest.mark.parametrize("total", [7, 20, 28, 30, 33, 50])
def test_every_curve_is_drawn_whatever_the_number_of_steps(total):
    """Of few or odd numbers of steps the rung nearest to 20 % is not at 20 %: 21 % of 28 steps, 14 % of 7."""
    draw = np.random.default_rng(0)
    rewards = draw.standard_normal((6, 10))
    steps = {step_at(rung, total) for rung in (0.2, 0.25, 0.5)}
    scorers = [
        ScorerScores(name, {step: rewards + draw.standard_normal(rewards.shape) for step in sorted(steps)})
        for name in ("one", "two")
    ]
    report = report_of(ScoreTable("e", rewards, np.ones(rewards.shape, dtype=bool), total, scorers))
    at = f"{100 * rung_of(step_at(0.2, total), total):.0f} %"
    whose = [f"n -> 1 at {at}", "5 -> 1 at each step", "8 -> 4 -> 2"]
    curves = {
        "best of n",
        f"oracle: n -> 1 at {at}",
        *(f"{name}: {curve}" for name in ("one", "two") for curve in whose),
    }
    axes = Figure().subplots()
    reward_against_compute(axes, report)
    drawn = {line.get_label(): len(line.get_xdata()) for line in axes.lines}
    assert drawn.keys() == curves
    assert all(drawn[name] >= 6 for name in curves if "n -> 1" in name)
    axes = Figure().subplots()
    more_candidates(axes, report)
    assert [len(line.get_xdata()) for line in axes.lines] == [8, 7, 7]  # n from 1 to 10, and from 2


def test_what_is_hostile_in_the_data_is_escaped(table):
    judged = read_score_table(table)
    judged = replace(judged, evaluator=HOSTILE, scorers=[ScorerScores(HOSTILE, judged.scorers[0].scores)])
    report = replace(report_of(judged), faults=[HOSTILE])
    html = page(report, charts(report), "t")
    assert HOSTILE not in html and html.count("&lt;/script&gt;") > 3
    assert all(HOSTILE in line for line in list(findings(report))[1:])


def test_a_dataset_is_judged_without_diffusers(trained, tmp_path):
    arguments = ["probeselect", "evaluate", str(trained[0]), "--probe", str(trained[1]), "--out", str(tmp_path)]
    code = "import sys; sys.modules['diffusers'] = None; from probeselect.cli import main; "
    run = [sys.executable, "-c", f"{code}sys.argv = {arguments!r}; main()"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file() and (tmp_path / "activations.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--probe", "x"], "--probe, --evaluator and --network: need a dataset"),
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
    run(data, folder / "mine", replace(OPTIONS, kind="scalar")).finish("x")
    return data.folder, folder / "mine"


def test_a_dataset_is_judged_by_prompts_that_the_probe_has_not_seen(trained, tmp_path, monkeypatch, capsys):
    data, probe = trained
    out = tmp_path / "report"
    said(monkeypatch, capsys, data, "--probe", probe, "--out", out)
    report = json.loads((out / "report.json").read_text())
    seen = len(read_seen(probe))
    assert report["notes"] == [f"mine was trained on {seen} of 60 prompts: they are left out of every figure"]
    assert report["prompts"] == 60 - seen and report["evaluator"] == "brightness" and report["faults"] == []
    names = {row["scorer"] for row in report["choosing"]}
    assert names == {"mine", "fusion:mine", "preview:brightness", "text only", "random"}
    late = {row["scorer"]: row["spearman"] for row in report["choosing"] if row["step"] == 7}
    assert late["mine"] > 0.6 and abs(late["random"]) < 0.45 < late["preview:brightness"]
    assert abs(late["text only"]) < 0.45 and not any(leak["leak"] for leak in report["leaks"])
    assert {leak["probe"] for leak in report["leaks"]} == {"mine", "text only"}
    files = {path.name for path in out.iterdir()}
    assert files >= {"hits.png", "previews.png", "activations.png", "strips.png", "calibration.png", "compute.png"}
    assert report["evaluators"] == [] and len(report["strips"]) == report["prompts"]


def test_prompts_of_another_dataset_that_were_trained_on_are_a_fault(trained, tmp_path, monkeypatch, capsys):
    """Planted: the probe says that it was trained on other data, and some of its prompts are met again here."""
    data, probe = trained
    copy = tmp_path / "moved"
    copy.mkdir()
    for path in probe.glob("*.*"):
        if path.is_file():
            copy.joinpath(path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["training"]["train_prompts"] = "0" * 64
    (copy / "config.json").write_text(json.dumps(config))
    text = said(monkeypatch, capsys, data, "--probe", copy, "--out", tmp_path / "report")
    assert f"FAULT: moved was trained on {len(read_seen(probe))} of 60 prompts" in text


def test_what_two_evaluators_say_of_the_kept_and_how_far_they_are_from_all(trained, tmp_path, monkeypatch, capsys):
    from probeselect.collect.score import score

    class Darkness(Brightness):
        name = "darkness"

        def score(self, features, prompts):
            return -super().score(features, prompts)

    data = planted(tmp_path / "data", previews=True)
    list(score(data, Darkness()))
    out = tmp_path / "report"
    said(monkeypatch, capsys, data.folder, "--evaluator", "brightness", "--network", "brightness", "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert {row["evaluator"] for row in report["evaluators"]} == {"brightness", "darkness"}
    kept = {(row["kept_by"], row["evaluator"]): row for row in report["kept"]}
    ours = kept["preview:brightness at 20%", "brightness"]
    assert ours["difference"] > 0 and 0 < ours["share"] < 1
    other = kept["preview:brightness at 20%", "darkness"]
    assert other["difference"] == pytest.approx(-ours["difference"])  # what games one is seen by the other
    assert kept["best of all by brightness", "brightness"]["share"] == pytest.approx(1)
    far = {row["kept_by"]: row["fid"] for row in report["distances"]}
    assert far["best of all"] > 5 * far["random"] and far["preview:brightness"] > far["random"]
    html = (out / "report.html").read_text()
    assert "What choosing by one does to the others" in html and "Distance of the kept" in html


def test_a_network_of_ones_own_measures_distances(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "mean_colour.py").write_text("def network(pictures): return pictures.float().mean((2, 3)) / 255\n")
    monkeypatch.syspath_prepend(tmp_path)
    data, out = trained[0], tmp_path / "report"
    said(monkeypatch, capsys, data, "--network", "mean_colour:network", "--out", out)
    rows = json.loads((out / "report.json").read_text())["distances"]
    assert rows[-1]["kept_by"] == "best of all" and rows[-1]["fid"] > 0.01 and rows[-1]["pictures"] == 60
    with pytest.raises(SystemExit):
        said(monkeypatch, capsys, data, "--network", "darkness", "--out", out)
    assert "network 'darkness': neither MODULE:NAME nor an evaluator" in capsys.readouterr().err


def test_a_probe_that_is_told_too_much_is_named(trained):
    """Planted: rewards are one place off, so that another candidate's activations tell of this one."""
    held = open_source(trained[0], {"mine": load_probe(trained[1])}, "", None)
    rolled = {n: v.roll(1, 1) for n, v in held.groups.tensors.items() if n.startswith("reward/")}
    shifted = replace(held, groups=replace(held.groups, tensors=held.groups.tensors | rolled))
    table = score_table(shifted, "brightness")
    leaks = leaks_of(table, shifted)
    assert all(leak.leak for leak in leaks) and len(leaks) == 2
    assert "something leaks" in " ".join(report_of(table, leaks=leaks).faults)


def test_a_probe_that_reads_other_maps_is_refused_in_a_line(trained, tmp_path, monkeypatch, capsys):
    """Another basis would score noise without a word, and another number of channels crash far from its cause."""
    data, probe = trained
    other, whole = load_probe(probe), Dataset.projection
    other.get_buffer("projection_0").neg_()
    save_probe(other, tmp_path / "other")
    fewer = lambda dataset, tap: whole(dataset, tap)[:1]  # noqa: E731
    for folder, projection, says in [
        (tmp_path / "other", whole, "were projected by another basis than probe other reads"),
        (probe, fewer, "hold 1 channels of tap, and probe mine reads 5; collect with --map-channels 5"),
    ]:
        monkeypatch.setattr(Dataset, "projection", projection)
        with pytest.raises(SystemExit):
            said(monkeypatch, capsys, data, "--probe", folder, "--out", tmp_path / "report")
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not (tmp_path / "report").exists()


def test_two_probes_of_one_name_are_refused(trained, tmp_path, monkeypatch, capsys):
    data, probe = trained
    with pytest.raises(SystemExit):
        said(monkeypatch, capsys, data, "--probe", probe, "--probe", probe, "--out", tmp_path / "report")
    assert "--probe 'mine': given twice" in capsys.readouterr().err
    with pytest.raises(UsageError, match="scorers: 2 of 1 names"):
        evaluate(data, [probe, probe])


def test_a_report_is_a_call_away(trained, table, monkeypatch):
    """The library's own words for what the commands do: a dataset and probes, or score tables; nothing is written."""
    data, probe = trained
    told = []
    report = evaluate(Dataset(data), {"a": probe, "b": load_probe(probe)}, network=mean_colour, watch=told.append)
    assert {"a", "b", "fusion:a", "text only"} <= set(report.scorers) and "a at 20%" in told and not report.sheets
    assert "b: does not say what it was trained on" in report.notes
    assert report.distances[0].network == "mean_colour"
    by_file, by_name = evaluate(table), evaluate({"seer": str(table), "late": table.with_name("late.npz")})
    assert by_file.scorers == ["seer"] and by_name.scorers == ["seer", "late"]
    assert evaluate(read_score_table(table)).to_json() == by_file.to_json()
    found = plan(table, 12, timing=Timing(0.1, {"mine": 0.05}))
    assert found.scoring_cost == 0.5 and found.cost <= 12 and isinstance(found.plan(), FixedPlan)
    assert plan({"seer": table, "late": table.with_name("late.npz")}, 12, scorer="late").scorer == "late"
    assert plan(data, 30, [probe]).scorer == "mine"


def mean_colour(pictures):
    return pictures.float().mean((2, 3)) / 255


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scorers": ["x"]}, "scorers and evaluator: need a dataset"),
        ({"evaluator": "x"}, "scorers and evaluator: need a dataset"),
        ({"network": "x"}, "network: needs a dataset"),
        ({"rewards": "none.npz"}, "there is no such file"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(table, arguments, says):
    with pytest.raises(UsageError, match=says):
        evaluate(table, **arguments)
    with pytest.raises(UsageError, match="rewards: are for files of scores"):
        evaluate(read_score_table(table), rewards="x.npz")


def test_a_preview_that_was_not_judged_counts_nowhere(trained):
    """Its candidate is left out for every scorer, so that they are judged by the same ones."""
    held = open_source(trained[0], {"mine": load_probe(trained[1])}, "", None)
    held.groups.tensors["preview/brightness/0.4"][2, 1] = float("nan")
    table = score_table(held, "brightness")
    assert not table.valid[2, 1] and table.valid.sum() == table.valid.size - 1
    assert report_of(table).candidates == table.valid.size - 1


def test_a_probe_that_does_not_say_what_it_has_seen_is_named(trained):
    data, probe = Dataset(trained[0]), trained[1]
    unseen, faults, notes = prompts_not_seen(data, {"mine": None}, {"mine": Trained()})
    assert len(unseen) == 60 and (faults, notes) == ([], ["mine: does not say what it was trained on"])
    more = frozenset(read_seen(probe)) | {digest_of("prompt 3"), "0" * 16}
    unseen, faults, _ = prompts_not_seen(data, {"mine": more}, {"mine": Trained()})
    assert "prompt 3" not in unseen and len(faults) == 1
    held = open_source(data, [probe], "", None)
    table = score_table(held, held.evaluator)
    assert table.rewards.shape == (60 - len(read_seen(probe)), 4) and table.total_steps == 20
    assert not {digest_of(prompt) for prompt in table.prompts} & read_seen(probe)
