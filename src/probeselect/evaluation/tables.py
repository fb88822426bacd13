"""The tables of the field on anybody's data: every evaluator at every rung; what choosing by one does to the others.

Rows are dictionaries of plain numbers. `Judged` of several evaluators are of the same prompts and candidates.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from probeselect.core.judged import Judged
from probeselect.core.metrics import (
    Floats,
    Mask,
    bootstrap_interval,
    choices,
    pooled_spearman,
    within_prompt_spearman,
)
from probeselect.policies.simulate import CUT

BLIND = ("random", "text only")  # baselines: that they cannot choose is what they are for
STRIPS = 40  # prompts that are drawn one by one


def by_evaluator(each: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """The paper's Table 1 with what it leaves out: Spearman pooled, within prompts, and pooled for a constant."""
    for judged in each:
        constant = pooled_of_a_constant(judged)
        for scorer in judged.scorers:
            for step, table in sorted(scorer.scores.items()):
                within = within_prompt_spearman(table, judged.rewards, judged.valid)
                yield {
                    "evaluator": judged.evaluator,
                    "scorer": scorer.name,
                    "rung": (step + 1) / judged.total_steps,
                    "spearman": within.mean,
                    "spearman_interval": bootstrap_interval(np.mean, within.per_prompt),
                    "pooled_spearman": pooled_spearman(table, judged.rewards, judged.valid),
                    "constant": constant,
                }


def pooled_of_a_constant(judged: Judged) -> float:
    """The pooled Spearman of every prompt's own mean: what cannot choose between seeds scores this much."""
    sums = np.where(judged.valid, judged.rewards, 0).sum(1, keepdims=True)
    constant = sums / np.maximum(judged.valid.sum(1, keepdims=True), 1)
    return pooled_spearman(np.broadcast_to(constant, judged.rewards.shape), judged.rewards, judged.valid)


def kept_by(each: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """The paper's Table 2: all candidates of a prompt, one is kept by each way of choosing; what every evaluator says.

    Ways are the scorers of the first evaluator after the step nearest to 20 %, and each evaluator on the finished
    pictures. A way that games one evaluator gains by it and not by the others. `difference` is kept - all, `share` of
    what choosing by that evaluator itself would gain.
    """
    first = each[0]
    valid: Mask = np.logical_and.reduce([judged.valid for judged in each])
    ways: list[tuple[str, Floats]] = []
    for scorer in first.scorers:
        step = scorer.step_near(CUT, first.total_steps)
        ways.append((f"{scorer.name} at {(step + 1) / first.total_steps:.0%}", scorer.scores[step]))
    ways += [(f"best of all by {judged.evaluator}", judged.rewards) for judged in each]
    for way, scores in ways:
        for judged in each:
            made = choices(scores, judged.rewards, valid)
            possible = choices(judged.rewards, judged.rewards, valid)
            difference, most = made.chosen - made.average, possible.chosen - possible.average
            yield {
                "kept_by": way,
                "evaluator": judged.evaluator,
                "all": float(made.average.mean()),
                "kept": float(made.chosen.mean()),
                "difference": float(difference.mean()),
                "difference_interval": bootstrap_interval(np.mean, difference),
                "share": float(difference.mean() / most.mean()) if most.any() else math.nan,
            }


def shown(scorers: Sequence[str]) -> str:
    """The scorer that pictures are drawn of: the first probe, or else the first."""
    others = (*BLIND, "attention")
    return next((name for name in scorers if not name.startswith("preview:") and name not in others), scorers[0])


def chosen_places(scores: Floats, valid: Mask) -> list[int]:
    """The place of every prompt's best-scored valid candidate, the first of equals; -1 where there is none."""
    first = np.where(valid, scores, -np.inf).argmax(1)
    return np.where(valid.any(1), first, -1).tolist()


def strips(judged: Judged, count: int = STRIPS) -> list[dict[str, Any]]:
    """Some prompts, evenly over the range of their mean reward: their rewards and what each scorer chooses at 20 %."""
    usable = np.flatnonzero(judged.valid.sum(1) > 1)
    means = [judged.rewards[p][judged.valid[p]].mean() for p in usable]
    spread = usable[np.argsort(means, kind="stable")]
    rows = spread[np.linspace(0, len(spread) - 1, min(count, len(spread))).round().astype(int)]
    chosen = {}
    for scorer in judged.scorers:
        table = scorer.scores[scorer.step_near(CUT, judged.total_steps)]
        chosen[scorer.name] = chosen_places(table, judged.valid)
    return [
        {
            "prompt": judged.prompts[p] if judged.prompts else f"prompt {p + 1}",
            "rewards": judged.rewards[p][judged.valid[p]].tolist(),
            "chosen": {name: float(judged.rewards[p, places[p]]) for name, places in chosen.items()},
        }
        for p in rows.tolist()
    ]
