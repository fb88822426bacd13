"""Train and score on a tiny pipeline: one path from collected pictures to a probe that ranks."""

from dataclasses import replace

import pytest
import torch
from collected import ARGUMENTS, Redness, collected, maker_of, table_of
from msgspec import structs
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.core.description import Description
from probeselect.core.errors import UsageError
from probeselect.core.metrics import within_prompt_spearman
from probeselect.data.dataset import Dataset, scores_of
from probeselect.data.shards import seeds_of
from probeselect.data.table import Table, in_memory, whole_groups
from probeselect.probe.blind import shuffled_activations, without_activations
from probeselect.probe.config import Fusion, Head
from probeselect.probe.files import load_probe, save_probe
from probeselect.probe.initial import new_probe
from probeselect.probe.maps import orthonormal, project, reduced
from probeselect.probe.objective import within_prompt_spread
from probeselect.probe.options import RANKINGS, TrainOptions
from probeselect.probe.scorer import ProbeScorer
from probeselect.probe.training import Training, warmup_and_cosine
from probeselect.scorers.table import PreviewScorer
from probeselect.select.sampler import SelectiveSampler

ABOUT = Description(denoiser="D", architecture="a", latent_channels=4)
SCALAR, FEATURES = [Head("redness", "scalar")], [Head("redness", "features", (2,))]
IDENTITY = {"tap": torch.eye(6)}
WIDTH = 16  # of most probes here: enough for what is planted


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


def test_a_folder_without_a_dataset_is_named(tmp_path):
    with pytest.raises(UsageError, match=tmp_path.name):
        Dataset(tmp_path)


def test_the_collected_map_is_what_selection_sees(backbone, tmp_path):
    """The two paths cannot skew: the same seed's activation, projected and reduced, in a shard and at a rung."""
    dataset = collected(maker_of(backbone, map_side=4), ["a cat"], tmp_path)
    stored = table_of(dataset).tensors["map/up_blocks.2.resnets.1/0.4"][0].float()
    live = SelectiveSampler(backbone, "random").features("a cat", seeds_of("", "a cat", 3), 0.4, **ARGUMENTS)
    assert live.shape[-1] == 8 and stored.shape[-1] == 4
    assert torch.allclose(stored, reduced(live, 4), atol=2e-3, rtol=2e-3)  # stored as fp16


@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
def test_a_probe_reads_reduced_maps_like_whole_ones(size):
    """What collection reduces, the probe would have reduced by itself: no skew between training and use."""
    torch.manual_seed(0)
    whole = torch.randn(6, 12, *size)
    probe = new_probe(planted_table(8, 0, channels=4), SCALAR, "x", ABOUT, [0.2], {"tap": orthonormal(4, 12, seed=3)})
    torch.nn.init.normal_(probe.heads["redness"][-1].weight)
    for i in range(4):
        probe.mean_0[i], probe.std_0[i] = i, 1 + i
    stored = {"tap": reduced(project(probe.projection_0, whole), 8)}
    rungs, prompts = torch.full((6,), 0.2), torch.randn(6, 5)
    trained_on = probe.predict(*probe.encode(stored, rungs, prompts), "redness")
    used_on = probe.predict(*probe.encode(probe.project({"tap": whole}), rungs, prompts), "redness")
    assert torch.allclose(trained_on, used_on, atol=1e-4) and used_on.std() > 0.01


