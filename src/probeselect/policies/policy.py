"""Policies: scores of one group at a rung -> the candidates that go on, best first.

Knows `topk`, `halving` and `all`; plans are in `plans`. Does not know what a score means, and never compares candidates
of different prompts.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from probeselect.core.errors import UsageError


class Policy(Protocol):
    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        """Indices into `scores` [N] (one group, the candidates still running) that go on, best first."""
        ...


def best_first(scores: Tensor) -> list[int]:
    """Indices of `scores` [N] by falling score; ties keep candidate order, NaN ranks below everything."""
    values = scores.tolist()
    return sorted(range(len(values)), key=lambda i: (1, 0.0) if math.isnan(values[i]) else (0, -values[i]))


@dataclass(frozen=True)
class TopK:
    """Keeps the best k at every rung, so the first rung makes the cut and later ones only rank again."""

    k: int

    def __post_init__(self) -> None:
        check_k(self.k)

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        return best_first(scores)[: self.k]


@dataclass(frozen=True)
class Halving:
    """Keeps the better half (rounded down, never below k) at each of `rung_count` rungs, k at the last."""

    k: int
    rung_count: int = 1

    def __post_init__(self) -> None:
        check_k(self.k)

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        if rung_index >= self.rung_count:
            raise UsageError(f"policy halving: made for {self.rung_count} rungs, asked at rung {rung_index + 1}")
        last = rung_index == self.rung_count - 1
        return best_first(scores)[: self.k if last else max(self.k, len(scores) // 2)]


@dataclass(frozen=True)
class KeepAll:
    """Stops nobody; ranks only."""

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        return best_first(scores)


def check_k(k: int) -> None:
    """Raises UsageError for k < 1."""
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 candidate must be kept")
