"""What of the bench can be counted instead of timed, and how its times are paired."""

from collections.abc import Callable

import pytest

from probeselect.diagnostics.bench import Paired, _operations, paired


def test_the_probe_is_cheap_at_the_shape_of_a_large_model():
    row = _operations()
    assert row["reference"] > 5e13  # ten rows of a 2.5 B denoiser on 4096 + 333 tokens
    assert 0 < row["ratio"] < 0.01


class FakeMachine:
    """Tasks that take so many seconds of a clock of its own, times how slow it is at that moment."""

    def __init__(self, slowness: Callable[[float], float]) -> None:
        self.now, self.slowness, self.order = 0.0, slowness, ""

    def task(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.order += name
            self.now += seconds * self.slowness(self.now)

        return run

    def measure(self, repeats: int, *seconds: float) -> Paired:
        tasks = [self.task(name, each) for name, each in zip("ABC", seconds, strict=False)]
        return paired(repeats, *tasks, clock=lambda: self.now)


def test_tasks_are_warmed_up_and_then_take_turns_in_alternating_order():
    machine = FakeMachine(lambda now: 1)
    times = machine.measure(3, 2.0, 5.0, 1.0)
    assert machine.order == "ABC" + "ABC" + "CBA" + "ABC"
    assert times.rounds == [[2, 5, 1]] * 3
    assert (times.seconds(1), times.ratio(), times.ratio(2, 0)) == (5, 0.4, 0.5)


def test_a_slow_spell_in_one_round_does_not_change_the_ratio():
    spell = range(14, 21)  # begins with the second round, which runs B first: B is slow and A is not
    times = FakeMachine(lambda now: 30 if now in spell else 1).measure(3, 2.0, 5.0)
    assert times.rounds[1] == [2, 150]
    assert times.ratio() == 0.4


def test_a_spell_that_covers_most_of_the_run_does_not_change_the_ratio():
    """Where the ratio of medians is off: A's median falls into the spell and B's does not."""
    times = Paired([[2, 5], [2, 5], [60, 150], [60, 150], [60, 5]])
    assert times.seconds(0) / times.seconds(1) > 5
    assert times.ratio() == pytest.approx(0.4)


def test_a_machine_that_slows_down_steadily_favours_neither_side():
    times = FakeMachine(lambda now: 1 + now / 100).measure(8, 4.0, 4.0)
    assert times.ratio() == pytest.approx(1, abs=0.01)
