"""Score tables: what scorers said of the same candidates, and the rewards that they should have foreseen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probeselect.core.errors import UsageError
from probeselect.core.metrics import Floats
from probeselect.core.rungs import rung_of


@dataclass(frozen=True)
class ScorerScores:
    """What one scorer said: scores [P, N] after some 0-based steps; higher is better."""

    name: str
    scores: Mapping[int, Floats]

    def step_near(self, rung: float, total_steps: int) -> int:
        """The step with scores whose rung is nearest to `rung`; the earlier of two."""
        return min(sorted(self.scores), key=lambda step: abs(rung_of(step, total_steps) - rung))


@dataclass(frozen=True)
class ScoreTable:
    """P prompts of N candidates each: several scorers' scores, and one evaluator's rewards of the finished pictures.

    Entries that are not `valid` are never read. Raises UsageError where no prompt has two valid candidates.
    """

    evaluator: str
    rewards: Floats  # [P, N]
    valid: NDArray[np.bool_]  # [P, N]
    total_steps: int
    scorers: Sequence[ScorerScores]
    prompts: Sequence[str] = ()  # P of them, where they are known

    def __post_init__(self) -> None:
        if not (self.valid.sum(1) > 1).any():
            raise UsageError(f"{self.evaluator}: no prompt has two valid candidates, so there is nothing to choose")
