"""What follows from the times of calls that took turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 99)


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
