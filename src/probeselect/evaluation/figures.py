"""How well scorers choose, as figures: within prompts, at equal compute, and whether the data deserve to be believed.

Knows tables of scores and rewards; does not know where they come from, nor how they are drawn. Imports no torch model.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from probeselect.core.judged import Judged, Scorer
from probeselect.core.metrics import (
    Floats,
    best_of_by_prompt,
    bootstrap_interval,
    choices,
    figures,
    ndcg,
    pooled_spearman,
    top_k_hit,
    within_prompt_kendall,
    within_prompt_spearman,
)
from probeselect.core.plain import plain
from probeselect.core.rungs import completed_steps
from probeselect.evaluation.calibration import calibration
from probeselect.evaluation.tables import BLIND, by_evaluator, kept_by, pooled_of_a_constant, strips
from probeselect.evaluation.timing import Timing
from probeselect.policies.plans import FixedPlan
from probeselect.policies.simulate import CANDIDATES, CUT, PSP, best_of_rows, replay

SEVERAL = (PSP, (10, (0.1, 0.2, 0.3), (5, 2, 1)))  # candidates, rungs and who goes on
SWEEP = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50)
FAULT_ERRORS = 3.5  # standard errors at which a check speaks
NO_SKILL, POOLED_SKILL = 0.02, 0.3  # within prompts at most, pooled at least: what a scorer of prompts alone shows


def evaluate(
    judged: Judged,
    others: Sequence[Judged] = (),
    timing: Timing | None = None,
    leaks: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Every figure of the report, as JSON would hold it. Intervals are 95 %, by bootstrap over prompts.

    others: the same prompts and candidates by other evaluators. timing: for costs in seconds beside those in rows.
    leaks: what blind probes were found to know, see `probe.checks`.
    """
    every = [judged, *others]
    report = {
        "evaluator": judged.evaluator,
        "prompts": int((judged.valid.sum(1) > 1).sum()),
        "candidates": int(judged.valid.sum()),
        "total_steps": judged.total_steps,
        "rewards": _rewards(judged),
        "choosing": [_choosing(judged, scorer.name, step, table) for scorer, step, table in _each(judged)],
        "paired": list(_paired(judged)),
        "compute": list(_compute(judged, timing)),
        "timing": None if timing is None else asdict(timing),
        "calibration": [_calibration(judged, scorer) for scorer in judged.scorers],
        "strips": strips(judged),
        "evaluators": list(by_evaluator(every)) if others else [],
        "kept": list(kept_by(every)) if others else [],
        "leaks": list(leaks),
        "distances": [],
        "notes": [],
        "faults": [*faults(judged), *map(_leaking, (leak for leak in leaks if leak["leak"]))],
    }
    as_json: dict[str, Any] = plain(report)
    return as_json


def _each(judged: Judged) -> Iterator[tuple[Scorer, int, Floats]]:
    for scorer in judged.scorers:
        for step, table in scorer.scores.items():
            yield scorer, step, table


def _rewards(judged: Judged) -> dict[str, float]:
    """The ends of the scale, and what a constant for every prompt would score pooled: the worth of nothing at all."""
    found = choices(judged.rewards, judged.rewards, judged.valid)
    ends = {"mean": float(found.average.mean()), "best": float(found.best.mean())}
    return ends | {"pooled_of_a_constant": pooled_of_a_constant(judged)}


def _calibration(judged: Judged, scorer: Scorer) -> dict[str, Any]:
    step = scorer.step_near(CUT, judged.total_steps)
    bins = calibration(scorer.scores[step], judged.rewards, judged.valid)
    rung = (step + 1) / judged.total_steps
    return {"scorer": scorer.name, "rung": rung, **{name: values.tolist() for name, values in asdict(bins).items()}}


def _leaking(leak: Mapping[str, Any]) -> str:
    return f"{leak['probe']}: {leak['check']}, Spearman within prompts {leak['spearman']:.2f}: something leaks"


def _choosing(judged: Judged, name: str, step: int, table: Floats) -> dict[str, Any]:
    rewards, valid = judged.rewards, judged.valid
    within, kendall = (f(table, rewards, valid) for f in (within_prompt_spearman, within_prompt_kendall))
    return {
        "scorer": name,
        "step": step,
        "rung": (step + 1) / judged.total_steps,
        **figures(table, rewards, valid),
        "kendall": kendall.mean,
        "constant_prompts": within.constant_scores,
        "top1": top_k_hit(table, rewards, 1, valid),
        "top2": top_k_hit(table, rewards, 2, valid),
        "ndcg": ndcg(table, rewards, valid),
    }


def _paired(judged: Judged) -> Iterator[dict[str, Any]]:
    """Every two scorers after the same step: by how much the first is ahead, prompt by prompt."""
    for one, other in itertools.combinations(judged.scorers, 2):
        for step in sorted(set(one.scores) & set(other.scores)):
            a, b = (
                within_prompt_spearman(scorer.scores[step], judged.rewards, judged.valid).per_prompt
                for scorer in (one, other)
            )
            c, d = (choices(scorer.scores[step], judged.rewards, judged.valid).chosen for scorer in (one, other))
            yield {
                "scorer": one.name,
                "over": other.name,
                "rung": (step + 1) / judged.total_steps,
                "spearman": float((a - b).mean()) if len(a) else math.nan,
                "spearman_interval": bootstrap_interval(np.mean, a - b),
                "reward": float((c - d).mean()),
                "reward_interval": bootstrap_interval(np.mean, c - d),
            }