def planted_table(groups: int, seed: int, channels: int = 6) -> Table:
    """Maps whose first channel's mean is the reward, and a prompt embedding that says nothing."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(groups, 4, channels, 8, 8, generator=generator)
    rewards = torch.randn(groups, 4, generator=generator)
    maps[:, :, 0] += rewards[..., None, None]
    features = torch.stack([rewards, torch.zeros_like(rewards)], -1)
    tensors = {"map/tap/0.2": maps.half(), "reward/redness": rewards, "features/redness": features.half(),
               "prompt": torch.randn(groups, 5, generator=generator).half(),
               "valid": torch.ones(groups, 4, dtype=torch.bool),
               "seeds": torch.arange(groups * 4).view(groups, 4)}  # fmt: skip
    return Table([str(i) for i in range(groups)], tensors)


def trained(heads, table, val, options, rank=0, world=1) -> Training:
    torch.manual_seed(0)
    return Training(
        new_probe(table, heads, "x", ABOUT, [0.2], IDENTITY, WIDTH),
        table,
        val,
        {"redness": Redness()},
        options,
        rank,
        world,
    )


QUICK = TrainOptions(epochs=8, groups_per_batch=16, contrast_weight=0.1, ema_decay=0.9)


@pytest.mark.parametrize("heads", [SCALAR, FEATURES], ids=["scalar", "features"])
def test_a_planted_signal_is_learnt_and_blind_tables_say_nothing(heads):
    table, val = planted_table(96, seed=0), planted_table(32, seed=1)
    training = trained(heads, table, val, QUICK)
    epochs = list(training.epochs())
    best = max(epochs, key=lambda epoch: epoch.spearman)
    assert len(epochs) == 8 and epochs[-1].spearman > 0.8 and best.best
    scorer = ProbeScorer(training.probe)

    def spearman(table):
        scores = scores_of(scorer, table, 0.2)
        return within_prompt_spearman(scores, val.tensors["reward/redness"]).mean

    assert spearman(val) == pytest.approx(best.spearman)  # the probe ends with its best weights
    assert spearman(without_activations(val)) == pytest.approx(0, abs=0.2)  # knows the place in the group only
    assert spearman(shuffled_activations(val)) == pytest.approx(-1 / 3, abs=0.2)  # told about somebody else


@pytest.mark.parametrize("bf16", [False, True])
def test_taps_of_different_sizes_and_channels_are_read_together(bf16):
    """The signal is the sum of two taps: one coarse, one fine; either alone would tell half of it."""
    tables = []
    for seed, groups in ((0, 48), (1, 32)):
        table = planted_table(groups, seed)
        draw = torch.Generator().manual_seed(seed + 10)
        more = torch.randn(groups, 4, generator=draw)
        coarse = torch.randn(groups, 4, 2, 4, 4, generator=draw)
        coarse[:, :, 0] += more[..., None, None]
        tables.append(Table(table.prompts, table.tensors | {
            "map/coarse/0.2": coarse.half(), "reward/redness": table.tensors["reward/redness"] + more,
        }))  # fmt: skip
    projections = {"tap": torch.eye(6), "coarse": torch.eye(2)}
    torch.manual_seed(0)
    probe = new_probe(tables[0], SCALAR, "x", ABOUT, [0.2], projections, WIDTH)
    *_, last = Training(probe, *tables, {}, replace(QUICK, epochs=4, rate=5e-3, bf16=bf16)).epochs()
    assert probe.config.grid == 8 and last.spearman > 0.8


@pytest.mark.parametrize("ranking", RANKINGS)
def test_every_ranking_loss_learns_the_signal(ranking):
    alone = {"ranking_weight": 1.0, "contrast_weight": 0.0, "distillation_weight": 0.0, "ranking": ranking}
    options = TrainOptions(epochs=6, groups_per_batch=16, ema_decay=0.9, rate=5e-3, **alone)
    *_, last = trained(SCALAR, planted_table(96, 0), planted_table(32, 1), options).epochs()
    assert last.spearman > 0.7


def test_a_run_that_goes_on_from_any_epoch_ends_with_the_same_bytes():
    table, val = planted_table(40, seed=0), planted_table(16, seed=1)
    options = TrainOptions(epochs=4, groups_per_batch=16, bf16=False)
    straight = trained(FEATURES, table, val, options)
    states = [{k: v.clone() for k, v in straight.state().items()} for _ in straight.epochs()]
    expected = straight.probe.state_dict()
    for state in states:
        again = trained(FEATURES, table, val, options)
        again.restore({name: value.clone() for name, value in state.items()})
        list(again.epochs())
        assert all(torch.equal(value, expected[name]) for name, value in again.probe.state_dict().items())


def test_invalid_candidates_are_not_learnt_from():
    """Their rewards and activations may be anything, also NaN."""
    clean, val = planted_table(40, seed=0), planted_table(16, seed=1)
    clean.tensors["valid"][:, 3] = False
    poisoned = Table(clean.prompts, {name: value.clone() for name, value in clean.tensors.items()})
    poisoned.tensors["map/tap/0.2"][:, 3] = torch.nan
    poisoned.tensors["reward/redness"][:, 3] = torch.inf
    poisoned.tensors["features/redness"][:, 3] = torch.nan
    options = TrainOptions(epochs=1, groups_per_batch=16)
    runs = [trained(FEATURES, table, val, options) for table in (clean, poisoned)]
    losses = [next(iter(run.epochs())).loss for run in runs]
    assert losses[0] == losses[1] and torch.tensor(losses[0]).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(*(run.average.values() for run in runs), strict=True))


def test_patience_stops_a_run_that_does_not_get_better():
    nothing = planted_table(16, seed=1)
    nothing.tensors["reward/redness"][:] = torch.arange(4.0)  # nothing in the maps says so
    options = TrainOptions(epochs=30, groups_per_batch=16, patience=2, rate=1e-5)
    epochs = list(trained(SCALAR, planted_table(16, seed=0), nothing, options).epochs())
    best = max(epoch.epoch for epoch in epochs if epoch.best)
    assert len(epochs) == best + 1 + 2 < 30


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [warmup_and_cosine(step, 100, 0.1) for step in range(100)]
    assert max(rates) == rates[10] == 1 and rates[0] < 0.1 and rates[-1] < 0.001
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_the_spread_within_prompts_leaves_out_what_is_not_valid():
    rewards = torch.tensor([[1.0, 3.0, torch.nan], [10.0, 14.0, 12.0], [5.0, torch.nan, torch.nan]])
    spread = within_prompt_spread(rewards, rewards.isfinite())
    assert spread == pytest.approx(((1 + 1 + 4 + 4) / 3) ** 0.5)
    assert within_prompt_spread(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)) == 1


def test_groups_with_a_bad_reward_are_told(backbone, tmp_path):
    class BlindToTwo(Redness):
        def score(self, features, prompts):
            rewards = super().score(features, prompts)
            rewards[1] = torch.nan
            return rewards if "b" in prompts else super().score(features, prompts)

    dataset = collected(maker_of(backbone), ["a", "b", "c"], tmp_path, [BlindToTwo()])
    table = dataset.table(["redness"])
    assert table.valid("redness").tolist() == [[True, False, True], [True] * 3, [True] * 3]
    assert whole_groups(table, "redness").prompts == ["b", "c"]


def test_what_stays_on_the_disk_reads_like_what_is_in_memory(backbone, tmp_path):
    dataset = collected(maker_of(backbone), ["a", "b", "c", "d", "e"], tmp_path, [Redness()])
    lazy = dataset.table(["redness"])
    read = in_memory(lazy)
    rows = torch.tensor([4, 0, 3])
    assert lazy.take(rows).prompts == ["e", "a", "d"]
    for name, values in read.tensors.items():
        assert torch.equal(lazy.tensors[name][rows], values[rows])
        assert torch.equal(lazy.take(rows).tensors[name][torch.tensor([1, 2])], values[rows][1:])
        assert tuple(lazy.tensors[name].shape) == tuple(values.shape)


def test_standardisation_is_that_of_the_valid_candidates():
    table = planted_table(20, seed=0)
    table.tensors["valid"][3, 1] = False
    table.tensors["map/tap/0.2"][3, 1] = torch.nan
    probe = new_probe(table, FEATURES, "x", ABOUT, [0.2], IDENTITY)
    values = table.tensors["map/tap/0.2"][table.tensors["valid"]].double()
    assert torch.allclose(probe.mean_0, values.mean((0, 2, 3)).float(), atol=1e-5)
    assert torch.allclose(probe.std_0, values.std((0, 2, 3), correction=0).float(), atol=1e-5)
    features = table.tensors["features/redness"][table.tensors["valid"]].double()
    assert torch.allclose(probe.feature_std_0, features.std(0, correction=0).clamp_min(1e-4).float(), atol=1e-5)


def test_no_more_is_mapped_than_allowed_and_all_is_read(backbone, tmp_path, monkeypatch):
    dataset = collected(maker_of(backbone), ["a", "b", "c", "d", "e"], tmp_path, [Redness()])
    expected = in_memory(dataset.table(["redness"])).tensors
    size = (dataset.shard(0) / "tensors.safetensors").stat().st_size
    monkeypatch.setattr("probeselect.data.dataset.OPEN_BYTES", int(1.5 * size))
    small = Dataset(tmp_path)
    read = in_memory(small.table(["redness"])).tensors
    assert all(torch.equal(read[name], values) for name, values in expected.items())
    assert 0 < small.mapped_bytes <= 1.5 * size


def test_a_trained_probe_scores_a_rollout_as_it_scores_the_shards(backbone, tmp_path):
    """Projected by the basis that is stored with the data, whatever the order of the taps."""
    dataset = collected(maker_of(backbone, map_channels=5), ["a", "b"], tmp_path, [Redness()])
    table = dataset.table(["redness"])
    bases = {tap: torch.from_numpy(dataset.projection(tap)) for tap in ("x0", backbone.taps[0].name)}
    probe = new_probe(table, SCALAR, "tiny", backbone.describe(), [0.2, 0.4], bases)
    list(Training(probe, table, table, {}, TrainOptions(epochs=1, groups_per_batch=2)).epochs())
    torch.nn.init.normal_(probe.heads["redness"][-1].weight)
    sampler = SelectiveSampler(backbone, ProbeScorer(probe))
    result = sampler("a", k=1, seeds=seeds_of("", "a", 3), rungs=[0.4], **ARGUMENTS)
    live = torch.tensor([candidate.scores[0].score for candidate in result.candidates])
    stored = scores_of(ProbeScorer(probe), dataset, 0.4)[0]
    assert live.std() > 0.01 and torch.allclose(live, stored, atol=0.02 * float(live.std()))
    with pytest.raises(UsageError, match=r"from 0\.2 to 0\.4, not for 0\.6"):
        sampler("a", n=3, k=1, rungs=[0.6], **ARGUMENTS)


def test_a_fusion_is_the_probe_and_the_preview_by_their_weights(backbone, tmp_path, monkeypatch):
    """From a stored probe, by name: live scores are the weighted sum of what the two scorers say alone."""
    dataset = collected(maker_of(backbone), ["a", "b"], tmp_path / "data", [Redness()])
    table = dataset.table(["redness"])
    bases = {"x0": torch.from_numpy(dataset.projection("x0"))}
    probe = new_probe(table, SCALAR, "tiny", backbone.describe(), [0.2, 0.4], bases)
    torch.nn.init.normal_(probe.heads["redness"][-1].weight)
    save_probe(probe, tmp_path / "plain")
    probe.config = structs.replace(probe.config, fusions=(Fusion("redness", 0.4, 2.0, 3.0),))
    save_probe(probe, tmp_path / "fused")

    def said(scorer, rung=0.4):
        found = SelectiveSampler(backbone, scorer)("a", n=3, k=1, rungs=[rung], **ARGUMENTS)
        return torch.tensor([candidate.scores[0].score for candidate in found.candidates])

    monkeypatch.setattr("probeselect.scorers.context.load_evaluator", lambda *_, **__: Redness())
    monkeypatch.setattr("probeselect.scorers.context.parse_evaluator", lambda text: (text, None))
    with pytest.raises(UsageError, match="has: none, train it on data with previews"):
        said(f"fusion:{tmp_path / 'plain'}")
    parts = [said(ProbeScorer(load_probe(tmp_path / "fused"))), said(PreviewScorer(Redness()))]
    fused = said(f"fusion:{tmp_path / 'fused'}")
    assert min(part.std() for part in parts) > 0 and torch.allclose(fused, 2 * parts[0] + 3 * parts[1], atol=1e-4)
    with pytest.raises(UsageError, match=r"no weights for redness at 0\.2; it has: redness at 0\.4"):
        said(f"fusion:{tmp_path / 'fused'}", 0.2)
