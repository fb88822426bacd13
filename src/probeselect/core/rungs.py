"""Rungs: the one place where a fraction of the trajectory becomes a number of steps, and back.

A rung is completed steps / total steps, strictly between 0 and 1. `total_steps` counts the `scheduler.step`
calls of a full run (a Heun-like scheduler makes 2n - 1 of them for n inference steps).
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from probeselect.core.errors import UsageError

MOST_OFF = 0.05  # that data of a rung may lie beside it
ROUNDING = 1e-9  # a product that falls short of a half only by float error (0.29 * 50) counts as a half


def completed_steps(rung: float, total_steps: int) -> int:
    """Steps a candidate has done at `rung`: the nearest, half up, and always within [1, total_steps - 1].

    Raises UsageError for a rung outside (0, 1) and for fewer than 2 steps, which leave no room for a rung.
    """
    validate_rungs([rung])
    _check_total(total_steps)
    return min(max(math.floor(rung * total_steps + 0.5 + ROUNDING), 1), total_steps - 1)


def step_at(rung: float, total_steps: int) -> int:
    """The 0-based step that ends at `rung`: `completed_steps` less one. Raises UsageError as that does."""
    return completed_steps(rung, total_steps) - 1


def rung_of(step: int, total_steps: int) -> float:
    """Where a candidate is once the 0-based `step` is done: (step + 1) / total_steps, so 1 after the last step."""
    return (step + 1) / total_steps


def rung_after(step: int, total_steps: int) -> float:
    """`rung_of` a step where candidates can be stopped; `completed_steps` inverts it.

    Raises UsageError for a step that is not followed by another one: there is nothing left to save.
    """
    _check_total(total_steps)
    if not 0 <= step < total_steps - 1:
        raise UsageError(f"step {step} of {total_steps}: a rung's step must be from 0 to {total_steps - 2}")
    return rung_of(step, total_steps)


def validate_rungs(rungs: Sequence[float]) -> tuple[float, ...]:
    """The rungs as floats. Raises UsageError unless there is one, all lie in (0, 1) and they increase."""
    values = tuple(float(rung) for rung in rungs)
    inside = all(0 < value < 1 for value in values)  # false for NaN
    if not values or not inside or any(a >= b for a, b in pairwise(values)):
        raise UsageError(
            f"rungs = {','.join(map(str, values)) or 'none'}: give increasing fractions between 0 and 1, "
            "like 0.2 or 0.2,0.4"
        )
    return values


def check_apart(rungs: Sequence[float], total_steps: int) -> None:
    """Raises UsageError when two rungs fall on the same step of so many."""
    steps = [completed_steps(rung, total_steps) for rung in rungs]
    for (a, b), (first, second) in zip(pairwise(rungs), pairwise(steps), strict=True):
        if first == second:
            raise UsageError(f"rungs = {a:g},{b:g}: both fall on step {first} of {total_steps}; put them further apart")


def check_met(rungs: Sequence[float], total_steps: int) -> None:
    """Raises UsageError when two rungs fall on one of so many steps, or one lies too far from the step it falls on.

    Data is kept under the rung that was asked for, so that must be where it was taken.
    """
    check_apart(rungs, total_steps)
    for rung in rungs:
        step = completed_steps(rung, total_steps)
        if abs(step / total_steps - rung) > MOST_OFF + ROUNDING:
            raise UsageError(
                f"rungs = {rung:g}: falls on step {step} of {total_steps}, which is {step / total_steps:.2g}; "
                f"give {step / total_steps:.2g}, or more steps"
            )


def _check_total(total_steps: int) -> None:
    if total_steps < 2:
        raise UsageError(f"total steps = {total_steps}: a rung needs a run of at least 2 steps")
