"""A schedule: how many candidates are opened, where they are scored, who goes on, and when it is enough."""

from dataclasses import dataclass

from probeselect.core.errors import UsageError
from probeselect.core.rungs import validate_rungs
from probeselect.policies.policy import Policy, check_k
from probeselect.policies.stopping import Once, StoppingRule

ONCE = Once()


@dataclass(frozen=True)
class Schedule:
    """What a run does with the candidates of each prompt, round after round.

    Raises UsageError for an n, a k or rungs that cannot be.
    """

    n: int  # candidates of a prompt in each round
    k: int  # pictures to keep
    rungs: tuple[float, ...]
    policy: Policy
    stop: StoppingRule = ONCE
    finish: int | None = None  # of all who wait after the last rung; None: everyone
    keeps: int | None = None  # of the finished; None: all that the policy let through
    scorer: str = ""  # whose scores it was planned with, where it is known

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError(f"n = {self.n}: at least 1 candidate per prompt is needed")
        check_k(self.k)
        if self.k > self.most:
            raise UsageError(f"k = {self.k}: must be from 1 to n = {self.n}")
        if self.rungs:
            validate_rungs(self.rungs)

    @property
    def most(self) -> int:
        """The most candidates of a prompt."""
        return self.n * self.stop.rounds
