"""Policies: scores of one group at a rung -> the candidates that go on, best first.

Knows `topk`, `halving`, `all` and the plans of a plan.json: a fixed one, and an adaptive one that opens candidates in
waves until one is good enough. Does not know what a score means, and never compares candidates of different prompts.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.rungs import rung_after


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
        _check_k(self.k)

    def __call__(self, scores: Tensor, rung_index: int) -> list[int]:
        return best_first(scores)[: self.k]


@dataclass(frozen=True)
class Halving:
    """Keeps the better half (rounded down, never below k) at each of `rung_count` rungs, k at the last."""

    k: int
    rung_count: int = 1

    def __post_init__(self) -> None:
        _check_k(self.k)

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
        _check_k(self.k)
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
    """Opens a prompt's candidates in waves, and stops as soon as the best ones score well enough.

    Of each wave's candidates `keep[r]` go on after the 0-based step `steps[r]`, like those of a FixedPlan. Those that
    come through the last rung wait there. When the mean score of the best k who wait is no less than `thresholds[w]`
    after wave w, they are finished; else another wave is opened, and after the last one they are finished anyway.

    Raises UsageError as FixedPlan does, and unless the thresholds are numbers that do not rise.
    """

    wave: int
    k: int
    steps: tuple[int, ...]
    keep: tuple[int, ...]
    thresholds: tuple[float, ...]  # of every wave but the last
    total_steps: int

    def __post_init__(self) -> None:
        _check_k(self.k)
        FixedPlan(self.wave, 1, self.steps, self.keep, self.total_steps)
        falling = sorted(self.thresholds, reverse=True) == list(self.thresholds)
        if not falling or not all(map(math.isfinite, self.thresholds)):
            raise UsageError(f"thresholds {list(self.thresholds)}: must be numbers that do not rise from wave to wave")
        if (most := self.waves * self.keep[-1]) < self.k:
            raise UsageError(f"k = {self.k}: only {most} candidates come through the last rung")

    @property
    def waves(self) -> int:
        """The most that are opened."""
        return len(self.thresholds) + 1

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

    def enough(self, wave: int, level: float, waiting: int) -> bool:
        """Whether to finish after this wave, the first being 0. level: mean score of the best k of those waiting."""
        return wave == self.waves - 1 or (waiting >= self.k and level >= self.thresholds[wave])


def load_policy(name_or_path: str | Path, k: int, rung_count: int = 1) -> Policy:
    """The policy called `topk`, `halving` (over `rung_count` rungs) or `all`, or the plan in a JSON file.

    Raises UsageError for k < 1, an unknown name, and a plan that is unreadable or keeps another k.
    """
    _check_k(k)
    match str(name_or_path):
        case "topk":
            return TopK(k)
        case "halving":
            return Halving(k, rung_count)
        case "all":
            return KeepAll()
    plan = load_plan(Path(name_or_path))
    if plan.k != k:
        raise UsageError(f"k = {k}: the plan {name_or_path} is made for k = {plan.k}")
    return plan


def load_plan(path: Path) -> FixedPlan | AdaptivePlan:
    """Reads plan.json (format 1), fixed or adaptive. Raises UsageError that opens with the file's name and says what is wrong.

    Fields that do not steer the choice (rows, expected, interval, baselines) are not looked at.
    """
    if not path.is_file():
        raise UsageError(f"policy {path}: neither topk, halving or all, nor a plan file")
    try:
        return _plan_of(json.loads(path.read_bytes()))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a readable JSON file ({error})") from error


def _plan_of(fields: Any) -> FixedPlan | AdaptivePlan:
    if not isinstance(fields, dict):
        raise UsageError("must hold a JSON object")
    if (kind := fields.get("kind", "fixed")) not in ("fixed", "adaptive"):
        raise UsageError(f"kind = {kind!r}: must be 'fixed', 'adaptive' or left out")
    if (version := _integer(fields, "format")) != 1:
        raise UsageError(f"format = {version}: must be 1")
    rungs = fields.get("rungs")
    if not isinstance(rungs, list) or not all(isinstance(rung, dict) for rung in rungs):
        raise UsageError('rungs: must be a list of {"step": ..., "keep": ...}')
    n, k, total_steps = (_integer(fields, name) for name in ("n", "k", "total_steps"))
    steps = tuple(_integer(rung, "step") for rung in rungs)
    keep = tuple(_integer(rung, "keep") for rung in rungs)
    if kind == "fixed":
        return FixedPlan(n, k, steps, keep, total_steps)
    thresholds = fields.get("thresholds")
    if not isinstance(thresholds, list) or not all(type(each) in (int, float) for each in thresholds):
        raise UsageError("thresholds: must be a list of numbers, one for every wave but the last")
    plan = AdaptivePlan(_integer(fields, "wave"), k, steps, keep, tuple(map(float, thresholds)), total_steps)
    if n != plan.n:
        raise UsageError(f"n = {n}: must be {plan.n}, which is {plan.waves} waves of {plan.wave}")
    return plan


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int:  # to isinstance, true and false are integers
        raise UsageError(f"{name} = {value!r}: must be a whole number")
    return value


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 candidate must be kept")
