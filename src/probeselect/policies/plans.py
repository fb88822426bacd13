"""Plans: schedules that were searched for. A fixed one, and one that opens candidates in rounds while that pays."""

import math
from dataclasses import dataclass

from probeselect.core.errors import UsageError
from probeselect.core.rungs import rung_after
from probeselect.policies.chances import Chances
from probeselect.policies.expecting import Expectation
from probeselect.policies.policy import RankPolicy, check_k
from probeselect.policies.schedule import Schedule
from probeselect.policies.stopping import ExpectedGain, Once, StoppingRule, UntilLikely


@dataclass(frozen=True)
class FixedPlan(RankPolicy):
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

    def count(self, running: int, rung_index: int) -> int:
        return self.keep[rung_index]

    def schedule(self, stop: StoppingRule | UntilLikely | None = None) -> Schedule:
        """One round of it, or by another rule several. Raises UsageError for a rule that needs an adaptive plan."""
        if isinstance(stop, UntilLikely):
            raise UsageError("confidence: needs a plan of `plan --adaptive`, which says how likely a reward is")
        return Schedule(self.n, self.k, self.rungs, self, stop or Once(), keeps=self.k)

    @property
    def rows(self) -> int:
        """Denoiser rows that it takes for one prompt."""
        counts, ends = (self.n, *self.keep), (*(step + 1 for step in self.steps), self.total_steps)
        return sum(count * (end - begin) for count, begin, end in zip(counts, (0, *ends[:-1]), ends, strict=True))

    @property
    def scored(self) -> int:
        """How many times a candidate is scored, for one prompt."""
        return sum((self.n, *self.keep[:-1]))

    def in_words(self) -> str:
        """Such as "6 -> 4 -> 1 at 25%, 40%"."""
        at = ", ".join(f"{rung:.0%}" for rung in self.rungs)
        return f"{' -> '.join(map(str, (self.n, *self.keep)))} at {at}"


@dataclass(frozen=True)
class RoundPlan:
    """An adaptive plan without its stopping rule: one round, and what of all rounds is finished.

    Of `n` candidates `keep[r]` go on after the 0-based step `steps[r]`. Those that come through the last rung wait;
    the best-scored of them is the round's champion. In the end the best `finish` of all who wait are finished, and the
    best k of them by the evaluator are kept.
    """

    n: int
    steps: tuple[int, ...]
    keep: tuple[int, ...]
    total_steps: int
    k: int
    finish: int

    @property
    def plan(self) -> FixedPlan:
        """One round alone; its k says nothing."""
        return FixedPlan(self.n, 1, self.steps, self.keep, self.total_steps)

    @property
    def left(self) -> int:
        """Steps that are left to those who are finished."""
        return self.total_steps - 1 - self.steps[-1]

    @property
    def first(self) -> int:
        """The first round, counted from 0, after which k candidates wait."""
        return -(-self.k // self.keep[-1]) - 1

    def rows(self, rounds: int, scoring_cost: float = 0.0) -> float:
        """Denoiser rows of one prompt that stops after so many rounds; scoring one candidate once costs some too."""
        plan, through = self.plan, self.keep[-1]
        each = plan.rows - through * self.left + scoring_cost * plan.scored
        return rounds * each + min(self.finish, rounds * through) * self.left


@dataclass(frozen=True)
class AdaptivePlan:
    """Opens a prompt's candidates in rounds, for as long as another round is expected to gain enough.

    Raises UsageError as FixedPlan does, and for rounds, a `finish` or a least gain that cannot be.
    """

    round: RoundPlan
    rounds: int  # maximum
    least_gain: float  # mean reward of the best k; a prompt stops when no more is expected
    expectation: Expectation
    chances: Chances | None = None  # of a champion's reward, by its score
    scorer: str = ""  # whose scores all of this is in units of, where it is known

    def __post_init__(self) -> None:
        check_k(self.k)
        through = self.rounds * self.round.plan.keep[-1]  # of a plan that can be
        if self.rounds < 1:
            raise UsageError(f"rounds = {self.rounds}: must be at least 1")
        if not self.k <= self.round.finish <= through:
            raise UsageError(
                f"finish = {self.round.finish}: must be from k = {self.k} to the {through} who pass the last rung"
            )
        numbers = (self.least_gain, *vars(self.expectation).values())
        if bad := [value for value in numbers if not math.isfinite(value)]:
            raise UsageError(f"least_gain and expectation: {bad[0]!r} is no finite number")
        if self.expectation.between <= 0:
            raise UsageError(f"expectation: between = {self.expectation.between:g}: a variance must be above 0")

    @property
    def n(self) -> int:
        """The most candidates that are opened."""
        return self.round.n * self.rounds

    @property
    def k(self) -> int:
        return self.round.k

    @property
    def total_steps(self) -> int:
        return self.round.total_steps

    @property
    def stop(self) -> ExpectedGain:
        return ExpectedGain(self.least_gain, self.expectation, self.rounds)

    def schedule(self, stop: StoppingRule | UntilLikely | None = None) -> Schedule:
        """Raises UsageError for a rule that an adaptive plan does not go with: it has its own."""
        if isinstance(stop, UntilLikely):
            stop = stop.by(self.chances, self.rounds)
        one = self.round
        return Schedule(
            one.n, one.k, one.plan.rungs, one.plan, stop or self.stop, finish=one.finish, keeps=one.k,
            scorer=self.scorer,
        )  # fmt: skip

    def in_words(self) -> str:
        return f"up to {self.rounds} rounds of {self.round.plan.in_words()}, {self.round.finish} finished"


Plan = FixedPlan | AdaptivePlan
