"""Plans a schedule on half of the prompts and says, on the other half, what it earns: what `plan` writes.

Knows tables of scores and rewards; does not know where they come from. Imports no torch model.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats, bootstrap_interval
from probeselect.core.rungs import step_at
from probeselect.core.score_table import ScorerScores, ScoreTable
from probeselect.policies.plan_file import Interval, Outcome, PlanFile
from probeselect.policies.plans import AdaptivePlan, FixedPlan
from probeselect.policies.search import MakeDraws, Space, most_candidates, search, search_at_random
from probeselect.policies.search_adaptive import MAX_BUDGETS, search_adaptive
from probeselect.policies.simulate import (
    CANDIDATES,
    CUT,
    PSP,
    Draws,
    best_of_rows,
    enough_by,
    paths_of,
    replay,
    rows_by_round,
    stopped,
)

REPORT_DRAWS = 256
ENOUGH_PROMPTS = 128
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Earnings:
    """Of a schedule on the report prompts: reward by prompt [P], NaN where there are too few candidates, and costs."""

    schedule: str
    reward: Floats
    rows: float  # of the denoiser, mean over prompts
    cost: float  # those and the scoring, in rows


@dataclass(frozen=True)
class Planner:
    """A scorer's table, cut into prompts to plan on and prompts to report on.

    Raises UsageError where either half has no prompt with a choice, for a budget below k pictures, and for k or a
    scoring cost that cannot be.
    """

    table: ScoreTable
    scorer: ScorerScores
    planning: Rows
    report: Rows
    k: int = 1
    scoring_cost: float = 0.0
    seconds_per_row: float | None = None  # of the denoiser, where it was timed

    def __post_init__(self) -> None:
        for name, rows in (("plan", self.planning), ("report", self.report)):
            if not (self.table.valid[rows].sum(1) > 1).any():
                raise UsageError(f"{len(self.table.rewards)} prompts: none with two candidates is left to {name} on")
        if not 1 <= self.k <= self.most:
            raise UsageError(f"k = {self.k}: must be from 1 to the {self.most} candidates that the prompts have")

    @property
    def total_steps(self) -> int:
        return self.table.total_steps

    @property
    def most(self) -> int:
        """Candidates of a planning prompt."""
        return most_candidates(self.table.valid[self.planning])

    def space(self, budget: float) -> Space:
        steps = tuple(sorted(step for step in self.scorer.scores if step < self.total_steps - 1))
        affordable = MAX_BUDGETS * budget / (min(steps, default=0) + 1)
        most = max(int(affordable), self.k) if affordable < self.most else self.most
        return Space(steps, self.total_steps, self.k, budget, self.scoring_cost, most)

    def draws(self, space: Space) -> MakeDraws:
        rows, table = self.planning, self.table
        tables = {step: self.scorer.scores[step][rows] for step in space.steps}
        share = min(1.0, ENOUGH_PROMPTS / len(rows))  # of many prompts fewer draws say as much

        @functools.cache
        def make(count: int) -> Draws:
            fewer = max(1, round(count * share))
            return Draws.at_random(tables, table.rewards[rows], table.valid[rows], space.most, fewer)

        return make

    def fixed(self, plan: FixedPlan) -> Earnings:
        rewards, valid = self.table.rewards[self.report], self.table.valid[self.report]
        found = replay(plan, self._tables(plan.steps), rewards, valid, REPORT_DRAWS)
        return Earnings(plan.in_words(), found, plan.rows, plan.rows + self.scoring_cost * plan.scored)

    def adaptive(self, plan: AdaptivePlan) -> Earnings:
        rewards, valid = self.table.rewards[self.report], self.table.valid[self.report]
        one = plan.round
        draws = Draws.at_random(self._tables(one.steps), rewards, valid, plan.n, REPORT_DRAWS, seed=1)
        paths = paths_of(one, draws, plan.rounds)
        enough = enough_by(plan.stop, paths)
        reward, rows = stopped(paths, enough, rows_by_round(one, plan.rounds))
        cost = stopped(paths, enough, rows_by_round(one, plan.rounds, self.scoring_cost))[1]
        by_prompt = np.full(len(rewards), np.nan)
        by_prompt[draws.prompts] = reward
        return Earnings(plan.in_words(), by_prompt, float(rows.mean()), float(cost.mean()))

    def best_of(self, cost: float) -> Earnings:
        rewards, valid = self.table.rewards[self.report], self.table.valid[self.report]
        found = best_of_rows(cost, self.total_steps, rewards, valid, self.k)
        return Earnings(f"best of {cost / self.total_steps:.3g}", found, cost, cost)

    def _tables(self, steps: tuple[int, ...]) -> dict[int, Floats]:
        return {step: self.scorer.scores[step][self.report] for step in steps}


def halves(prompts: int) -> tuple[Rows, Rows]:
    """Even-numbered prompts to plan on, odd-numbered ones to report on, counted from 0."""
    return np.arange(0, prompts, 2), np.arange(1, prompts, 2)


def plan_for(planner: Planner, budget: float, adaptive: bool = False) -> PlanFile:
    """What plan.json holds. Intervals are 95 %, by bootstrap over the report prompts, leads paired by prompt.

    Raises UsageError for a budget that cannot be.
    """
    notes: tuple[str, ...] = ()
    ceiling = (planner.total_steps + planner.scoring_cost) * planner.most
    if budget > ceiling:
        many = f"{planner.most} candidates a prompt take no more than {ceiling:g} rows; planned so"
        notes, budget = (f"budget {budget:g}: {many}",), ceiling
    space = planner.space(budget)
    make = planner.draws(space)
    plan: FixedPlan | AdaptivePlan
    if adaptive:
        best = search_adaptive(space, make)
        plan, planned, tried = best.plan, best.planned, best.tried
    else:
        found = search(space, make)
        plan, planned, tried = found.plan, found.planned, found.tried
    if not (planner.table.valid[planner.report].sum(1) >= plan.n).any():
        raise UsageError(
            f"no prompt of those to report on has the {plan.n} candidates of the plan: give some that have"
        )
    made = planner.adaptive(plan) if isinstance(plan, AdaptivePlan) else planner.fixed(plan)
    outcome = outcome_of(made, planner.seconds_per_row)
    return msgspec.structs.replace(
        PlanFile.of(plan), schedule=made.schedule, rows=outcome.rows, cost=outcome.cost, expected=outcome.expected,
        interval=outcome.interval, seconds=outcome.seconds, scorer=planner.scorer.name,
        baselines={
            name: outcome_of(each, planner.seconds_per_row, made)
            for name, each in _baselines(planner, space, made, tried, adaptive)
        },
        evaluator=planner.table.evaluator, budget=budget, scoring_cost=planner.scoring_cost,
        prompts={"planning": len(planner.planning), "report": int(np.isfinite(made.reward).sum())},
        planned=planned, tried=tried, notes=notes,
    )  # fmt: skip


def _baselines(
    planner: Planner, space: Space, made: Earnings, tried: int, adaptive: bool
) -> Iterator[tuple[str, Earnings]]:
    """What else could be done: at the same cost where it is said so, else at a cost of its own."""
    yield "best of n at equal cost", planner.best_of(made.cost)
    if adaptive:
        at_its_cost = planner.space(max(made.cost, (planner.total_steps + planner.scoring_cost) * planner.k))
        yield "fixed plan at equal cost", planner.fixed(search(at_its_cost, planner.draws(at_its_cost)).plan)
    else:
        yield "random search", planner.fixed(search_at_random(space, planner.draws(space), tried).plan)
    for name, plan in standard_schedules(planner, space):
        yield name, planner.fixed(plan)
    one = planner.best_of(planner.total_steps * planner.k)
    yield "no choice", replace(one, schedule=f"{planner.k} at random")


def standard_schedules(planner: Planner, space: Space) -> Iterator[tuple[str, FixedPlan]]:
    """The paper's cut, as it stands and with what the budget allows, and PSP's: as far as the table has them."""
    total, k = planner.total_steps, planner.k
    cut = planner.scorer.step_near(CUT, total)
    if cut in space.steps and space.most >= CANDIDATES >= k:
        yield "the paper's cut", FixedPlan(CANDIDATES, k, (cut,), (k,), total)
    if cut in space.steps and (plan := space.plan((cut,), (k,))):
        yield "the paper's cut for the budget", plan
    n, rungs, keep = PSP
    steps = tuple(step_at(rung, total) for rung in rungs)
    if len({*steps} & {*space.steps}) == len(steps) and n <= space.most and k <= keep[-1]:
        yield "8 -> 4 -> 2", FixedPlan(n, k, steps, keep, total)


def outcome_of(made: Earnings, seconds_per_row: float | None, ahead: Earnings | None = None) -> Outcome:
    """A schedule's line; with `ahead`, by how much that one earns more, on prompts that both have."""
    there = made.reward[np.isfinite(made.reward)]
    outcome = Outcome(
        schedule=made.schedule, rows=made.rows, cost=made.cost, expected=float(there.mean()) if len(there) else None,
        interval=_interval(there),
        seconds=msgspec.UNSET if seconds_per_row is None else made.cost * seconds_per_row,
    )  # fmt: skip
    if ahead is None:
        return outcome
    lead = ahead.reward - made.reward
    lead = lead[np.isfinite(lead)]
    mean = float(lead.mean()) if len(lead) else None
    return msgspec.structs.replace(outcome, lead=mean, lead_interval=_interval(lead))


def _interval(values: Floats) -> Interval:
    low, high = bootstrap_interval(np.mean, values)
    return (low, high) if len(values) else (None, None)
