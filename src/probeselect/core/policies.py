"""Policies: scores of one group at a rung -> the candidates that go on, best first.

Knows `topk`, `halving`, `all` and the plans of a plan.json: a fixed one, and an adaptive one that opens candidates in
waves for as long as that pays. Does not know what a score means, and never compares candidates of different prompts.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from probeselect.core.errors import UsageError
from probeselect.core.expecting import Expectation
from probeselect.core.rungs import rung_after, validate_rungs


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

    def __post_init__(self) -> None:
        _check_k(self.k)
        FixedPlan(self.wave, 1, self.steps, self.keep, self.total_steps)
        if self.waves < 1:
            raise UsageError(f"waves = {self.waves}: must be at least 1")
        most = self.waves * self.keep[-1]
        if not self.k <= self.finish <= most:
            raise UsageError(f"finish = {self.finish}: must be from k = {self.k} to the {most} who pass the last rung")
        if numbers := [value for value in (self.least_gain, *vars(self.expectation).values()) if not _finite(value)]:
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


Plan = FixedPlan | AdaptivePlan


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


def check_schedule(
    n: int | None, k: int | None, rungs: Sequence[float], policy: str | Policy
) -> tuple[int, int, tuple[float, ...], Policy]:
    """n, k, rungs and policy of a call, checked against each other. Raises UsageError; needs no model."""
    if policy not in ("topk", "halving", "all") and isinstance(policy, str):
        policy = load_plan(Path(policy))
    if isinstance(policy, Plan):
        n, k, rungs = n or policy.n, k or policy.k, policy.rungs
        if (n, k) != (policy.n, policy.k):
            raise UsageError(f"n = {n}, k = {k}: the plan is made for n = {policy.n}, k = {policy.k}")
    n, k = (5 if n is None else n), (1 if k is None else k)
    if n < 1:
        raise UsageError(f"n = {n}: at least 1 candidate per prompt is needed")
    if not 1 <= k <= n:
        raise UsageError(f"k = {k}: must be from 1 to n = {n}")
    decide = load_policy(policy, k, len(rungs)) if isinstance(policy, str) else policy
    if isinstance(decide, KeepAll) and not rungs:
        return n, k, (), decide
    return n, k, validate_rungs(rungs), decide


def load_plan(path: Path) -> Plan:
    """Reads plan.json (format 1), fixed or adaptive. Raises UsageError that opens with the file's name and says what is
    wrong.

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


def _plan_of(fields: Any) -> Plan:
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
    wave, finish = _integer(fields, "wave"), _integer(fields, "finish")
    if wave < 1 or n % wave:
        raise UsageError(f"n = {n}: must be some waves of {wave}")
    names = [field.name for field in dataclasses.fields(Expectation)]
    told = fields.get("expectation")
    if not isinstance(told, dict) or set(told) != set(names):
        raise UsageError(f"expectation: must be an object of {', '.join(names)}")
    expectation = Expectation(**{name: _number(told, name) for name in names})
    least_gain = _number(fields, "least_gain")
    return AdaptivePlan(wave, n // wave, k, steps, keep, finish, least_gain, expectation, total_steps)


def _number(fields: dict[str, Any], name: str) -> float:
    value: Any = fields.get(name)
    if not _finite(value):
        raise UsageError(f"{name} = {value!r}: must be a finite number")
    return float(value)


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int:  # to isinstance, true and false are integers
        raise UsageError(f"{name} = {value!r}: must be a whole number")
    return value


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 candidate must be kept")
