"""The search for an adaptive plan: how large its waves are, what they go through, and when another does not pay.

Shapes as in `planning`, and W waves. What a wave is expected to gain is `expecting`'s to say; one number, the gain at
which a prompt stops, is set such that the mean cost is the budget: as a price would, the same for all prompts, it
sends the rows to where they earn most. Everything is fitted to draws of the planning prompts.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from probeselect.core.metrics import Floats
from probeselect.policies.chances import chances_of
from probeselect.policies.expecting import Expectation, expectation_of
from probeselect.policies.plans import AdaptivePlan, FixedPlan
from probeselect.policies.search import Draws, MakeDraws, Space, best_of, search, thinned
from probeselect.policies.simulate import rows_of, scored_of

WAVES_OF = (1, 2, 3, 4, 6, 8)  # candidates
KEEPS = (1, 2, 3, 4, 6)  # of a wave, before its last rung
GRID_STEPS = 9, 7, 6  # looked at for one, two and three rungs
MORE = 2  # pictures than k that may be finished
CAP = 4  # no prompt takes more rows than so many budgets
TURNS = 20  # of a bisection
PARTS = 1.0, 0.7, 0.5  # of the budget, that a fixed plan is searched for to be a wave
DRAWS = 6, 24, 128
SHORT_LISTS = 60, 24, 8  # shapes that are tried with more finished, with more draws, and with most


@dataclass(frozen=True)
class Shape:
    """What an adaptive plan is but for when it stops. The finish of `wave`, and its k, mean nothing."""

    wave: FixedPlan
    k: int
    finish: int

    @property
    def left(self) -> int:
        """Steps that are left to those who finish."""
        return self.wave.total_steps - 1 - self.wave.steps[-1]

    @property
    def first(self) -> int:
        """The first wave, counted from 0, after which k candidates wait."""
        return -(-self.k // self.wave.keep[-1]) - 1

    def rows(self, waves: int, scoring_cost: float = 0.0) -> float:
        """Of one prompt that stops after so many waves."""
        through = self.wave.keep[-1]
        each = rows_of(self.wave) - through * self.left + scoring_cost * scored_of(self.wave)
        return waves * each + min(self.finish, waves * through) * self.left


def shape_of(plan: AdaptivePlan) -> Shape:
    return Shape(FixedPlan(plan.wave, 1, plan.steps, plan.keep, plan.total_steps), plan.k, plan.finish)


@dataclass(frozen=True)
class Paths:
    """What draws of candidates find, wave after wave; stopping is possible from wave `shape.first` on."""

    champions: NDArray[np.float32]  # [P, D, W] best score of each wave
    worth: NDArray[np.float32]  # [P, D, W] its reward
    kth: NDArray[np.float32]  # [P, D, W] k-th best score of all who wait; -inf while there are fewer
    reward: NDArray[np.float32]  # [P, D, W] mean reward of the best k of those who would be finished
    rows: Floats  # [W], when they are finished then


def paths_of(shape: Shape, draws: Draws, waves: int, scoring_cost: float = 0.0) -> Paths:
    """Of a shape, for so many waves."""
    wave = shape.wave
    in_waves = np.arange(waves * wave.n).reshape(waves, wave.n)
    left: NDArray[np.intp] = np.broadcast_to(in_waves, (*draws.rewards.shape[:2], waves, wave.n))  # [P, D, W, n]
    for step, keep in zip(wave.steps, wave.keep, strict=True):
        if keep < left.shape[3]:
            left = np.take_along_axis(left, best_of(_at(draws.scores(step), left), keep), axis=3)
    scores, rewards = _at(draws.scores(wave.steps[-1]), left), _at(draws.rewards, left)  # [P, D, W, h]
    best, worth = scores[:, :, 0, :0], rewards[:, :, 0, :0]  # of those who would be finished, by falling score
    kth, means = [], []
    for w in range(waves):
        best, worth = np.concatenate([best, scores[:, :, w]], axis=2), np.concatenate([worth, rewards[:, :, w]], axis=2)
        if best.shape[2] > 1:
            order = np.argsort(-best, axis=2, kind="stable")[:, :, : shape.finish]
            best, worth = np.take_along_axis(best, order, axis=2), np.take_along_axis(worth, order, axis=2)
        kth.append(best[:, :, shape.k - 1] if w >= shape.first else np.full(best.shape[:2], -np.inf, np.float32))
        means.append(_at(worth, best_of(worth, shape.k), 2).mean(2))
    rows = np.array([shape.rows(w + 1, scoring_cost) for w in range(waves)], dtype=np.float64)
    champion = best_of(scores, 1)
    first, its = (np.take_along_axis(table, champion, axis=3)[..., 0] for table in (scores, rewards))
    return Paths(first, its, np.stack(kth, 2), np.stack(means, 2), rows)


def _at(table: NDArray[np.float32], places: NDArray[np.intp], axis: int = 3) -> NDArray[np.float32]:
    return np.take_along_axis(table[:, :, None] if axis == 3 else table, places, axis=axis)


def gains_of(paths: Paths, expectation: Expectation, k: int) -> Floats:
    """What the next wave is expected to gain [P, D, W]; infinite where stopping is not possible yet."""
    waiting = np.isfinite(paths.kth)
    return np.where(waiting, expectation.gain(paths.champions, np.where(waiting, paths.kth, 0), k), np.inf)


def stopped(paths: Paths, gains: Floats, least_gain: float) -> tuple[Floats, Floats]:
    """Reward and rows [P], means over draws, when each draw stops once no more than `least_gain` is expected."""
    stop = gains <= least_gain
    stop[:, :, -1] = True
    at = stop.argmax(axis=2)  # [P, D]
    reward = np.take_along_axis(paths.reward, at[..., None], axis=2)[..., 0]
    return reward.mean(1, dtype=np.float64), paths.rows[at].mean(1)


def least_gain_for(budget: float, paths: Paths, gains: Floats) -> float:
    """The least gain at which the mean cost is just within the budget."""
    there = gains[np.isfinite(gains)]
    low, high = -1e-12, float(there.max())
    if stopped(paths, gains, low)[1].mean() <= budget:
        return low
    for _ in range(TURNS):
        middle = (low + high) / 2
        low, high = (middle, high) if stopped(paths, gains, middle)[1].mean() > budget else (low, middle)
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

    def by_worth(shapes: Iterable[Shape], draws: Draws) -> list[Shape]:
        return sorted(shapes, key=lambda shape: -_fitted(shape, space, draws).planned)

    shapes = list(shapes_in(space))
    screened = by_worth(shapes, few)[: SHORT_LISTS[0]]
    with_more = [replace(shape, finish=space.k + more) for shape in screened for more in range(1, MORE + 1)]
    possible = [shape for shape in screened + with_more if _waves(shape, space)]
    short = by_worth(by_worth(possible, few)[: SHORT_LISTS[1]], some)[: SHORT_LISTS[2]]
    fixed = [search(replace(space, budget=max(part * space.budget, space.least)), make) for part in PARTS]
    whole = [shape for found in fixed if _waves(shape := wave_of(found.plan, space.k), space)]
    best = max((_fitted(shape, space, many) for shape in short + whole), key=lambda found: found.planned)
    paths = paths_of(shape_of(best.plan), many, best.plan.waves)
    plan = replace(best.plan, chances=chances_of(paths.champions.ravel(), paths.worth.ravel()))
    return replace(best, plan=plan, tried=len(shapes) + len(with_more) + sum(each.tried for each in fixed))


def wave_of(plan: FixedPlan, k: int) -> Shape:
    """A fixed plan as a wave: what is adaptive is whether there is another.

    With the best plan for the budget among its waves, an adaptive plan is no worse than it on the planning prompts.
    """
    return Shape(replace(plan, k=1), k, max(k, plan.keep[-1]))


def _fitted(shape: Shape, space: Space, draws: Draws) -> FoundAdaptive:
    waves = _waves(shape, space)
    paths = paths_of(shape, draws, waves, space.scoring_cost)
    prompts = len(paths.champions)
    expectation = expectation_of(paths.champions.reshape(prompts, -1), paths.worth.reshape(prompts, -1))
    gains = gains_of(paths, expectation, space.k)
    least_gain = least_gain_for(space.budget, paths, gains)
    reward, rows = stopped(paths, gains, least_gain)
    wave = shape.wave
    finish = min(shape.finish, waves * wave.keep[-1])
    plan = AdaptivePlan(
        wave.n, waves, space.k, wave.steps, wave.keep, finish, least_gain, expectation, space.total_steps
    )
    return FoundAdaptive(plan, float(reward.mean()), float(rows.mean()), 1)


def _waves(shape: Shape, space: Space) -> int:
    """The most waves that the cap and the candidates allow; 0 where the least that a prompt takes is not within the
    budget, or leaves fewer than k candidates."""
    if shape.rows(shape.first + 1, space.scoring_cost) > space.budget:
        return 0
    waves = space.most // shape.wave.n
    while waves and shape.rows(waves, space.scoring_cost) > CAP * space.budget:
        waves -= 1
    return waves if waves > shape.first else 0


def shapes_in(space: Space) -> Iterator[Shape]:
    """What is looked at. Of each wave one or k pass the last rung; one who is kept may be scored once more."""
    for n, last, count in itertools.product(WAVES_OF, sorted({1, space.k}), range(1, len(GRID_STEPS) + 1)):
        before = [keep for keep in KEEPS[::-1] if last <= keep < n]
        for keep in itertools.combinations_with_replacement(before, count - 1) if n >= last else ():
            for steps in itertools.combinations(thinned(space.steps, GRID_STEPS[count - 1]), count):
                wave = FixedPlan(n, 1, steps, (*keep, last), space.total_steps)
                if _waves(shape := Shape(wave, space.k, space.k), space):
                    yield shape