def _compute(judged: Judged, timing: Timing | None) -> Iterator[dict[str, Any]]:
    """Reward and cost of every schedule that the tables allow, against best-of-n at the same cost."""
    most = int(judged.valid.sum(1).max())
    for n in (1, *(n for n in SWEEP if n <= most)):
        by_prompt = best_of_by_prompt(n, judged.rewards, judged.valid)
        rows = n * judged.total_steps
        yield _earned(judged, "best of n", f"best of {n}", n, rows, by_prompt) | _seconds(timing, "", rows, 0)
    cut = completed_steps(CUT, judged.total_steps) - 1
    single = [FixedPlan(n, 1, (cut,), (1,), judged.total_steps) for n in SWEEP if n <= most]
    means = best_of_by_prompt(1, judged.rewards, judged.valid)  # what a cut at random keeps, whatever n
    for plan in single:
        rows = plan.rows
        yield _earned(judged, "cut at random", plan.in_words(), plan.n, rows, means) | _seconds(timing, "", rows, 0)
    for name, scores, plans in (
        *((scorer.name, scorer.scores, _plans(judged, scorer, most)) for scorer in judged.scorers),
        ("oracle", {cut: judged.rewards}, single),
    ):
        for plan in plans:
            found = replay(plan, scores, judged.rewards, judged.valid)
            rows = plan.rows
            seconds = _seconds(timing, name, rows, plan.scored)
            yield _earned(judged, name, plan.in_words(), plan.n, rows, found.by_prompt) | seconds


def _seconds(timing: Timing | None, scorer: str, rows: int, scored: int) -> dict[str, float | None]:
    return {} if timing is None else {"seconds": timing.seconds(scorer, rows, scored)}


def _plans(judged: Judged, scorer: Scorer, most: int) -> Iterator[FixedPlan]:
    """The single cut at every step that is there and for every n at 20 %; the schedules of several rungs."""
    total, there = judged.total_steps, [step for step in sorted(scorer.scores) if step < judged.total_steps - 1]
    cut = completed_steps(CUT, total) - 1
    yield from (FixedPlan(n, 1, (cut,), (1,), total) for n in SWEEP if n <= most and cut in there)
    yield from (FixedPlan(CANDIDATES, 1, (s,), (1,), total) for s in there if most >= CANDIDATES and s != cut)
    for n, rungs, keep in SEVERAL:
        steps = tuple(completed_steps(rung, total) - 1 for rung in rungs)
        if n <= most and len({*steps} & {*there}) == len(steps):  # of few steps, two rungs may be one
            yield FixedPlan(n, 1, steps, keep, total)


def _earned(judged: Judged, scorer: str, schedule: str, n: int, rows: int, by_prompt: Floats) -> dict[str, Any]:
    there = ~np.isnan(by_prompt)
    lead = by_prompt - best_of_rows(rows, judged.total_steps, judged.rewards, judged.valid)
    lead = lead[~np.isnan(lead)]
    return {
        "scorer": scorer,
        "schedule": schedule,
        "n": n,
        "rows": rows,
        "prompts": int(there.sum()),
        "reward": float(by_prompt[there].mean()) if there.any() else math.nan,
        "reward_interval": bootstrap_interval(np.mean, by_prompt[there]),
        "lead": float(lead.mean()) if len(lead) else math.nan,
        "lead_interval": bootstrap_interval(np.mean, lead),
    }


def faults(judged: Judged) -> Iterator[str]:
    """What is wrong with the data or the scorers, in a line each; nothing where nothing is found."""
    for scorer in judged.scorers:
        if scorer.name in BLIND:
            continue
        last = max(scorer.scores)
        table = scorer.scores[last]
        within = within_prompt_spearman(table, judged.rewards, judged.valid)
        if (shift := _shift(table, judged)) is not None:
            places = f"{abs(shift)} place{'s' if abs(shift) > 1 else ''} {'later' if shift > 0 else 'earlier'}"
            yield f"{scorer.name} after step {last}: pairing is off: scores fit the rewards of the candidate {places}"
        pooled = pooled_spearman(table, judged.rewards, judged.valid)
        if within.constant_scores == len(within.per_prompt) and len(within.per_prompt):
            yield f"{scorer.name} after step {last}: is constant within every prompt: it cannot choose a seed"
        elif abs(within.mean) < NO_SKILL and pooled > POOLED_SKILL:
            yield (
                f"{scorer.name} after step {last}: pooled Spearman {pooled:.2f}, within prompts {within.mean:.2f}: "
                "it tells prompts apart and not seeds"
            )


def _shift(table: Floats, judged: Judged) -> int | None:
    """By how many places the scores must be moved to fit the rewards clearly better than where they are."""
    n = table.shape[1]
    moves = [move for move in (*range(-3, 0), *range(1, 4)) if abs(move) < n]

    def fit(move: int) -> Floats:
        rolled = np.roll(table, move, 1), np.roll(judged.valid, move, 1)
        whole = judged.valid & rolled[1]
        scores = np.where(whole, rolled[0], np.nan)
        found = within_prompt_spearman(scores, judged.rewards, whole)
        by_prompt = np.full(len(table), np.nan)
        by_prompt[found.used] = found.per_prompt
        return by_prompt

    here = fit(0)
    for move in moves:
        better = fit(move) - here
        better = better[~np.isnan(better)]
        if len(better) > 1 and better.mean() > FAULT_ERRORS * better.std() / len(better) ** 0.5:
            return move
    return None
