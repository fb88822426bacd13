"""Step <-> fraction arithmetic against exact decimals."""

import math
from fractions import Fraction

import pytest

from probeselect.core.errors import UsageError
from probeselect.core.rungs import check_apart, check_met, completed_steps, rung_after, validate_rungs


@pytest.mark.parametrize(
    ("rung", "total", "steps"),
    [
        (0.2, 20, 4),
        (0.2, 50, 10),
        (0.2, 28, 6),
        (0.25, 10, 3),  # 2.5, half up
        (0.35, 10, 4),
        (0.29, 50, 15),  # 14.499999999999998 in floats, 14.5 in decimals
        (0.01, 20, 1),
        (0.99, 20, 19),
        (0.2, 39, 8),  # a Heun run of 20 inference steps
        (0.5, 2, 1),
    ],
)
def test_completed_steps(rung: float, total: int, steps: int) -> None:
    assert completed_steps(rung, total) == steps


@pytest.mark.parametrize("total", [2, 7, 20, 28, 39, 50, 1000])
def test_completed_steps_rounds_decimals_half_up(total: int) -> None:
    for thousandths in range(1, 1000):
        exact = math.floor(Fraction(thousandths, 1000) * total + Fraction(1, 2))
        assert completed_steps(thousandths / 1000, total) == min(max(exact, 1), total - 1)


def test_rung_after_is_inverted_by_completed_steps() -> None:
    for total in range(2, 130):
        for step in range(total - 1):
            assert completed_steps(rung_after(step, total), total) == step + 1


@pytest.mark.parametrize("step", [-1, 19, 20])
def test_rung_after_refuses_steps_without_a_next(step: int) -> None:
    with pytest.raises(UsageError, match=f"step {step} of 20: .* from 0 to 18"):
        rung_after(step, 20)


@pytest.mark.parametrize("total", [1, 0, -3])
def test_a_rung_needs_two_steps(total: int) -> None:
    with pytest.raises(UsageError, match=f"total steps = {total}: .* at least 2"):
        completed_steps(0.5, total)


def test_validate_rungs_returns_floats() -> None:
    assert validate_rungs([0.1, 0.2, 0.9]) == (0.1, 0.2, 0.9)


@pytest.mark.parametrize(
    "rungs", [[], [0.0], [1.0], [-0.1], [math.nan], [math.inf], [0.4, 0.2], [0.2, 0.2], [0.2, math.nan]]
)
def test_validate_rungs_refuses(rungs: list[float]) -> None:
    with pytest.raises(UsageError, match=r"rungs = .*increasing fractions between 0 and 1"):
        validate_rungs(rungs)


@pytest.mark.parametrize("rung", [0.0, 1.0, math.nan])
def test_completed_steps_refuses_what_is_no_rung(rung: float) -> None:
    with pytest.raises(UsageError, match="rungs = "):
        completed_steps(rung, 20)


@pytest.mark.parametrize(("rungs", "total"), [((0.1, 0.2), 4), ((0.2, 0.21), 20), ((0.1, 0.5, 0.52), 10)])
def test_rungs_on_one_step_are_refused(rungs, total):
    with pytest.raises(UsageError, match=f"of {total}; put them further apart"):
        check_apart(rungs, total)
    check_apart(rungs, 1000)


@pytest.mark.parametrize(("rungs", "total", "met"), [((0.2,), 3, "0.33"), ((0.2,), 2, "0.5"), ((0.25, 0.9), 4, "0.75")])
def test_a_rung_that_few_steps_cannot_meet_is_refused_for_data(rungs, total, met):
    with pytest.raises(UsageError, match=f"of {total}, which is .*; give .*, or more steps") as error:
        check_met(rungs, total)
    assert f"give {met}" in str(error.value)


def test_a_rung_may_lie_half_a_step_of_ten_beside_its_step():
    check_met((0.2, 0.45), 10)
    check_met((0.1, 0.2, 0.4), 20)
    check_met((0.2,), 4)
