"""The tables of the field on anybody's data: every evaluator at every rung; what choosing by one does to the others.

Score tables of several evaluators are of the same prompts and candidates.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from probeselect.core.metrics import (
    Floats,
    Mask,
    bootstrap_interval,
    choices,
    pooled_spearman,
    within_prompt_spearman,
)
from probeselect.core.rungs import rung_of
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.evaluation.rows import CalibrationRow, EvaluatorRow, KeptRow, StripRow
from probeselect.policies.simulate import CUT

BLIND = ("random", "text only")  # baselines: that they cannot choose is what they are for
STRIPS = 40  # prompts that are drawn one by one
BINS = 10  # of scores, for calibration


def by_evaluator(tables: Sequence[ScoreTable]) -> Iterator[EvaluatorRow]:
    """The paper's Table 1 with what it leaves out: Spearman pooled, within prompts, and pooled for a constant."""
    for table in tables:
        constant = pooled_of_a_constant(table)
        for scorer in table.scorers:
            for step, scores in sorted(scorer.scores.items()):
                within = within_prompt_spearman(scores, table.rewards, table.valid)
                yield EvaluatorRow(
                    evaluator=table.evaluator, scorer=scorer.name, rung=rung_of(step, table.total_steps),
                    spearman=within.mean, spearman_interval=bootstrap_interval(np.mean, within.per_prompt),
                    pooled_spearman=pooled_spearman(scores, table.rewards, table.valid), constant=constant,
                )  # fmt: skip


def pooled_of_a_constant(table: ScoreTable) -> float:
    """The pooled Spearman of every prompt's own mean: what cannot choose between seeds scores this much."""
    sums = np.where(table.valid, table.rewards, 0).sum(1, keepdims=True)
    constant = sums / np.maximum(table.valid.sum(1, keepdims=True), 1)
    return pooled_spearman(np.broadcast_to(constant, table.rewards.shape), table.rewards, table.valid)


def kept_by(tables: Sequence[ScoreTable]) -> Iterator[KeptRow]:
    """The paper's Table 2: all candidates of a prompt, one is kept by each way of choosing; what every evaluator says.

    Ways are the scorers of the first evaluator after the step nearest to 20 %, and each evaluator on the finished
    pictures. A way that games one evaluator gains by it and not by the others. `difference` is kept - all, `share` of
    what choosing by that evaluator itself would gain.
    """
    first = tables[0]
    valid: Mask = np.logical_and.reduce([table.valid for table in tables])
    ways: list[tuple[str, Floats]] = []
    for scorer in first.scorers:
        step = scorer.step_near(CUT, first.total_steps)
        ways.append((f"{scorer.name} at {rung_of(step, first.total_steps):.0%}", scorer.scores[step]))
    ways += [(f"best of all by {table.evaluator}", table.rewards) for table in tables]
    for way, scores in ways:
        for table in tables:
            made = choices(scores, table.rewards, valid)
            possible = choices(table.rewards, table.rewards, valid)
            difference, most = made.chosen - made.average, possible.chosen - possible.average
            yield KeptRow(
                kept_by=way, evaluator=table.evaluator,
                all=float(made.average.mean()), kept=float(made.chosen.mean()),
                difference=float(difference.mean()), difference_interval=bootstrap_interval(np.mean, difference),
                share=float(difference.mean() / most.mean()) if most.any() else math.nan,
            )  # fmt: skip


def calibration(table: ScoreTable, scorer: ScorerScores, bins: int = BINS) -> CalibrationRow:
    """Whether a score can be taken at its word: what candidates that got about the same score near 20 % earned.

    Candidates of all prompts are pooled in at most `bins` bins. Those of one score stay in one bin, so a scorer with
    few values has fewer bins.
    """
    step = scorer.step_near(CUT, table.total_steps)
    s, r = scorer.scores[step][table.valid], table.rewards[table.valid]
    edges = np.unique(np.quantile(s, np.linspace(0, 1, bins + 1)))
    place = np.clip(np.searchsorted(edges, s, side="right") - 1, 0, max(len(edges) - 2, 0))
    members = [place == b for b in np.unique(place)]
    low, high = ([float(np.quantile(r[m], q)) for m in members] for q in (0.1, 0.9))
    score, reward = ([float(values[m].mean()) for m in members] for values in (s, r))
    return CalibrationRow(scorer.name, rung_of(step, table.total_steps), score, reward, low, high)


def shown(scorers: Sequence[str]) -> str:
    """The scorer that pictures are drawn of: the first probe, or else the first."""
    others = (*BLIND, "attention")
    return next((name for name in scorers if not name.startswith("preview:") and name not in others), scorers[0])


def chosen_places(scores: Floats, valid: Mask) -> list[int]:
    """The place of every prompt's best-scored valid candidate, the first of equals; -1 where there is none."""
    first = np.where(valid, scores, -np.inf).argmax(1)
    return np.where(valid.any(1), first, -1).tolist()


def strips(table: ScoreTable, count: int = STRIPS) -> list[StripRow]:
    """Some prompts, evenly over the range of their mean reward: their rewards and what each scorer chooses at 20 %."""
    usable = np.flatnonzero(table.valid.sum(1) > 1)
    means = [table.rewards[p][table.valid[p]].mean() for p in usable]
    spread = usable[np.argsort(means, kind="stable")]
    rows = spread[np.linspace(0, len(spread) - 1, min(count, len(spread))).round().astype(int)]
    chosen = {}
    for scorer in table.scorers:
        scores = scorer.scores[scorer.step_near(CUT, table.total_steps)]
        chosen[scorer.name] = chosen_places(scores, table.valid)
    return [
        StripRow(
            table.prompts[p] if table.prompts else f"prompt {p + 1}",
            table.rewards[p][table.valid[p]].tolist(),
            {name: float(table.rewards[p, places[p]]) for name, places in chosen.items()},
        )
        for p in rows.tolist()
    ]
