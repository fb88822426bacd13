"""Recording ordinary use: a collection of whole groups, some of them finished by a fair draw."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from collected import ARGUMENTS, Redness, table_of
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.backbones.taps import X0
from probeselect.cli import main
from probeselect.collect.maker import CollectSettings
from probeselect.collect.recorder import Recorder
from probeselect.collect.score import score
from probeselect.core.candidates import candidates_of
from probeselect.core.errors import UsageError
from probeselect.data.dataset import Dataset
from probeselect.probe.config import Head
from probeselect.probe.initial import new_probe
from probeselect.probe.objective import Objective
from probeselect.probe.options import TrainOptions
from probeselect.probe.train_job import TrainRun
from probeselect.select.sampler import SelectiveSampler

RUNGS = (0.2, 0.4)
SETTINGS = CollectSettings(run="recorded", n=4, rungs=RUNGS, groups_per_shard=1)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


def recorder(backbone, folder, **changes):
    return Recorder(folder, backbone, (*backbone.taps, X0), SETTINGS, ARGUMENTS, **changes)


def run(backbone, record, prompts=("a", "b"), **changes):
    sampler = SelectiveSampler(backbone, "random")
    given = {"n": 4, "k": 1, "rungs": RUNGS, **ARGUMENTS, **changes}
    return sampler(list(prompts), record=record, **given)


def test_what_was_chosen_and_what_it_looked_like_is_kept(backbone, tmp_path):
    plain = run(backbone, None)
    results = run(backbone, recorder(backbone, tmp_path, share=0.0))
    for result, usual in zip(results, plain, strict=True):  # recording changes nothing
        assert [c.seed for c in result.kept] == [c.seed for c in usual.kept]
        assert result.cost.denoiser_rows == usual.cost.denoiser_rows
    dataset = Dataset(tmp_path)
    table, gallery = table_of(dataset), dataset.gallery
    assert table.prompts == ["a", "b"] and dataset.rungs == RUNGS
    assert table.tensors["seeds"].tolist() == [[0, 1, 2, 3]] * 2
    tap = backbone.taps[0].name
    for rung in RUNGS:
        maps = SelectiveSampler(backbone, "random").features("b", [0, 1, 2, 3], rung, **ARGUMENTS)
        basis = torch.from_numpy(dataset.projection(tap))
        ours = table.tensors[f"map/{tap}/{rung:g}"][1].float()
        known = [i for i, c in enumerate(results[1].candidates) if rung == 0.2 or len(c.scores) == 2]
        expected = torch.einsum("pc,nchw->nphw", basis, maps.float())
        torch.testing.assert_close(ours[known], expected[known], atol=0.02, rtol=0.01)
    for result in results:
        for candidate in result.candidates:
            picture = gallery.finished(result.prompt, candidate.seed)
            assert (picture is not None) == candidate.kept
            if candidate.kept:
                np.testing.assert_array_equal(np.asarray(picture), np.asarray(candidate.image))


def test_the_zeros_in_place_of_maps_that_were_never_made_are_not_trained_on(backbone, tmp_path):
    """A candidate that is stopped at the first rung has none at the second: neither statistics nor losses see it."""
    results = run(backbone, recorder(backbone, tmp_path, share=0.0))
    table = table_of(Dataset(tmp_path))
    reached = torch.tensor([[len(c.scores) == 2 for c in result.candidates] for result in results])
    assert reached.any() and not reached.all()
    late = table.tensors[f"map/{X0.name}/0.4"]
    assert torch.equal(late.flatten(2).any(2), reached)
    assert torch.equal(table.tensors["valid"], reached)

    def learnt(table):
        """The mean of the maps that a probe starts from, and its loss, were every candidate judged."""
        table.tensors["reward/redness"] = torch.arange(8.0).view(2, 4)
        torch.manual_seed(0)
        bases = {X0.name: table.bases[X0.name]}
        probe = new_probe(table, [Head("redness", "scalar")], "tiny", backbone.describe(), RUNGS, bases, 8)
        torch.nn.init.normal_(probe.heads["redness"][-1].weight)  # it is zero at first, and so would every score be
        objective = Objective(probe, table, TrainOptions(contrast_weight=1.0))
        return probe.mean_0.tolist(), objective(torch.arange(2), 0.4, 1.0, 0.0).item()

    others = replace(table, tensors={**table.tensors, f"map/{X0.name}/0.4": late.clone()})
    others.tensors[f"map/{X0.name}/0.4"][~reached] = 50.0
    assert learnt(others) == learnt(table)


def test_an_activation_that_is_not_finite_is_told(backbone, tmp_path, monkeypatch):
    record = recorder(backbone, tmp_path, share=1.0)
    usual = record.note

    def note(stage):
        usual(stage)
        for candidate in stage.candidates:
            if candidate.seed == 2:
                record.maps[candidate][f"map/{X0.name}/0.2"][:] = np.nan

    monkeypatch.setattr(record, "note", note)
    run(backbone, record)
    dataset = Dataset(tmp_path)
    assert table_of(dataset).tensors["valid"].tolist() == [[True, True, False, True]] * 2
    assert [row["status"] for row in dataset.rows(0).to_pylist()] == ["ok", "ok", "not finite", "ok"]


def test_a_share_of_the_stopped_is_finished_by_a_fair_draw(backbone, tmp_path):
    everything = run(backbone, recorder(backbone, tmp_path / "all", share=1.0))
    assert all(c.completed_steps == 5 for result in everything for c in result.candidates)
    assert [c.image is None for r in everything for c in r.candidates] == [False] * 8
    assert [len(r.kept) for r in everything] == [1, 1] and everything[0].cost.ratio == 1
    assert table_of(Dataset(tmp_path / "all")).tensors["valid"].all()
    some = recorder(backbone, tmp_path / "some", share=0.3)
    sampler = SelectiveSampler(backbone, "random")
    (result,) = sampler(["c"], record=some, n=4, k=1, rungs=RUNGS, seed=100, **ARGUMENTS)
    again = recorder(backbone, tmp_path / "again", share=0.3)
    drawn = {c.seed for c in again.finishes([c for c in candidates_of("c", 4, seed=100)])}
    assert {c.seed for c in result.candidates if c.completed_steps == 5} == drawn | {result.kept[0].seed}
    many = again.finishes(candidates_of("d", 2000))
    assert len(many) / 2000 == pytest.approx(0.3, abs=0.03)


def test_the_same_group_is_recorded_once_and_others_are_appended(backbone, tmp_path):
    run(backbone, recorder(backbone, tmp_path))
    run(backbone, recorder(backbone, tmp_path), prompts=("b", "c"))
    assert Dataset(tmp_path).prompts(2) == ["c"] and Dataset(tmp_path).shard_count == 3
    with pytest.raises(UsageError, match="made otherwise: n was 4, now 3"):
        Recorder(tmp_path, backbone, (*backbone.taps, X0), CollectSettings("recorded", 3, RUNGS), ARGUMENTS)


def test_a_full_folder_is_left_as_it_is(backbone, tmp_path):
    run(backbone, recorder(backbone, tmp_path))
    full = recorder(backbone, tmp_path, most_bytes=10)
    results = run(backbone, full, prompts=("c",))
    assert full.full and full.shards == [] and Dataset(tmp_path).shard_count == 2
    assert [c.completed_steps for c in results[0].candidates].count(5) == 1


def test_a_probe_is_trained_on_what_was_recorded(backbone, tmp_path):
    prompts = [f"prompt {i}" for i in range(12)]
    run(backbone, recorder(backbone, tmp_path / "data", share=0.5), prompts=prompts)
    dataset = Dataset(tmp_path / "data")
    assert list(score(dataset, Redness())) == list(range(12))
    table = table_of(Dataset(dataset.folder))
    assert 12 < table.valid("redness").sum() < 48  # those who were finished, and no others
    options = TrainOptions(("redness",), kind="scalar", epochs=1, groups_per_batch=4, val_share=0.3)
    training = TrainRun(Dataset(dataset.folder), tmp_path / "probe", options, {})
    list(training.epochs())
    assert np.isfinite(training.history[0].loss)


@pytest.mark.parametrize(
    ("changes", "says"), [({"share": 1.5}, "record share = 1.5"), ({"share": -0.1}, "must be from 0 to 1")]
)
def test_what_cannot_be_recorded_is_refused(backbone, tmp_path, changes, says):
    with pytest.raises(UsageError, match=says):
        recorder(backbone, tmp_path, **changes)
    with pytest.raises(UsageError, match="must be 'pil'"):
        Recorder(tmp_path, backbone, (X0,), SETTINGS, {"output_type": "pt"})
    assert not list(tmp_path.iterdir())


def test_generate_records_and_scores(tmp_path, monkeypatch, capsys):
    arguments = ["generate", "two dogs", "-n", "3", "--steps", "5", "--rungs", "0.4", "--scorer", "random"]
    arguments += ["--evaluate", "scene-check", "--record", str(tmp_path / "mine"), "--record-share", "0.5"]
    monkeypatch.setattr("sys.argv", ["probeselect", *arguments, "--json", "--out", str(tmp_path / "out")])
    main()
    result = json.loads(capsys.readouterr().out)
    finished = [c["seed"] for c in result["candidates"] if c["completed_steps"] == 5]
    table = table_of(Dataset(tmp_path / "mine"))
    assert table.valid("scene-check").sum() == len(finished) and "features/scene-check" in table.tensors
    kept = result["kept"][0]
    reward = result["candidates"][kept]["rewards"]["scene-check"]
    assert float(table.tensors["reward/scene-check"][0, kept]) == pytest.approx(reward, abs=1e-5)
