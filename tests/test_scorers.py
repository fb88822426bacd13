"""One scorer: the same class answers in a live run and on stored data, and a new one is a class and a row."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from collected import ARGUMENTS, Redness, collected
from msgspec import structs
from tiny import tiny_sd

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import ATTENTION, X0
from probeselect.cli import main
from probeselect.collect.maker import CollectSettings, ShardMaker
from probeselect.core.candidates import Candidate
from probeselect.core.errors import UsageError
from probeselect.core.stage import Stage, whole_maps
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.shards import seeds_of
from probeselect.data.table import Table
from probeselect.evaluation.scoring import score_table
from probeselect.evaluation.sources import open_source
from probeselect.probe.config import Fusion, Head
from probeselect.probe.initial import new_probe
from probeselect.probe.scorer import ProbeScorer
from probeselect.rollout.rollout import rollout
from probeselect.scorers.attention import AttentionScorer
from probeselect.scorers.table import (
    SCORERS,
    FunctionScorer,
    FusionScorer,
    PreviewScorer,
    RandomScorer,
    Row,
    load_scorer,
)
from probeselect.select.sampler import SelectiveSampler

PROMPTS, RUNG = ["a red cat", "two dogs"], 0.4


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(tiny_sd())


@pytest.fixture(scope="module")
def dataset(backbone, tmp_path_factory) -> Dataset:
    """Two prompts of three candidates, with previews, two taps and cross-attention."""
    return made(backbone, (*backbone.taps, X0, ATTENTION), tmp_path_factory.mktemp("data"), previews=True)


def made(backbone, taps, folder, **settings) -> Dataset:
    small = CollectSettings(n=3, groups_per_shard=2, rungs=(0.2, RUNG), map_channels=16, **settings)
    return collected(ShardMaker(backbone, taps, small, ARGUMENTS), PROMPTS, folder, [Redness()])


@pytest.fixture(scope="module")
def live(backbone, dataset) -> Stage:
    """The candidates of the dataset, run anew."""
    candidates = [Candidate(g, p, seed) for g, p in enumerate(PROMPTS) for seed in seeds_of("", p, 3)]
    taps = tuple(map(backbone.tap, dataset.config.taps))
    return next(iter(rollout(backbone, candidates, [RUNG], taps=taps, previews=True, finish=False, **ARGUMENTS)))


@pytest.fixture(scope="module")
def probe(backbone, dataset):
    bases = {tap: torch.from_numpy(dataset.projection(tap)) for tap in ("x0", backbone.taps[0].name)}
    torch.manual_seed(0)
    probe = new_probe(dataset.table(), [Head("redness", "scalar")], "tiny", backbone.describe(), [0.2, RUNG], bases)
    torch.nn.init.normal_(probe.heads["redness"][-1].weight)
    probe.config = structs.replace(probe.config, fusions=(Fusion("redness", RUNG, 2.0, 3.0),))
    return probe


def brightness(stage: Stage) -> list[float]:
    return [float(np.asarray(picture).mean()) for picture in stage.pictures or ()]


def test_the_same_scorer_gives_the_same_scores_live_and_on_stored_data(backbone, dataset, live, probe):
    preview = PreviewScorer(Redness())
    scorers = [
        ProbeScorer(probe), FusionScorer(ProbeScorer(probe), preview), preview, RandomScorer(),
        AttentionScorer(lambda: backbone.pipe.tokenizer), FunctionScorer(brightness),
    ]  # fmt: skip
    assert live.preview_rewards == {} and live.bases == {} and live.rung == RUNG
    for scorer in scorers:
        ran, stored = scorer(live), scores_of(scorer, dataset, RUNG).flatten()
        assert stored.shape == (6,) and stored.std() > 0, scorer.name
        assert torch.allclose(ran, stored, atol=0.02 * float(ran.std())), scorer.name  # maps are stored as fp16
    for scorer in (preview, RandomScorer(), FunctionScorer(brightness)):
        assert torch.allclose(scorer(live), scores_of(scorer, dataset, RUNG).flatten(), atol=1e-6), scorer.name


def test_a_stage_of_stored_data_is_the_stage_of_the_run(dataset, live):
    (stage,) = dataset.stages(RUNG)
    assert list(stage.candidates) == list(live.candidates) and stage.prompts == live.prompts
    assert (stage.rung, stage.completed_steps, stage.total_steps) == (0.4, 2, 5)
    assert set(stage.maps) == set(live.maps) and set(stage.preview_rewards) == {"redness"}
    assert torch.allclose(whole_maps(stage, "x0"), live.maps["x0"], atol=2e-3, rtol=2e-3)
    assert torch.allclose(stage.prompt_embeddings, live.prompt_embeddings, atol=2e-3, rtol=2e-3)
    assert all(np.array_equal(*map(np.asarray, pair)) for pair in zip(stage.pictures, live.pictures, strict=True))
    assert list(next(dataset.stages(RUNG, ["x0"])).maps) == ["x0"]


def test_groups_come_32_at_a_time_and_the_rung_is_where_they_stood():
    tensors = {"seeds": torch.arange(80).view(40, 2), "valid": torch.ones(40, 2, dtype=torch.bool)}
    tensors["map/x0/0.2"] = torch.arange(80.0).view(40, 2, 1, 1, 1)
    tensors["valid"][39, 1] = False
    table = Table([f"prompt {i}" for i in range(40)], tensors, total_steps=28)
    first, second = table.stages(0.2)
    assert (len(first.candidates), len(second.candidates)) == (64, 16)
    assert second.candidates[0] == Candidate(32, "prompt 32", 64)
    assert second.maps["x0"].flatten().tolist() == [*range(64, 79), 0]  # who is not valid has zeros
    assert first.rung == 6 / 28 and first.asked == 0.2  # as a live run of 28 steps tells a scorer


def test_maps_are_made_whole_where_that_can_be_done():
    maps, turned = torch.randn(2, 3, 4, 4), torch.linalg.qr(torch.randn(3, 3))[0]
    stored = torch.einsum("pc,nchw->nphw", turned, maps)
    stage = Stage(0.2, 4, 20, [], {"x0": stored, "a": maps}, bases={"x0": turned})
    assert torch.allclose(whole_maps(stage, "x0"), maps, atol=1e-5) and torch.equal(whole_maps(stage, "a"), maps)
    with pytest.raises(UsageError, match=r"x0: its 3 channels were mixed into 2, .*--map-channels 3"):
        whole_maps(Stage(0.2, 4, 20, [], {"x0": stored[:, :2]}, bases={"x0": turned[:2]}), "x0")


def test_a_probe_refuses_maps_of_another_basis(dataset, probe):
    (stage,) = dataset.stages(RUNG)
    for basis, says in ((-stage.bases["x0"], "by another basis"), (stage.bases["x0"][:2], "hold 2 channels of x0")):
        with pytest.raises(UsageError, match=says):
            ProbeScorer(probe)(Stage(RUNG, 2, 5, stage.candidates, stage.maps, bases={"x0": basis}))


def test_what_stored_data_lack_is_said_in_a_line(backbone, dataset, probe, tmp_path):
    plain = made(backbone, (X0,), tmp_path)
    with pytest.raises(UsageError, match="tap 'attention' was not collected"):
        load_scorer("attention", plain)
    with pytest.raises(UsageError, match="preview:redness: needs previews, and this stage has none"):
        scores_of(PreviewScorer("redness"), plain, RUNG)
    with pytest.raises(UsageError, match="probe mine: predicts redness, not pickscore"):
        ProbeScorer(probe, "pickscore", name="mine")
    with pytest.raises(UsageError, match=r"no weights for redness at 0\.2; it has: redness at 0\.4"):
        scores_of(FusionScorer(ProbeScorer(probe), PreviewScorer("redness")), dataset, 0.2)


class Spread:
    """A toy: how much the x0-prediction differs from place to place."""

    name = "spread"
    taps = ("x0",)
    previews = False

    def __call__(self, stage: Stage) -> torch.Tensor:
        return whole_maps(stage, "x0").flatten(1).std(1)


def test_a_new_scorer_is_a_class_and_a_row(backbone, dataset, live, probe, monkeypatch, tmp_path):
    monkeypatch.setitem(SCORERS, "spread", Row(lambda rest, context: Spread()))
    sampler = SelectiveSampler(backbone, "spread")
    result = sampler(PROMPTS[0], k=1, seeds=seeds_of("", PROMPTS[0], 3), rungs=[RUNG], **ARGUMENTS)
    ran = torch.tensor([candidate.scores[0].score for candidate in result.candidates])
    assert torch.allclose(ran, Spread()(live)[:3], atol=1e-5) and sampler.scorer.name == "spread"
    assert torch.allclose(scores_of(load_scorer("spread", dataset), dataset, RUNG)[0], ran, rtol=2e-3)

    monkeypatch.setattr("probeselect.scorers.context.tokenizer_of", lambda model: backbone.pipe.tokenizer)
    judged = score_table(open_source(dataset, {"mine": probe}, "", None), "redness")
    names = [each.name for each in judged.scorers]
    assert names == ["preview:redness", "mine", "fusion:mine", "attention", "random", "spread"]
    assert np.allclose(judged.scorers[-1].scores[1][0], ran.numpy(), rtol=2e-3)
    assert list(judged.scorers[2].scores) == [1]  # the fusion has weights at one rung alone

    other = made(backbone, backbone.taps, tmp_path)  # without x0, attention and previews
    judged = score_table(open_source(other, None, "", None), "redness")
    assert [each.name for each in judged.scorers] == ["random"]


def test_the_page_on_scorers_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("probeselect.scorers.table.SCORERS", dict(SCORERS))
    Path("prompts.txt").write_text("a red car above a panda\n")
    command = "collect --prompts prompts.txt --out data --evaluators scene-check --previews -n 2 --steps 5 --rungs 0.2"
    monkeypatch.setattr("sys.argv", ["probeselect", *command.split(), "--device", "cpu"])
    main()
    code = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "docs/scorers.md").read_text(), re.DOTALL)
    names: dict = {}
    for block in code:
        exec(compile(block, "scorers.md", "exec"), names)
    dataset = names["dataset"]
    assert len(code) == 3 and names["scores"].shape == names["rewards"].shape == (1, 2)
    assert torch.equal(names["scores"], dataset.table().tensors["preview/scene-check/0.2"])
    said = [candidate.scores[0].score for candidate in names["result"].candidates]
    assert names["result"].kept[0].scores[0].score == max(said) > min(said)
    assert scores_of(load_scorer("spread", dataset), dataset, 0.2).std() > 0
    anew = load_scorer("preview:scene-clip", dataset)  # has judged nothing yet: it sees the pictures
    assert scores_of(anew, dataset, 0.2).std() > 0 and anew.name == "preview:scene-clip"
