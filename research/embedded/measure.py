"""How well scorers choose on a table of groups: the figures of the embedded probes' cards."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from probeselect.core import metrics
from probeselect.core.metrics import best_of_by_prompt, bootstrap_interval, gain_share
from probeselect.data.table import Table
from probeselect.embedded.captions import caption, parse
from probeselect.evaluators.table import load_evaluator

PASS = 0.8  # scene-check above this: no fact is clearly missed


def figures(scores: Tensor, rewards: Tensor) -> dict[str, Any]:
    """The figures of every report, and of the chosen the mean reward and the share that meet the whole caption."""
    s, r = scores.double().numpy(), rewards.double().numpy()
    chosen = np.take_along_axis(r, s.argmax(1)[:, None], 1)[:, 0]
    return metrics.figures(s, r) | {
        "prompts": len(r),
        "mean_of_chosen": float(chosen.mean()),
        "pass_rate_of_chosen": float((chosen > PASS).mean()),
    }


def evaluator_noise(
    table: Table, names: Sequence[str], pictures: Mapping[int, Image.Image]
) -> dict[str, dict[str, Any]]:
    """What an evaluator agrees to, within prompts: with itself told a paraphrase, with itself shown the picture with
    noise of a grey level or four, and with the others. The ceiling of whatever predicts it from something else.
    """
    shape = table.tensors["seeds"].shape
    prompts = [text for text in table.prompts for _ in range(shape[1])]
    again = [caption(parse(text), random.Random(text)) for text in prompts]
    pairs = {}
    for name in names:
        judge, rewards = load_evaluator(name), table.tensors[f"reward/{name}"]
        said = judge.score(table.tensors[f"features/{name}"].flatten(0, 1).float(), again).view(shape)
        pairs[f"{name}, the caption paraphrased"] = (said, rewards)
        for levels in (1, 4):
            draw = np.random.default_rng(0)
            noisy = [_with_noise(pictures[int(seed)], levels, draw) for seed in table.tensors["seeds"].flatten()]
            pairs[f"{name}, noise of {levels} in 255"] = (judge(noisy, prompts).view(shape), rewards)
    for one, other in itertools.combinations(names, 2):
        pairs[f"{other} for {one}"] = (table.tensors[f"reward/{other}"], table.tensors[f"reward/{one}"])
    return {name: figures(*pair) for name, pair in pairs.items()}


def _with_noise(picture: Image.Image, levels: float, draw: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    return Image.fromarray((pixels + draw.normal(0, levels, pixels.shape)).round().clip(0, 255).astype(np.uint8))


def two_drawn_share(rewards: Any) -> float:
    """Share of the best-of-N gain that the better of two finished pictures takes, drawn at random; rewards [P, N]."""
    mean, best = rewards.mean(), rewards.max(1).mean()
    return float((best_of_by_prompt(2, rewards).mean() - mean) / (best - mean))


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
        "regret": float(r.max(1).mean()) - float(best_of_by_prompt(2, r).mean()),
        "gain_share": two_drawn_share(r),
        "gain_share_interval": bootstrap_interval(two_drawn_share, r),
        "mean_of_chosen": float(best_of_by_prompt(2, r).mean()),
        "pass_rate_of_chosen": float((pairs > PASS).mean()),
    }


def compare(table: Table, evaluator: str, scorers: dict[str, Tensor]) -> dict[str, Any]:
    """Figures of every scorer on one table, with the ends of the scale."""
    rewards = table.tensors[f"reward/{evaluator}"]
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
