"""Plans: policies that were searched for, a fixed one and one that opens candidates in waves while that pays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.rungs import rung_after
from probeselect.policies.chances import Chances
from probeselect.policies.expecting import Expectation
from probeselect.policies.policy import best_first, check_k


@dataclass(frozen=True)
class FixedPlan:
    """A searched schedule: of n candidates `keep[r]` go on after the 0-based step `steps[r]` of total_steps.

    Raises UsageError unless the steps increase and leave one to run, and n >= keep[0] >= ... >= k >= 1.
    """

    n: int
    k: int
    steps: tuple[int, ...]
    keep: tuple[int, ...]
    total_steps: int

    def __post_init__(self) -> None:
        check_k(self.k)
        if not self.steps or len(self.steps) != len(self.keep):
            raise UsageError(f"{len(self.steps)} steps, {len(self.keep)} keeps: give one of each per rung")
        if list(self.steps) != sorted(set(self.steps)):
            raise UsageError(f"steps {list(self.steps)}: must increase from rung to rung")
        for step in self.steps:
            rung_after(step, self.total_steps)  # refuses a step that no other step follows
        kept = [self.n, *self.keep, self.k]
        if kept != sorted(kept, reverse=True):
            raise UsageError(f"keep {list(self.keep)}: must fall from n = {self.n} to no less than k = {self.k}")

    @property
    def rungs(self) -> tuple[float, ...]:
        """The rungs as fractions, so that a run of another length follows the same plan."""
        return tuple(rung_after(step, self.total_steps) for step in self.steps)

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        return best_first(scores)[: self.keep[rung_index]]


@dataclass(frozen=True)
class AdaptivePlan:
    """Opens a prompt's candidates in waves, for as long as another wave is expected to gain enough.

    Of each wave's candidates `keep[r]` go on after the 0-based step `steps[r]`, like those of a FixedPlan. Those that
    come through the last rung wait there; the best-scored of them is the wave's champion. When what the next wave is
    expected to gain falls to `least_gain`, and after the last wave, the best `finish` of all who wait are finished.

    Raises UsageError as FixedPlan does, and for waves, finish or a least gain that cannot be.
    """

    wave: int
    waves: int  # at most
    k: int
    steps: tuple[int, ...]
    keep: tuple[int, ...]
    finish: int  # the best k of them by the evaluator are what is kept
    least_gain: float  # mean reward of the best k
    expectation: Expectation
    total_steps: int
    chances: Chances | None = None  # of a champion's reward, by its score
    scorer: str = ""  # whose scores all of this is in units of, where it is known

    def __post_init__(self) -> None:
        check_k(self.k)
        FixedPlan(self.wave, 1, self.steps, self.keep, self.total_steps)
        if self.waves < 1:
            raise UsageError(f"waves = {self.waves}: must be at least 1")
        most = self.waves * self.keep[-1]
        if not self.k <= self.finish <= most:
            raise UsageError(f"finish = {self.finish}: must be from k = {self.k} to the {most} who pass the last rung")
        if numbers := [
            value for value in (self.least_gain, *vars(self.expectation).values()) if not math.isfinite(value)
        ]:
            raise UsageError(f"least_gain and expectation: {numbers[0]!r} is no finite number")
        if self.expectation.between <= 0:
            raise UsageError(f"expectation: between = {self.expectation.between:g}: a variance must be above 0")

    @property
    def n(self) -> int:
        """The most candidates that are opened."""
        return self.wave * self.waves

    @property
    def rungs(self) -> tuple[float, ...]:
        return tuple(rung_after(step, self.total_steps) for step in self.steps)

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        """Of one wave of one prompt."""
        return best_first(scores)[: self.keep[rung_index]]

    def gain(self, champions: Sequence[float], waiting: Sequence[float]) -> float:
        """What the next wave is expected to gain; infinite while fewer than k wait.

        champions: score of each wave's; waiting: scores of all who wait, best first. Scores that are NaN do not count.
        """
        seen = [score for score in champions if math.isfinite(score)]
        there = [score for score in waiting if math.isfinite(score)]
        if not seen or len(there) < self.k:
            return math.inf
        kth = np.full(len(seen), there[self.k - 1])
        return float(self.expectation.gain(seen, kth, self.k)[-1])

    def chance(self, waiting: Sequence[float], reward: float) -> float:
        """That the k-th of those who wait (scores, best first) reaches a reward; 0 while fewer than k wait.

        Raises UsageError for a plan that does not hold the chances.
        """
        if self.chances is None:
            raise UsageError("confidence: the plan does not say how likely a reward is; make it again")
        there = [score for score in waiting if math.isfinite(score)]
        return self.chances.of(there[self.k - 1], reward) if len(there) >= self.k else 0.0


Plan = FixedPlan | AdaptivePlan
