"""Calls that take turns, with a clock of the test's own."""

import pytest

from conformer_vision.benchmark.timing import take_turns


class Clock:
    """Time that passes when a call works or rests."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[str] = []

    def call(self, name: str, *seconds: float) -> object:
        left = list(seconds)

        def work() -> None:
            self.turns.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work

    def __call__(self) -> float:
        return self.now

    def rest(self, seconds: float) -> None:
        self.now += seconds


def turns(clock: Clock, calls: list[object], *, rounds: int, seconds: float = 1e9) -> list[list[float]]:
    return take_turns(calls, rounds=rounds, seconds=seconds, clock=clock, rest=clock.rest)  # type: ignore[arg-type]


def test_everything_has_one_timed_turn_per_round_after_two_to_warm_up() -> None:
    clock = Clock()
    calls = [clock.call("a", 9, 8, 0.1, 0.2, 0.4), clock.call("b", 9, 8, 0.3)]
    times = turns(clock, calls, rounds=3)
    assert times[0] == pytest.approx([100, 200, 400])
    assert times[1] == pytest.approx([300, 300, 300])
    rounds = [clock.turns[start : start + 2] for start in range(0, 10, 2)]
    assert all(sorted(names) == ["a", "b"] for names in rounds)


def test_no_call_always_follows_the_same_other_one() -> None:
    clock = Clock()
    turns(clock, [clock.call(name, 1) for name in "abc"], rounds=10)
    assert len({tuple(clock.turns[start : start + 3]) for start in range(0, 36, 3)}) > 2


@pytest.mark.parametrize(("rounds", "seconds", "done"), [(9, 4.5, 5), (9, 0.001, 3), (2, 0.001, 2)])
def test_ends_after_the_seconds_but_not_before_three_rounds(rounds: int, seconds: float, done: int) -> None:
    clock = Clock()
    (times,) = turns(clock, [clock.call("a", 1)], rounds=rounds, seconds=seconds)
    assert len(times) == done
