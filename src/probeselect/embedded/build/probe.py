"""Stage 7 and 8: collect groups from the finished backbone, train the shipped probe, measure it on test prompts.

Test prompts are used once, after everything is chosen on val prompts.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from probeselect.backbones.loading import Backbone, load_backbone
from probeselect.backbones.taps import X0, Tap
from probeselect.core.metrics import (
    bootstrap_interval,
    expected_best_of,
    gain_share,
    pooled_spearman,
    within_prompt_spearman,
)
from probeselect.data.dataset import Dataset, pin
from probeselect.data.prompts import Prompt, PromptList
from probeselect.data.table import Table, in_memory, open_table, whole_groups
from probeselect.embedded.build.state import quick_arithmetic
from probeselect.embedded.captions import draw_prompts
from probeselect.evaluators.scene import SceneCheck
from probeselect.jobs.collect import collect
from probeselect.jobs.score import score_shard
from probeselect.probe.initial import new_probe
from probeselect.probe.network import Head, Probe
from probeselect.probe.predicting import formula_of, predict_table
from probeselect.probe.training import Training, TrainingSettings
from probeselect.sampling.collecting import CollectSettings, ShardMaker, configuration
from probeselect.sampling.hooks import Forward, around_forward

GUIDANCE, STEPS, RUNGS = 3.0, 20, (0.1, 0.2, 0.4)
ARGUMENTS: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
EVALUATOR = "scene-check"
TAPS = ("up_blocks.0.attentions.1", "up_blocks.1.attentions.1", "up_blocks.2.resnets.1", "x0")


def taps_of(backbone: Backbone, names: tuple[str, ...] = TAPS) -> tuple[Tap, ...]:
    return tuple(X0 if name == X0.name else Tap.parse(name, backbone.family) for name in names)


def collect_split(work: Path, weights: Path, split: str, count: int) -> None:
    """Groups of `count` prompts of a split. The test groups are made in fp32, with judged previews."""
    backbone = load_backbone(str(weights / "backbone"), dtype="fp32", device="cpu")
    exact = split == "test"
    settings = CollectSettings(run=split, rungs=RUNGS, map_channels=64, previews=exact)
    prompts = [Prompt(str(i), text) for i, text in enumerate(draw_prompts(count, seed=7, split=split))]
    taps = taps_of(backbone)
    about = configuration(backbone, taps, settings, ARGUMENTS)
    digest = PromptList(tuple(prompts), ()).digest
    dataset = pin(work / f"groups-{split}", about | {"prompts": {"count": count, "sha256": digest}})
    evaluator = SceneCheck(weights / EVALUATOR)
    with nullcontext() if exact else quick_denoiser(backbone):
        for done in collect(dataset, prompts, ShardMaker(backbone, taps, settings, ARGUMENTS)):
            score_shard(dataset, evaluator, done.shard)
            print(json.dumps({"split": split, "shards": done.shard + 1, "of": dataset.shard_count}), flush=True)


@contextmanager
def quick_denoiser(backbone: Backbone) -> Iterator[None]:
    """The denoiser runs in bf16 where that is quick; what it hands on is fp32 again."""

    def wrap(usual: Forward, _eager: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with quick_arithmetic():
                output = usual(*args, **kwargs)
            return pytree.tree_map_only(Tensor, Tensor.float, output)

        return forward

    with around_forward(backbone.denoiser, wrap):
        yield


def load_groups(work: Path, split: str) -> tuple[Table, dict[str, Tensor]]:
    """The whole groups of a split, in memory, and the bases that their maps were projected by."""
    dataset = Dataset(work / f"groups-{split}")
    bases = {tap: torch.from_numpy(dataset.projection(tap)) for tap in TAPS}
    return in_memory(whole_groups(open_table(dataset, [EVALUATOR]), EVALUATOR)), bases


def train_probe(
    table: Table,
    val: Table,
    bases: dict[str, Tensor],
    backbone: Backbone,
    evaluator: SceneCheck,
    kind: Literal["features", "scalar"],
    settings: TrainingSettings | None = None,
    rungs: tuple[float, ...] = RUNGS,
    width: int = 48,
) -> tuple[Probe, list[dict[str, Any]]]:
    """A probe of one kind that reads the taps of `bases`, and what it reached on val after every epoch."""
    settings = settings or TrainingSettings()
    features = table.tensors[f"features/{EVALUATOR}"]
    head = Head(EVALUATOR, kind, tuple(features.shape[2:]) if kind == "features" else ())
    torch.manual_seed(settings.seed)
    probe = new_probe(table, [head], {"name": "embedded", **backbone.describe()}, rungs, bases, width)
    history = []
    for epoch in Training(probe, table, val, {EVALUATOR: evaluator}, settings).epochs():
        line: dict[str, Any] = {"kind": kind, "epoch": epoch.epoch, "loss": round(epoch.loss, 4)}
        for (_, rung), found in epoch.figures.items():
            line |= {f"spearman@{rung:g}": round(found.spearman, 4), f"gain@{rung:g}": round(found.gain, 4)}
        print(json.dumps(line), flush=True)
        history.append(line)
    return probe, history


def figures(scores: Tensor, rewards: Tensor) -> dict[str, Any]:
    """Within-prompt and pooled Spearman, share of the best-of-N gain, mean reward of the chosen; 95 % intervals."""
    s, r = scores.double().numpy(), rewards.double().numpy()
    within = within_prompt_spearman(s, r)
    chosen = np.take_along_axis(r, s.argmax(1)[:, None], 1)[:, 0]
    return {
        "spearman": within.mean,
        "spearman_interval": bootstrap_interval(np.mean, within.per_prompt),
        "pooled_spearman": pooled_spearman(s, r),
        "gain_share": gain_share(s, r),
        "gain_share_interval": bootstrap_interval(gain_share, s, r),
        "mean_of_chosen": float(chosen.mean()),
        "pass_rate_of_chosen": float((chosen > PASS).mean()),
    }


PASS = 0.8  # scene-check above this: no fact is clearly missed


def two_drawn_share(rewards: Any) -> float:
    """Share of the best-of-N gain that the better of two finished pictures takes, drawn at random; rewards [P, N]."""
    mean, best = rewards.mean(), rewards.max(1).mean()
    return float((expected_best_of(2, rewards) - mean) / (best - mean))


def lead(scores: Tensor, other: Tensor | None, rewards: Tensor) -> tuple[float, tuple[float, float]]:
    """By how much `scores` takes more of the best-of-N gain than `other` (None: two finished pictures); paired."""

    def difference(s: Any, r: Any, *o: Any) -> float:
        return gain_share(s, r) - (gain_share(o[0], r) if o else two_drawn_share(r))

    tables = [t.double().numpy() for t in (scores, rewards, other) if t is not None]
    return difference(*tables), bootstrap_interval(difference, *tables)


def two_random(rewards: Tensor) -> dict[str, Any]:
    """Best of two finished pictures drawn at random of the N: exact expectation, two draws' share of the gain."""
    r = rewards.double().numpy()
    n = r.shape[1]
    pairs = np.stack([r[:, [i, j]].max(1) for i, j in itertools.combinations(range(n), 2)], 1)
    return {
        "gain_share": two_drawn_share(r),
        "gain_share_interval": bootstrap_interval(two_drawn_share, r),
        "mean_of_chosen": expected_best_of(2, r),
        "pass_rate_of_chosen": float((pairs > PASS).mean()),
    }


def compare(table: Table, scorers: dict[str, Tensor]) -> dict[str, Any]:
    """Figures of every scorer on one table, with the ends of the scale."""
    rewards = table.tensors[f"reward/{EVALUATOR}"]
    out: dict[str, Any] = {name: figures(scores, rewards) for name, scores in scorers.items()}
    out["best of two finished"] = two_random(rewards)
    out["all"] = {
        "groups": len(table.prompts),
        "mean": float(rewards.mean()),
        "best": float(rewards.max(1).values.mean()),
        "pass_rate": float((rewards > PASS).float().mean()),
        "pass_rate_of_best": float((rewards.max(1).values > PASS).float().mean()),
    }
    return out


def predictions(probe: Probe, table: Table, evaluator: SceneCheck, rung: float) -> Tensor:
    formula = formula_of(probe.config.heads[0], {EVALUATOR: evaluator})
    return predict_table(probe, table, rung, EVALUATOR, formula)
