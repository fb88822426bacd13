"""What is to be judged: scorers of the same candidates, and the rewards that they should have foreseen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats


@dataclass(frozen=True)
class Scorer:
    """Scores [P, N] after some 0-based steps."""

    name: str
    scores: Mapping[int, Floats]

    def step_near(self, rung: float, total_steps: int) -> int:
        """The step with scores whose rung, (step + 1) / total_steps, is nearest to `rung`; the earlier of two."""
        return min(sorted(self.scores), key=lambda step: abs((step + 1) / total_steps - rung))


@dataclass(frozen=True)
class Judged:
    """Scorers of the same candidates, and the evaluator's rewards of the finished pictures."""

    evaluator: str
    rewards: Floats  # [P, N]
    valid: NDArray[np.bool_]  # [P, N]
    total_steps: int
    scorers: Sequence[Scorer]
    prompts: Sequence[str] = ()  # P of them, where they are known

    def __post_init__(self) -> None:
        if not (self.valid.sum(1) > 1).any():
            raise UsageError(f"{self.evaluator}: no prompt has two valid candidates, so there is nothing to choose")
