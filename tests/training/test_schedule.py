"""The learning rate over a run, with a clock that the test turns."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformer_vision.training.schedule import Clock, progressive_size, warmup_cosine


class Hand:
    """What a clock reads: turned by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def schedule(
    total: int, warmup: float, *, floor: float = 0.01, clock: Clock | None = None
) -> Callable[[float], float]:
    def factor(step: float) -> float:
        passed = 0.0 if clock is None else clock.progress
        return warmup_cosine(step, total, warmup, floor=floor, passed=passed)

    return factor


def test_warms_up_linearly_and_falls_to_the_floor() -> None:
    factor = schedule(1000, 99)
    assert [factor(step) for step in (0, 49, 98)] == pytest.approx([0.01, 0.5, 0.99])
    assert max(map(factor, range(1000))) == pytest.approx(1, abs=1e-3)
    assert factor(99 + 901 // 2) == pytest.approx(0.505, abs=2e-3)  # half way down
    assert factor(999) == pytest.approx(0.01, abs=1e-4)
    assert factor(1000) == factor(2000) == pytest.approx(0.01)


def test_warmup_leaves_half_of_a_short_run_for_the_cosine() -> None:
    factor = schedule(100, 5000)
    values = [factor(step) for step in range(100)]
    assert values.index(max(values)) == pytest.approx(50, abs=1)
    assert values[-1] < 0.02


@given(
    total=st.integers(1, 300),
    warmup=st.floats(0, 400),
    floor=st.floats(0, 1),
)
def test_stays_between_zero_and_one_and_falls_after_the_warmup(
    total: int, warmup: float, floor: float
) -> None:
    factor = schedule(total, warmup, floor=floor)
    values = [factor(step) for step in range(total + 1)]
    assert all(0 < value <= 1 for value in values if floor > 0)
    assert all(0 <= value <= 1 for value in values)
    warmup = min(warmup, total / 2)
    rising, falling = values[: math.floor(warmup) + 1], values[math.ceil(warmup) :]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert values[-1] == pytest.approx(floor)


def test_time_that_runs_out_takes_the_rate_to_its_end() -> None:
    hand = Hand()
    clock = Clock(60, now=hand)
    factor = schedule(10**6, 10, clock=clock)
    clock.start()
    assert factor(100) == pytest.approx(1, abs=1e-6)  # by the steps the run has hardly begun
    seen = []
    for step in range(100, 161):
        seen.append(factor(step))
        hand.now += 1
    assert seen == sorted(seen, reverse=True)
    assert seen[30] == pytest.approx(0.505, abs=1e-3)
    assert factor(161) == pytest.approx(0.01)
    assert clock.left == 0


def test_the_steps_decide_where_they_are_ahead_of_the_clock() -> None:
    clock = Clock(10**6, now=Hand())
    clock.start()
    assert schedule(100, 0, clock=clock)(100) == pytest.approx(0.01)


def test_clock_without_limit() -> None:
    hand = Hand()
    clock = Clock(now=hand)
    assert clock.elapsed == 0
    clock.start()
    hand.now += 5
    assert (clock.elapsed, clock.left, clock.progress) == (5, math.inf, 0)


def test_time_of_the_last_validation_is_kept_back() -> None:
    hand = Hand()
    clock = Clock(100, now=hand)
    clock.start()
    clock.reserve = 20
    hand.now += 60
    assert clock.left == 20
    assert clock.progress == 0.75
    hand.now += 60
    assert (clock.left, clock.progress) == (0, 1)
    clock.reserve = 200  # a validation longer than the run
    assert (clock.left, clock.progress) == (0, 1)


def test_clock_goes_on_from_its_state() -> None:
    first, second = Hand(), Hand()
    clock = Clock(100, now=first)
    clock.start()
    clock.reserve = 10
    first.now += 30
    later = Clock(100, now=second)
    later.load_state_dict(clock.state_dict())
    assert later.elapsed == 30  # the time in between does not count
    later.start()
    second.now += 20
    assert (later.elapsed, later.left) == (50, 40)


def test_the_input_grows_in_four_parts() -> None:
    shares = (0.0, 0.24, 0.25, 0.49, 0.5, 0.74, 0.75, 1.0)
    seen = [progressive_size(128, (224, 224), gone) for gone in shares]
    assert seen == [(side, side) for side in (128, 128, 160, 160, 192, 192, 224, 224)]
    assert progressive_size(32, (64, 96), 0.0) == (32, 48)
    assert progressive_size(33, (35, 70), 0.99) == (35, 70)
