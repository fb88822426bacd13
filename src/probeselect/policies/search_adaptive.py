"""The search for an adaptive plan: how large its rounds are, what they go through, and when another does not pay.

Shapes as in `simulate`. What a round is expected to gain is `expecting`'s to say; one number, the gain at which a
prompt stops, is set such that the mean cost is the budget: as a price would, the same for all prompts, it sends the
rows to where they earn most. Everything is fitted to draws of the planning prompts.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from probeselect.core.metrics import Floats
from probeselect.policies.chances import chances_of
from probeselect.policies.expecting import expectation_of
from probeselect.policies.plans import AdaptivePlan, FixedPlan, RoundPlan
from probeselect.policies.search import MakeDraws, Space, search, thinned
from probeselect.policies.simulate import Draws, Paths, paths_of, rows_by_round, stopped
from probeselect.policies.stopping import ExpectedGain

ROUNDS_OF = (1, 2, 3, 4, 6, 8)  # candidates
KEEPS = (1, 2, 3, 4, 6)  # of a round, before its last rung
GRID_STEPS = 9, 7, 6  # looked at for one, two and three rungs
MAX_MORE = 2  # pictures than k that may be finished
MAX_BUDGETS = 4  # that one prompt may take, while the mean is within one
BISECTIONS = 20
BUDGET_SHARES = 1.0, 0.7, 0.5  # that a fixed plan is searched for to be a round
DRAWS = 6, 24, 128
SHORT_LISTS = 60, 24, 8  # shapes that are tried with more finished, with more draws, and with most


def least_gain_for(budget: float, paths: Paths, gains: Floats, rows: Floats) -> float:
    """The least gain at which the mean cost is just within the budget.

    gains: [P, D, W], what the next round is expected to gain. rows: [W], what stopping after each round costs.
    """

    def cost(least_gain: float) -> float:
        return float(stopped(paths, gains <= least_gain, rows)[1].mean())

    low, high = -1e-12, float(gains[np.isfinite(gains)].max())
    if cost(low) <= budget:
        return low
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) > budget else (low, middle)
    return high


@dataclass(frozen=True)
class FoundAdaptive:
    """The best adaptive plan, what it earned and took on the prompts that it was chosen on, and how many were tried."""

    plan: AdaptivePlan
    planned: float
    rows: float
    tried: int


def search_adaptive(space: Space, make: MakeDraws) -> FoundAdaptive:
    """The adaptive plan that earns most on draws of the planning prompts at a mean cost within the budget."""
    few, some, many = map(make, DRAWS)

    def by_worth(shapes: Iterable[RoundPlan], draws: Draws) -> list[RoundPlan]:
        return sorted(shapes, key=lambda shape: -_fitted(shape, space, draws).planned)

    shapes = list(shapes_in(space))
    screened = by_worth(shapes, few)[: SHORT_LISTS[0]]
    with_more = [replace(shape, finish=space.k + more) for shape in screened for more in range(1, MAX_MORE + 1)]
    possible = [shape for shape in screened + with_more if rounds_allowed(shape, space)]
    short = by_worth(by_worth(possible, few)[: SHORT_LISTS[1]], some)[: SHORT_LISTS[2]]
    fixed = [search(replace(space, budget=max(part * space.budget, space.least)), make) for part in BUDGET_SHARES]
    whole = [shape for found in fixed if rounds_allowed(shape := round_of(found.plan, space.k), space)]
    best = max((_fitted(shape, space, many) for shape in short + whole), key=lambda found: found.planned)
    paths = paths_of(best.plan.round, many, best.plan.rounds)
    plan = replace(best.plan, chances=chances_of(paths.so_far.champions.ravel(), paths.worth.ravel()))
    return replace(best, plan=plan, tried=len(shapes) + len(with_more) + sum(each.tried for each in fixed))


def round_of(plan: FixedPlan, k: int) -> RoundPlan:
    """A fixed plan as a round: what is adaptive is whether there is another.

    With the best plan for the budget among its rounds, an adaptive plan is no worse than it on the planning prompts.
    """
    return RoundPlan(plan.n, plan.steps, plan.keep, plan.total_steps, k, max(k, plan.keep[-1]))


def _fitted(shape: RoundPlan, space: Space, draws: Draws) -> FoundAdaptive:
    rounds = rounds_allowed(shape, space)
    paths, costs = paths_of(shape, draws, rounds), rows_by_round(shape, rounds, space.scoring_cost)
    champions = paths.so_far.champions
    expectation = expectation_of(champions.reshape(len(champions), -1), paths.worth.reshape(len(champions), -1))
    gains = ExpectedGain(0.0, expectation, rounds).measure(paths.so_far)
    least_gain = least_gain_for(space.budget, paths, gains, costs)
    reward, rows = stopped(paths, gains <= least_gain, costs)
    finish = min(shape.finish, rounds * shape.keep[-1])
    plan = AdaptivePlan(replace(shape, finish=finish), rounds, least_gain, expectation)
    return FoundAdaptive(plan, float(reward.mean()), float(rows.mean()), 1)


def rounds_allowed(shape: RoundPlan, space: Space) -> int:
    """The most rounds that MAX_BUDGETS and the candidates allow; 0 where the least that a prompt takes is not within
    the budget, or leaves fewer than k candidates."""
    if shape.rows(shape.first + 1, space.scoring_cost) > space.budget:
        return 0
    rounds = space.most // shape.n
    while rounds and shape.rows(rounds, space.scoring_cost) > MAX_BUDGETS * space.budget:
        rounds -= 1
    return rounds if rounds > shape.first else 0


def shapes_in(space: Space) -> Iterator[RoundPlan]:
    """What is looked at. Of each round one or k pass the last rung; one who is kept may be scored once more."""
    for n, last, count in itertools.product(ROUNDS_OF, sorted({1, space.k}), range(1, len(GRID_STEPS) + 1)):
        before = [keep for keep in KEEPS[::-1] if last <= keep < n]
        for keep in itertools.combinations_with_replacement(before, count - 1) if n >= last else ():
            for steps in itertools.combinations(thinned(space.steps, GRID_STEPS[count - 1]), count):
                shape = RoundPlan(n, steps, (*keep, last), space.total_steps, space.k, space.k)
                if rounds_allowed(shape, space):
                    yield shape
