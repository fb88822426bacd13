"""Policies: scores of one prompt's candidates at a rung -> those that go on, best first.

One place to add a policy: a class, and its row in POLICIES. Does not know what a score means, and never compares
candidates of different prompts. Plans (`plans`) are policies that were searched for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from probeselect.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class Policy(Protocol):
    """Any callable of this form is a policy. One that keeps the best so many should be a `RankPolicy`."""

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        """Indices into `scores` [N] (the candidates of one prompt that still run) that go on, best first."""
        ...


class RankPolicy:
    """Keeps the best-scored; how many is all that it decides, so that tables can be replayed in one go."""

    def count(self, running: int, rung_index: int) -> int:
        """How many of `running` candidates go on after the rung of this index, counted from 0."""
        raise NotImplementedError

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        return best_first(scores)[: self.count(len(scores), rung_index)]


def best_first(scores: Tensor) -> list[int]:
    """Indices of `scores` [N] by falling score; ties keep candidate order, NaN ranks below everything."""
    values = scores.tolist()
    return sorted(range(len(values)), key=lambda i: (1, 0.0) if math.isnan(values[i]) else (0, -values[i]))


@dataclass(frozen=True)
class TopK(RankPolicy):
    """Keeps the best k at every rung, so the first rung makes the cut and later ones only rank again."""

    k: int

    def __post_init__(self) -> None:
        check_k(self.k)

    def count(self, running: int, rung_index: int) -> int:
        return self.k


@dataclass(frozen=True)
class Halving(RankPolicy):
    """Keeps the better half (rounded down, never below k) at each of `rung_count` rungs, k at the last."""

    k: int
    rung_count: int = 1

    def __post_init__(self) -> None:
        check_k(self.k)

    def count(self, running: int, rung_index: int) -> int:
        if rung_index >= self.rung_count:
            raise UsageError(f"policy halving: made for {self.rung_count} rungs, asked at rung {rung_index + 1}")
        last = rung_index == self.rung_count - 1
        return self.k if last else max(self.k, running // 2)


@dataclass(frozen=True)
class KeepAll(RankPolicy):
    """Stops nobody; ranks only."""

    def count(self, running: int, rung_index: int) -> int:
        return running


# Of k and the number of rungs. The names are what `--policy` and `policy=` take, beside a plan.json.
POLICIES: Mapping[str, Callable[[int, int], Policy]] = {
    "topk": lambda k, rung_count: TopK(k),
    "halving": Halving,
    "all": lambda k, rung_count: KeepAll(),
}


def check_k(k: int) -> None:
    """Raises UsageError for k < 1."""
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 candidate must be kept")
