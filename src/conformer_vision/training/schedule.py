"""The learning rate over a run that ends after so many steps, so many minutes, or both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds since the run began, those before an interruption included.

    Args:
        limit: seconds the run may take; None for no limit.
        now: a monotonic clock in seconds.
    """

    def __init__(self, limit: float | None = None, *, now: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.reserve = 0.0
        """Seconds at the end that are not for training but for the last validation."""
        self._now = now
        self._began: float | None = None
        self._before = 0.0
        self._told: float | None = None

    def start(self) -> None:
        self._began = self._now()

    def hold(self, elapsed: float) -> None:
        """Stand at another process's time until told the next, so that all take the same decisions."""
        self._told = elapsed

    @property
    def elapsed(self) -> float:
        return self.own if self._told is None else self._told

    @property
    def own(self) -> float:
        """Seconds by this process."""
        return self._before + (0.0 if self._began is None else self._now() - self._began)

    @property
    def left(self) -> float:
        """Seconds of training left; infinite without a limit."""
        return math.inf if self.limit is None else max(self.limit - self.reserve - self.elapsed, 0.0)

    @property
    def progress(self) -> float:
        """Share of the time for training that is gone, in [0, 1]; 0 without a limit."""
        if self.limit is None:
            return 0.0
        span = self.limit - self.reserve
        return min(self.elapsed / span, 1.0) if span > 0 else 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "reserve": self.reserve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = float(state["elapsed"])
        self.reserve = float(state["reserve"])


class WarmupCosine:
    """Factor of the learning rate at a step: linear warm-up, then a cosine down to ``floor``.

    The cosine stands at the larger of two shares, of the steps and of the time that are gone, so that
    a run cut short by the clock still anneals to the end.

    Args:
        total_steps: steps of the whole run, 1 or more.
        warmup_steps: steps of the warm-up; at most half of the run, so that the cosine is gone through.
        floor: factor at the end, in [0, 1].
        clock: the time that is gone.
    """

    def __init__(self, total_steps: int, warmup_steps: float, *, floor: float, clock: Clock) -> None:
        self.total_steps = total_steps
        self.warmup_steps = min(warmup_steps, total_steps / 2)
        self.floor = floor
        self.clock = clock

    def __call__(self, step: int) -> float:
        ramp = min((step + 1) / (self.warmup_steps + 1), 1.0)
        by_steps = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        progress = min(max(by_steps, self.clock.progress, 0.0), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return ramp * (self.floor + (1 - self.floor) * cosine)


def progressive_size(start: int, full: tuple[int, int], gone: float) -> tuple[int, int]:
    """Height and width of the training images in a run whose input grows in four equal parts.

    Args:
        start: pixels of the shorter side in the first part.
        full: height and width of the last part, at least ``start``.
        gone: share of the run that is gone, in [0, 1].

    Returns:
        Multiples of 8 pixels, but for the last part.
    """
    part = min(int(gone * 4), 3)
    if part == 3:
        return full
    shorter = start + (min(full) - start) * part / 3
    height, width = (max(round(side * shorter / min(full) / 8) * 8, 8) for side in full)
    return min(height, full[0]), min(width, full[1])
