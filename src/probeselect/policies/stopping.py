"""Stopping rules: after each round of a prompt's candidates, is it enough?

One place to add a rule: a class with `rounds`, `needs_rewards` and `measure`/`enough`. A rule is a value without state,
and works on arrays, so the same rule stops a live run and a replay of thousands of draws of a table at once.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats
from probeselect.policies.chances import Chances
from probeselect.policies.expecting import Expectation

ROUNDS = 4  # of `Until`, where nothing is said


@dataclass(frozen=True)
class RoundsSoFar:
    """What each of W rounds has led to; all arrays [..., W]."""

    champions: NDArray[np.floating[Any]]  # best score of the round's candidates
    kth: NDArray[np.floating[Any]]  # k-th best score of all who wait; -inf while fewer than k do
    kth_reward: NDArray[np.floating[Any]] | None  # k-th best reward of all finished pictures; NaN while there are fewer
    k: int


class StoppingRule(Protocol):
    """When a prompt needs no more candidates."""

    measured: str  # what `measure` gives, as result.json and messages name it
    threshold_name: str

    @property
    def rounds(self) -> int:
        """Maximum number of rounds."""
        ...

    @property
    def threshold(self) -> float:
        """What `measure` is compared with."""
        ...

    @property
    def needs_rewards(self) -> bool:
        """Whether the pictures of every round are finished and judged before the rule is asked."""
        ...

    def measure(self, so_far: RoundsSoFar) -> Floats:
        """After each round, the figure that decides: [..., W]. Not finite where nothing can be said yet."""
        ...

    def enough(self, measured: Floats) -> NDArray[np.bool_]:
        """Whether that is enough to stop, [..., W]."""
        ...


@dataclass(frozen=True)
class Once:
    """One round, whatever it brings."""

    measured = threshold_name = ""
    rounds = 1
    threshold = 0.0
    needs_rewards = False

    def measure(self, so_far: RoundsSoFar) -> Floats:
        return np.zeros(so_far.champions.shape)

    def enough(self, measured: Floats) -> NDArray[np.bool_]:
        return np.ones(measured.shape, dtype=bool)


@dataclass(frozen=True)
class Until:
    """Rounds of fresh seeds until the k kept pictures of a prompt all reach a reward.

        sampler("a cat", n=5, evaluators=["scene-check"], stop=Until(0.9, rounds=4))

    reward: in units of the first evaluator, which judges the finished pictures after each round.
    rounds: maximum number of rounds.

    Raises UsageError for values that cannot be.
    """

    reward: float
    rounds: int = ROUNDS

    measured, threshold_name = "reward", "until"
    needs_rewards = True

    def __post_init__(self) -> None:
        _check_reward(self.reward)
        if self.rounds < 1:
            raise UsageError(f"rounds = {self.rounds}: must be at least 1")

    @property
    def threshold(self) -> float:
        return self.reward

    def measure(self, so_far: RoundsSoFar) -> Floats:
        if so_far.kth_reward is None:
            raise UsageError(f"until = {self.reward:g}: needs an evaluator to judge finished pictures, or a confidence")
        return so_far.kth_reward.astype(np.float64)

    def enough(self, measured: Floats) -> NDArray[np.bool_]:
        return measured >= self.reward


@dataclass(frozen=True)
class UntilLikely:
    """Rounds until a reward is likely enough, by the scores alone: no picture is judged on the way.

        sampler("a cat", policy="plan.json", stop=UntilLikely(0.9, confidence=0.8))

    It needs an adaptive plan, which has learnt how likely a score makes a reward and says how many rounds there may be.
    Raises UsageError for values that cannot be.
    """

    reward: float
    confidence: float  # above 0 and below 1

    def __post_init__(self) -> None:
        _check_reward(self.reward)
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence = {self.confidence:g}: must be between 0 and 1")

    def by(self, chances: Chances | None, rounds: int) -> "Likely":
        """The rule, with a plan's chances. Raises UsageError for a plan without them."""
        if chances is None:
            raise UsageError("confidence: the plan does not say how likely a reward is; make it again")
        return Likely(self.reward, self.confidence, chances, rounds)


@dataclass(frozen=True)
class ExpectedGain:
    """Rounds for as long as the next one is expected to gain more than `least_gain` (mean reward of the best k).

    Expected improvement (Mockus, 1978), see `expecting`. What another round is expected to gain cannot be said while
    fewer than k candidates wait, and the prompt then goes on.
    """

    least_gain: float
    expectation: Expectation
    rounds: int

    measured, threshold_name = "expected_gain", "least_gain"
    needs_rewards = False

    @property
    def threshold(self) -> float:
        return self.least_gain

    def measure(self, so_far: RoundsSoFar) -> Floats:
        waiting = np.isfinite(so_far.kth)
        gain = self.expectation.gain(so_far.champions, np.where(waiting, so_far.kth, 0), so_far.k)
        return np.where(waiting, gain, np.inf)

    def enough(self, measured: Floats) -> NDArray[np.bool_]:
        return measured <= self.least_gain


@dataclass(frozen=True)
class Likely:
    """`UntilLikely` with a plan's chances: by the k-th best score of those who wait."""

    reward: float
    confidence: float
    chances: Chances
    rounds: int

    measured, threshold_name = "chance", "confidence"
    needs_rewards = False

    @property
    def threshold(self) -> float:
        return self.confidence

    def measure(self, so_far: RoundsSoFar) -> Floats:
        waiting = np.isfinite(so_far.kth)
        return np.where(waiting, self.chances.of(np.where(waiting, so_far.kth, 0), self.reward), 0.0)

    def enough(self, measured: Floats) -> NDArray[np.bool_]:
        return measured >= self.confidence


def _check_reward(reward: float) -> None:
    if not math.isfinite(reward):
        raise UsageError(f"until = {reward:g}: must be a finite reward")
