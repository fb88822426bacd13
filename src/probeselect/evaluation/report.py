"""The report of how well scorers choose: within prompts, at equal compute, and whether the data deserve to be believed.

Knows tables of scores and rewards; does not know where they come from, nor how they are drawn. Imports no torch model.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from probeselect.core.files import to_json
from probeselect.core.metrics import (
    Floats,
    bootstrap_interval,
    choices,
    figures,
    ndcg,
    pooled_spearman,
    top_k_hit,
    within_prompt_kendall,
    within_prompt_spearman,
)
from probeselect.core.rungs import rung_of
from probeselect.core.score_table import ScoreTable
from probeselect.evaluation import rows
from probeselect.evaluation.compute import compute_rows
from probeselect.evaluation.picture import Picture
from probeselect.evaluation.tables import BLIND, by_evaluator, calibration, kept_by, pooled_of_a_constant, strips
from probeselect.evaluation.timing import Timing

FAULT_ERRORS = 3.5  # standard errors at which a check speaks
NO_SKILL, POOLED_SKILL = 0.02, 0.3  # within prompts at most, pooled at least: what a scorer of prompts alone shows


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `evaluate` finds. report.json holds every field but the sheets."""

    evaluator: str
    prompts: int  # with two valid candidates or more
    candidates: int  # that are valid
    total_steps: int
    rewards: rows.Scale
    choosing: Sequence[rows.ChoosingRow]
    paired: Sequence[rows.PairedRow]
    compute: Sequence[rows.ComputeRow]
    timing: Timing | None
    calibration: Sequence[rows.CalibrationRow]
    strips: Sequence[rows.StripRow]
    evaluators: Sequence[rows.EvaluatorRow]
    kept: Sequence[rows.KeptRow]
    leaks: Sequence[rows.LeakRow]
    distances: Sequence[rows.DistanceRow] = ()
    notes: Sequence[str] = ()
    faults: Sequence[str]
    sheets: Sequence[Picture] = ()  # of a dataset's own pictures

    @property
    def scorers(self) -> list[str]:
        """Their names, in the order of the rows."""
        return list(dict.fromkeys(row.scorer for row in self.choosing))

    def to_json(self) -> bytes:
        """What report.json holds; a figure that is not defined is null."""
        return to_json({name: value for name, value in vars(self).items() if name != "sheets"})


def report_of(
    table: ScoreTable,
    others: Sequence[ScoreTable] = (),
    timing: Timing | None = None,
    leaks: Sequence[rows.LeakRow] = (),
) -> Report:
    """Every figure of a score table. Intervals are 95 %, by bootstrap over prompts.

    others: the same prompts and candidates by other evaluators. timing: for costs in seconds beside those in rows.
    leaks: what blind probes were found to know, see `probe.checks`.
    """
    every = [table, *others]
    found = choices(table.rewards, table.rewards, table.valid)
    return Report(
        evaluator=table.evaluator, prompts=int((table.valid.sum(1) > 1).sum()), candidates=int(table.valid.sum()),
        total_steps=table.total_steps,
        rewards=rows.Scale(float(found.average.mean()), float(found.best.mean()), pooled_of_a_constant(table)),
        choosing=list(_choosing(table)), paired=list(_paired(table)), compute=list(compute_rows(table, timing)),
        timing=timing, calibration=[calibration(table, scorer) for scorer in table.scorers], strips=strips(table),
        evaluators=list(by_evaluator(every)) if others else [], kept=list(kept_by(every)) if others else [],
        leaks=leaks, faults=[*faults(table), *(_leaking(leak) for leak in leaks if leak.leak)],
    )  # fmt: skip


def _leaking(leak: rows.LeakRow) -> str:
    return f"{leak.probe}: {leak.check}, Spearman within prompts {leak.spearman:.2f}: something leaks"


def _choosing(table: ScoreTable) -> Iterator[rows.ChoosingRow]:
    rewards, valid = table.rewards, table.valid
    for scorer in table.scorers:
        for step, scores in scorer.scores.items():
            yield rows.ChoosingRow(
                scorer=scorer.name, step=step, rung=rung_of(step, table.total_steps),
                **vars(figures(scores, rewards, valid)),
                kendall=within_prompt_kendall(scores, rewards, valid).mean,
                constant_prompts=within_prompt_spearman(scores, rewards, valid).constant_scores,
                top1=top_k_hit(scores, rewards, 1, valid), top2=top_k_hit(scores, rewards, 2, valid),
                ndcg=ndcg(scores, rewards, valid),
            )  # fmt: skip


def _paired(table: ScoreTable) -> Iterator[rows.PairedRow]:
    """Every two scorers after the same step: by how much the first is ahead, prompt by prompt."""
    for one, other in itertools.combinations(table.scorers, 2):
        for step in sorted(set(one.scores) & set(other.scores)):
            a, b = (
                within_prompt_spearman(scorer.scores[step], table.rewards, table.valid).per_prompt
                for scorer in (one, other)
            )
            c, d = (choices(scorer.scores[step], table.rewards, table.valid).chosen for scorer in (one, other))
            yield rows.PairedRow(
                scorer=one.name, over=other.name, rung=rung_of(step, table.total_steps),
                spearman=float((a - b).mean()) if len(a) else math.nan,
                spearman_interval=bootstrap_interval(np.mean, a - b),
                reward=float((c - d).mean()), reward_interval=bootstrap_interval(np.mean, c - d),
            )  # fmt: skip


def faults(table: ScoreTable) -> Iterator[str]:
    """What is wrong with the data or the scorers, in a line each; nothing where nothing is found."""
    for scorer in table.scorers:
        if scorer.name in BLIND:
            continue
        last = max(scorer.scores)
        scores = scorer.scores[last]
        within = within_prompt_spearman(scores, table.rewards, table.valid)
        if (shift := _shift(scores, table)) is not None:
            places = f"{abs(shift)} place{'s' if abs(shift) > 1 else ''} {'later' if shift > 0 else 'earlier'}"
            yield f"{scorer.name} after step {last}: pairing is off: scores fit the rewards of the candidate {places}"
        pooled = pooled_spearman(scores, table.rewards, table.valid)
        if within.constant_scores == len(within.per_prompt) and len(within.per_prompt):
            yield f"{scorer.name} after step {last}: is constant within every prompt: it cannot choose a seed"
        elif abs(within.mean) < NO_SKILL and pooled > POOLED_SKILL:
            yield (
                f"{scorer.name} after step {last}: pooled Spearman {pooled:.2f}, within prompts {within.mean:.2f}: "
                "it tells prompts apart and not seeds"
            )


def _shift(scores: Floats, table: ScoreTable) -> int | None:
    """By how many places the scores must be moved to fit the rewards clearly better than where they are."""
    n = scores.shape[1]
    moves = [move for move in (*range(-3, 0), *range(1, 4)) if abs(move) < n]

    def fit(move: int) -> Floats:
        whole = table.valid & np.roll(table.valid, move, 1)
        moved = np.where(whole, np.roll(scores, move, 1), np.nan)
        found = within_prompt_spearman(moved, table.rewards, whole)
        by_prompt = np.full(len(scores), np.nan)
        by_prompt[found.used] = found.per_prompt
        return by_prompt

    here = fit(0)
    for move in moves:
        better = fit(move) - here
        better = better[~np.isnan(better)]
        if len(better) > 1 and better.mean() > FAULT_ERRORS * better.std() / len(better) ** 0.5:
            return move
    return None
