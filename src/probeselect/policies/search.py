"""The search for the schedule that earns most for a budget: (n, steps, keep) with up to three rungs.

Shapes as in `simulate`: P prompts, N candidates a prompt, D draws of them. All schedules are tried on the same draws,
so that they differ by what they do and not by luck: many on few draws, the better ones and what is near them on more,
the best thirty on most. What the winner has earned here flatters it; only other prompts can say what it is worth.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Mask
from probeselect.policies.plans import FixedPlan
from probeselect.policies.simulate import Draws, kept_rewards

MAX_RUNGS = 3
FEW_DRAWS, SOME_DRAWS, MANY_DRAWS = 8, 32, 256  # draws of each prompt's candidates
SHORT_LIST = 30
MAX_CLIMBS = 4  # from so many of the best
MAX_TRIED_WHOLE = 2500  # schedules: no more than these are all tried, of more a thinned grid
MAX_GRID_STEPS = 11
MAX_SHARE_SHORT = 0.1  # share of prompts that may have fewer candidates than a schedule draws


def most_candidates(valid: Mask) -> int:
    """The most candidates that nine of ten prompts have; prompts without a choice are not asked."""
    counts = valid.sum(1)
    return int(np.quantile(counts[counts > 1], MAX_SHARE_SHORT, method="lower"))


def earned(plan: FixedPlan, draws: Draws) -> float:
    """Mean reward, over prompts and draws, of the best k that a plan finishes."""
    return float(kept_rewards(plan, draws).mean(dtype=np.float64))


@dataclass(frozen=True)
class Space:
    """The schedules that may be: where scores are, and what the budget and the candidates allow."""

    steps: tuple[int, ...]  # 0-based, with scores; the last step of all not among them
    total_steps: int
    k: int
    budget: float  # rows a prompt
    scoring_cost: float  # rows for scoring a candidate once
    most: int  # candidates

    def __post_init__(self) -> None:
        if not 0 <= self.scoring_cost < np.inf:
            raise UsageError(f"scoring cost {self.scoring_cost:g}: must be a number of rows, 0 or more")
        if not self.budget >= self.least:
            raise UsageError(
                f"budget {self.budget:g}: less than the {self.least:g} rows of {self.k} finished picture"
                f"{'s' if self.k > 1 else ''} of {self.total_steps} steps"
            )
        if not self.steps:
            raise UsageError(f"no scores before the last of {self.total_steps} steps: there is nothing to decide by")

    @property
    def least(self) -> float:
        """The cheapest budget: k finished pictures, each scored at one rung."""
        return (self.total_steps + self.scoring_cost) * self.k

    @property
    def size(self) -> int:
        """Upper bound on the number of schedules."""
        return sum(math.comb(len(self.steps), count) * math.comb(self.most, count) for count in range(1, MAX_RUNGS + 1))

    def cost(self, plan: FixedPlan) -> float:
        return plan.rows + self.scoring_cost * plan.scored

    def plan(self, steps: tuple[int, ...], keep: tuple[int, ...]) -> FixedPlan | None:
        """With as many candidates as the budget allows; None where it allows no more than the first rung keeps.

        A single rung that keeps all of them is what is left of best-of-n, and allowed.
        """
        later = sum(
            count * (end - begin)
            for count, begin, end in zip(keep, steps, (*steps[1:], self.total_steps - 1), strict=True)
        ) + self.scoring_cost * sum(keep[:-1])
        n = min(int((self.budget - later + 1e-9) // (steps[0] + 1 + self.scoring_cost)), self.most)
        if n < keep[0] or (n == keep[0] and len(steps) > 1):
            return None
        return FixedPlan(n, self.k, steps, keep, self.total_steps)

    def keeps(self, count: int, of: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """How many may go on after each of `count` rungs: falling strictly, the last not below k."""
        usable = sorted({keep for keep in of if self.k <= keep <= self.most}, reverse=True)
        yield from itertools.combinations(usable, count)

    def plans(self, steps: Sequence[int], keeps: Sequence[int]) -> Iterator[FixedPlan]:
        for count in range(1, MAX_RUNGS + 1):
            falling = list(self.keeps(count, keeps))
            for at in itertools.combinations(steps, count):
                yield from filter(None, (self.plan(at, keep) for keep in falling))

    def near(self, plan: FixedPlan) -> Iterator[FixedPlan]:
        """Schedules that differ by one place of one rung, by one or two in one keep, or by one rung."""
        where = [self.steps.index(step) for step in plan.steps]
        options: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for r in range(len(where)):
            moved = (where[r] + move for move in (-2, -1, 1, 2) if 0 <= where[r] + move < len(self.steps))
            options += [(_put(plan.steps, r, self.steps[i]), plan.keep) for i in moved]
            options += [(plan.steps, _put(plan.keep, r, plan.keep[r] + more)) for more in (-2, -1, 1, 2)]
            options.append((plan.steps[:r] + plan.steps[r + 1 :], plan.keep[:r] + plan.keep[r + 1 :]))
        if len(where) < MAX_RUNGS:
            ends = (plan.n, *plan.keep)
            for step in set(self.steps[::2]) - set(plan.steps):
                r = sum(step > other for other in plan.steps)
                keep = round((ends[r] * (plan.keep[r] if r < len(plan.keep) else self.k)) ** 0.5)
                options.append((_put(plan.steps, r, step, 0), _put(plan.keep, r, keep, 0)))
        for at, keep in options:
            rising = all(a < b for a, b in itertools.pairwise(at))
            falling = all(a > b for a, b in itertools.pairwise(keep))
            if at and rising and falling and keep[-1] >= self.k and (there := self.plan(at, keep)):
                yield there


def _put(values: tuple[int, ...], place: int, value: int, instead_of: int = 1) -> tuple[int, ...]:
    return (*values[:place], value, *values[place + instead_of :])


@dataclass(frozen=True)
class Found:
    """The best schedule, what it has earned on the prompts that it was chosen on, and how many were tried."""

    plan: FixedPlan
    planned: float
    tried: int


MakeDraws = Callable[[int], Draws]


def search(space: Space, make: MakeDraws) -> Found:
    """The schedule of the space that earns most on draws of the planning prompts. Deterministic.

    make: gives so many draws of each prompt's candidates; the same again when asked for as many again.
    """
    if everything := space.size <= MAX_TRIED_WHOLE:
        grid = list(space.plans(space.steps, range(1, space.most + 1)))
    else:
        grid = list(space.plans(thinned(space.steps, MAX_GRID_STEPS), _geometric(space.most)))
    tried = _ranked(grid, make(FEW_DRAWS))[: 2 * SHORT_LIST]
    seen = {plan: earned(plan, make(SOME_DRAWS)) for plan in tried}
    if not everything:
        for start in sorted(tried, key=lambda plan: -seen[plan])[:MAX_CLIMBS]:
            _climb(start, space, make(SOME_DRAWS), seen)
    best = sorted(seen, key=lambda plan: -seen[plan])[:SHORT_LIST]
    return _last_round(best, make, len(set(grid) | set(seen)))


def search_at_random(space: Space, make: MakeDraws, trials: int, seed: int = 0) -> Found:
    """What as many schedules drawn at random find: the yardstick of a search."""
    rng = np.random.default_rng(seed)
    drawn: list[FixedPlan] = []
    while len(drawn) < trials:
        count = int(rng.integers(1, min(MAX_RUNGS, len(space.steps), space.most - space.k + 1) + 1))
        at = np.sort(rng.choice(space.steps, count, replace=False))
        upto = max(space.k + count, min(space.most, int(space.budget) // space.total_steps * 4))
        keep = np.sort(rng.choice(np.arange(space.k, upto + 1), count, replace=False))[::-1]
        if plan := space.plan(tuple(at.tolist()), tuple(keep.tolist())):
            drawn.append(plan)
    ranked = _ranked(drawn, make(FEW_DRAWS))
    return _last_round(_ranked(ranked[: 2 * SHORT_LIST], make(SOME_DRAWS))[:SHORT_LIST], make, trials)


def _last_round(plans: Sequence[FixedPlan], make: MakeDraws, tried: int) -> Found:
    many = make(MANY_DRAWS)
    means = [earned(plan, many) for plan in plans]
    best = int(np.argmax(means))
    return Found(plans[best], means[best], tried)


def _ranked(plans: Iterable[FixedPlan], draws: Draws) -> list[FixedPlan]:
    return sorted(plans, key=lambda plan: -earned(plan, draws))


def _climb(plan: FixedPlan, space: Space, draws: Draws, seen: dict[FixedPlan, float]) -> None:
    """Goes to the best of what is near for as long as that is better; everything looked at is put in `seen`."""
    while True:
        near = list(space.near(plan))
        for each in near:
            if each not in seen:
                seen[each] = earned(each, draws)
        best = max(near, key=lambda each: seen[each], default=plan)
        if seen[best] <= seen[plan]:
            return
        plan = best


def thinned(steps: Sequence[int], count: int) -> list[int]:
    """At most so many of them, closer together early, where a step of all candidates is at stake."""
    places = np.linspace(0, 1, count) ** 1.3 * (len(steps) - 1)
    return [steps[i] for i in sorted(set(places.round().astype(int).tolist()))]


def _geometric(most: int) -> list[int]:
    values = {round(1.45**power) for power in range(20)} | {2, 3, 4}
    return sorted(value for value in values if value <= most)
