"""Times of calls that take turns, and what follows from them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP = 2
"""Rounds that are not timed."""
FEWEST = 3
"""Rounds that are timed whatever they take, where so many are wanted."""
REST = 0.06
"""Seconds of rest before a turn: onnxruntime's threads spin on for 40 ms after a call, OpenMP's for 8."""
PERCENTILES = (50, 90, 99)


def take_turns(
    calls: Sequence[Callable[[], object]],
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    rest: Callable[[float], None] = time.sleep,
) -> list[list[float]]:
    """Milliseconds of every call in every round.

    In a round each call has one turn, so that whatever else slows the machine slows all of them; the order
    is shuffled, so that none always follows the same other one.

    Args:
        calls: each returns when its work is done, on a GPU too.
        rounds: to time, after two to warm up.
        seconds: no further round begins after them, once there are three.
        clock: gives seconds.
        rest: waits for seconds.

    Returns:
        Per call, in the order of ``calls``, one time per round.
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


@dataclass(frozen=True)
class Ratio:
    """How many times faster than a baseline, from rounds that both were in; above 1 is faster."""

    median: float
    """Of the baseline's times over the median of the call's."""
    low: float
    """Lower quartile of the rounds' own ratios."""
    high: float
    """Upper quartile of the rounds' own ratios."""


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """``p50`` (the median), ``p90`` and ``p99``, interpolated linearly between the times."""
    return {
        f"p{p}": float(value) for p, value in zip(PERCENTILES, np.percentile(times, PERCENTILES), strict=True)
    }


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """The baseline's times over these.

    Args:
        times: one per round.
        baseline: of the same rounds.
    """
    low, high = np.percentile(np.divide(baseline, times), (25, 75))
    return Ratio(float(np.median(baseline) / np.median(times)), float(low), float(high))


def share_of_ceiling(macs: int, images_per_second: float, ceiling: float) -> float:
    """Share of the machine's matrix products that a network reaches.

    Args:
        macs: multiply-adds per image.
        images_per_second: through the network.
        ceiling: multiply-adds per second.
    """
    return macs * images_per_second / ceiling
