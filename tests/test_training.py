"""Train and score on a tiny pipeline: one path from collected pictures to a probe that ranks."""

import pytest
import torch
from collected import ARGUMENTS, Redness, collected, maker_of
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.core.errors import UsageError
from probeselect.core.metrics import within_prompt_spearman
from probeselect.data.dataset import Table
from probeselect.data.shards import seeds_of
from probeselect.probe.network import Head, project, reduced
from probeselect.probe.training import TrainingSettings, load_table, new_probe, predict_table, train
from probeselect.sampling.scorers import ProbeScorer
from probeselect.sampling.select import SelectiveSampler


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


def test_a_folder_without_a_dataset_is_named(tmp_path):
    with pytest.raises(UsageError, match=tmp_path.name):
        load_table(tmp_path, "redness")


def test_the_collected_map_is_what_selection_sees(backbone, tmp_path):
    """The two paths cannot skew: the same seed's activation, projected and reduced, in a shard and at a rung."""
    dataset = collected(maker_of(backbone, map_side=4), ["a cat"], tmp_path)
    stored = torch.from_numpy(dataset.table().tensors["map/up_blocks.2.resnets.1/0.4"][0]).float()
    live = SelectiveSampler(backbone, "random").features("a cat", seeds_of("", "a cat", 3), 0.4, **ARGUMENTS)
    assert live.shape[-1] == 8 and stored.shape[-1] == 4
    assert torch.allclose(stored, reduced(live, 4), atol=2e-3, rtol=2e-3)  # stored as fp16


@pytest.mark.parametrize("size", [(24, 24), (24, 40)])
def test_a_probe_reads_reduced_maps_like_whole_ones(size):
    """What collection reduces, the probe would have reduced by itself: no skew between training and use."""
    about = {"name": "x", "denoiser": "D", "architecture": "a", "latent_channels": 4}
    torch.manual_seed(0)
    whole = torch.randn(6, 12, *size)
    probe = new_probe(planted_table(8, 0, channels=4), Head("redness", "scalar"), about, [0.2], [("tap", 12)])
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
               "seeds": torch.arange(groups * 4).view(groups, 4)}  # fmt: skip
    return Table([str(i) for i in range(groups)], tensors)


@pytest.mark.parametrize("kind", ["scalar", "features"])
def test_a_planted_signal_is_learnt(kind):
    table, val = planted_table(96, seed=0), planted_table(32, seed=1)
    about = {"name": "x", "denoiser": "D", "architecture": "a", "latent_channels": 4}
    torch.manual_seed(0)
    head = Head("redness", kind, (2,) if kind == "features" else ())
    probe = new_probe(table, head, about, [0.2], [("tap", 6)])
    settings = TrainingSettings(epochs=8, groups_per_batch=16, contrast_weight=0.1, ema_decay=0.9)
    epochs = list(train(probe, table, val, Redness(), settings))
    assert len(epochs) == 8 and epochs[-1].spearman[0.2] > 0.8
    scores = predict_table(probe, val, 0.2, Redness())
    assert within_prompt_spearman(scores, val.tensors["reward/redness"]).mean == pytest.approx(epochs[-1].spearman[0.2])


def test_groups_with_a_bad_reward_are_left_out(backbone, tmp_path):
    class BlindToTwo(Redness):
        def score(self, features, prompts):
            rewards = super().score(features, prompts)
            rewards[1] = torch.nan
            return rewards if "b" in prompts else super().score(features, prompts)

    collected(maker_of(backbone), ["a", "b", "c"], tmp_path, [BlindToTwo()])
    assert load_table(tmp_path, "redness").prompts == ["b", "c"]


def test_a_trained_probe_scores_a_rollout(backbone, tmp_path):
    collected(maker_of(backbone), ["a", "b"], tmp_path, [Redness()])
    table = load_table(tmp_path, "redness")
    about = {"name": "tiny", **backbone.describe()}
    taps = [(backbone.taps[0].name, 8), ("x0", 4)]
    probe = new_probe(table, Head("redness", "scalar"), about, [0.2, 0.4], taps)
    list(train(probe, table, table, Redness(), TrainingSettings(epochs=1, groups_per_batch=2)))
    sampler = SelectiveSampler(backbone, ProbeScorer(probe, backbone, "mine"))
    result = sampler("a", n=3, k=1, rungs=[0.4], **ARGUMENTS)
    assert len(result.images) == 1 and len({c.scores[0].score for c in result.candidates}) == 3
    with pytest.raises(UsageError, match="trained for"):
        sampler("a", n=3, k=1, rungs=[0.6], **ARGUMENTS)
