"""Time calls that take turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

WARM_UP = 2
"""Rounds that are not timed."""
FEWEST = 3
"""Rounds that are timed however long they take, if that many are wanted."""
REST = 0.06
"""Seconds between turns: onnxruntime's threads spin for 40 ms after a call, OpenMP's for 8."""


def take_turns(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> list[list[float]]:
    """Time every call once per round, in milliseconds.

    Whatever slows the machine down for a while slows all calls, because all have a turn in each round. The
    order is shuffled, so that no call always follows the same other one.

    Args:
        calls: Each returns when its work is done, on a GPU too.
        rounds: How many to time, after two that are not.
        seconds: No new round begins after this time, once three are timed.
        clock: Returns seconds.
        rest: Waits for a number of seconds.

    Returns:
        One list per call, in the order of ``calls``, with one time per round.
    """
    times: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    shuffler = random.Random(0)
    start = clock()
    for number in range(-WARM_UP, rounds):
        if number == 0:
            start = clock()
        if number >= FEWEST and clock() - start >= seconds:
            break
        shuffler.shuffle(order)
        for index in order:
            rest(REST)
            begin = clock()
            calls[index]()
            end = clock()
            if number >= 0:
                times[index].append(1e3 * (end - begin))
    return times
