"""Schedules replayed on a score table: what each earns and what it costs, against best-of-n at the same cost."""

import math
from collections.abc import Iterator

import numpy as np

from probeselect.core.metrics import Floats, best_of_by_prompt, bootstrap_interval
from probeselect.core.rungs import step_at
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.evaluation.rows import ComputeRow, Kind
from probeselect.evaluation.timing import Timing
from probeselect.policies.plans import FixedPlan
from probeselect.policies.simulate import CANDIDATES, CUT, PSP, best_of_rows, replay

SEVERAL = (PSP, (10, (0.1, 0.2, 0.3), (5, 2, 1)))  # candidates, rungs and who goes on
SWEEP = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50)


def compute_rows(table: ScoreTable, timing: Timing | None = None) -> Iterator[ComputeRow]:
    """Every schedule that the table allows: best of n, cuts at random, by each scorer, and by the rewards themselves.

    timing: for costs in seconds beside those in rows.
    """
    rewards, valid, total = table.rewards, table.valid, table.total_steps
    most, cut = int(valid.sum(1).max()), step_at(CUT, total)
    for n in (1, *(n for n in SWEEP if n <= most)):
        yield _row(table, timing, "best of n", "best of n", n, best_of_by_prompt(n, rewards, valid))
    single = [FixedPlan(n, 1, (cut,), (1,), total) for n in SWEEP if n <= most]
    means = best_of_by_prompt(1, rewards, valid)  # what a cut at random keeps, whatever n
    for plan in single:
        yield _row(table, timing, "cut at random", "cut at random", plan, means)
    for scorer in table.scorers:
        for plan in _plans(scorer, total, most):
            found = replay(plan, scorer.scores, rewards, valid)
            yield _row(table, timing, "cut" if len(plan.steps) == 1 else "cuts", scorer.name, plan, found)
    for plan in single:
        yield _row(table, timing, "oracle", "oracle", plan, replay(plan, {cut: rewards}, rewards, valid))


def _plans(scorer: ScorerScores, total: int, most: int) -> Iterator[FixedPlan]:
    """The single cut at every step that is there and for every n at 20 %; the schedules of several rungs."""
    there, cut = [step for step in sorted(scorer.scores) if step < total - 1], step_at(CUT, total)
    yield from (FixedPlan(n, 1, (cut,), (1,), total) for n in SWEEP if n <= most and cut in there)
    yield from (FixedPlan(CANDIDATES, 1, (s,), (1,), total) for s in there if most >= CANDIDATES and s != cut)
    for n, rungs, keep in SEVERAL:
        steps = tuple(step_at(rung, total) for rung in rungs)
        if n <= most and len({*steps} & {*there}) == len(steps):  # of few steps, two rungs may be one
            yield FixedPlan(n, 1, steps, keep, total)


def _row(
    table: ScoreTable, timing: Timing | None, kind: Kind, scorer: str, plan: FixedPlan | int, by_prompt: Floats
) -> ComputeRow:
    """plan: a number of pictures means that all are finished. by_prompt: its reward [P]; NaN for too few candidates."""
    if isinstance(plan, FixedPlan):
        words, rows, scored = plan.in_words(), plan.rows, 0 if kind == "cut at random" else plan.scored
        n, steps, rungs, keep = plan.n, plan.steps, plan.rungs, plan.keep
    else:
        words, rows, scored = f"best of {plan}", plan * table.total_steps, 0
        n, steps, rungs, keep = plan, (), (), ()
    there = by_prompt[~np.isnan(by_prompt)]
    lead = by_prompt - best_of_rows(rows, table.total_steps, table.rewards, table.valid)
    lead = lead[~np.isnan(lead)]
    return ComputeRow(
        scorer=scorer, schedule=words, kind=kind, n=n, steps=steps, rungs=rungs, keep=keep, rows=rows,
        prompts=len(there),
        reward=float(there.mean()) if len(there) else math.nan, reward_interval=bootstrap_interval(np.mean, there),
        lead=float(lead.mean()) if len(lead) else math.nan, lead_interval=bootstrap_interval(np.mean, lead),
        seconds=None if timing is None else timing.seconds(scorer, rows, scored),
    )  # fmt: skip
