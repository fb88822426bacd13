"""Collect, train and score on a tiny pipeline: one path from pictures to a probe that ranks."""

import pytest
import torch
from tiny import tiny_sd

from probeselect.backbones.loading import load_backbone
from probeselect.backbones.taps import X0
from probeselect.core.errors import UsageError
from probeselect.core.metrics import within_prompt_spearman
from probeselect.data.shards import Shard, read_all, shard_path
from probeselect.jobs.collect import Plan, collect
from probeselect.probe.network import Head
from probeselect.probe.training import TrainingSettings, load_table, new_probe, predict_table, train
from probeselect.sampling.scorers import ProbeScorer
from probeselect.sampling.select import SelectiveSampler

ARGUMENTS = {"num_inference_steps": 5, "height": 16, "width": 16, "guidance_scale": 3.0}


class Redness:
    """An evaluator of a known formula: the picture's mean red, minus its mean green."""

    name = "redness"

    def features(self, images):
        return torch.stack([torch.tensor(i.resize((4, 4)).getdata()).float().mean(0)[:2] / 255 for i in images])

    def score(self, features, prompts):
        return features[:, 0] - features[:, 1]

    def __call__(self, images, prompts):
        return self.score(self.features(images), prompts)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone(tiny_sd())


def plan_of(backbone, **changes) -> Plan:
    return Plan((*backbone.taps, X0), (0.2, 0.4), n=3, groups_per_shard=2, **changes)


def test_shards_hold_whole_groups_and_resume(backbone, tmp_path):
    prompts = ["a", "b", "c"]
    list(collect(backbone, prompts, [Redness()], plan_of(backbone, previews=True), tmp_path, **ARGUMENTS))
    table = read_all(tmp_path)
    assert table.prompts == prompts
    assert table.tensors["map/up_blocks.2.resnets.1/0.2"].shape == (3, 3, 8, 8, 8)
    assert table.tensors["map/x0/0.4"].shape == (3, 3, 4, 8, 8)
    assert table.tensors["features/redness"].shape == (3, 3, 2)
    assert {t.shape for n, t in table.tensors.items() if n.startswith(("reward", "preview"))} == {(3, 3)}
    assert len(table.tensors["seeds"].unique()) == 9  # other noise for other prompts
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    shard_path(tmp_path, 1).unlink()
    list(collect(backbone, prompts, [Redness()], plan_of(backbone, previews=True), tmp_path, **ARGUMENTS))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_without_shards_is_named(tmp_path):
    with pytest.raises(UsageError, match=tmp_path.name):
        read_all(tmp_path)


def test_the_collected_map_is_what_selection_sees(backbone, tmp_path):
    """The two paths cannot skew: the same seed's activation, projected, is the same in a shard and at a rung."""
    list(collect(backbone, ["a cat"], [Redness()], plan_of(backbone, seed=7), tmp_path, **ARGUMENTS))
    stored = read_all(tmp_path).tensors["map/up_blocks.2.resnets.1/0.4"][0].float()
    live = SelectiveSampler(backbone, "random").features("a cat", [7, 8, 9], 0.4, **ARGUMENTS)
    assert torch.allclose(stored, live, atol=2e-3, rtol=2e-3)  # stored as fp16


def planted_table(groups: int, seed: int) -> Shard:
    """Maps whose first channel's mean is the reward, and a prompt embedding that says nothing."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(groups, 4, 6, 8, 8, generator=generator)
    rewards = torch.randn(groups, 4, generator=generator)
    maps[:, :, 0] += rewards[..., None, None]
    features = torch.stack([rewards, torch.zeros_like(rewards)], -1)
    tensors = {"map/tap/0.2": maps.half(), "reward/redness": rewards, "features/redness": features.half(),
               "prompt": torch.randn(groups, 5, generator=generator).half(),
               "seeds": torch.arange(groups * 4).view(groups, 4)}  # fmt: skip
    return Shard([str(i) for i in range(groups)], tensors)


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


def test_groups_with_a_bad_reward_are_left_out(tmp_path):
    from probeselect.data.shards import write_shard

    table = planted_table(5, seed=0)
    table.tensors["reward/redness"][2, 1] = torch.nan
    write_shard(shard_path(tmp_path, 0), table)
    assert load_table(tmp_path, "redness").prompts == ["0", "1", "3", "4"]


def test_a_trained_probe_scores_a_rollout(backbone, tmp_path):
    list(collect(backbone, ["a", "b"], [Redness()], plan_of(backbone), tmp_path, **ARGUMENTS))
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
