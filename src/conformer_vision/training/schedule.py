"""The schedule of a run that ends after a number of steps, a number of minutes, or both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import interpolate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .groups import ScheduleConfig
from .pace import Pace

FORWARD_SHARE = 0.35
"""Of the time of a training step, what the same images take without a backward pass."""


class Clock(Callback):
    """Measures how long training has taken, interruptions left out, and how much time it has left.

    With several processes all follow the first one's clock, so that they take the same decisions.

    Args:
        limit: seconds the run may take; None for no limit.
        pace: says when several processes hear the first one's clock; None for in every step.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self,
        limit: float | None = None,
        *,
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.pace = pace
        self.reserve = 0.0
        """Seconds at the end that are kept for the last validation: what the previous one took."""
        self._now = now
        self._began: float | None = None
        self._before = 0.0
        self._told: float | None = None
        self._val_began = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._own if self._told is None else self._told

    @property
    def _own(self) -> float:
        return self._before + (0.0 if self._began is None else self._now() - self._began)

    @property
    def left(self) -> float:
        """Seconds of training left; infinite without a limit."""
        return math.inf if self.limit is None else max(self.limit - self.reserve - self.elapsed, 0.0)

    @property
    def progress(self) -> float:
        """Share of the training time that has passed, in [0, 1]; 0 without a limit."""
        if self.limit is None:
            return 0.0
        span = self.limit - self.reserve
        return min(self.elapsed / span, 1.0) if span > 0 else 1.0

    def start(self) -> None:
        """Start to count."""
        self._began = self._now()

    def add(self, seconds: float) -> None:
        """Count what was done for the run before it began."""
        self._before += seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        told = trainer.world_size > 1 and self.pace is not None and not self.pace.begins
        if self.limit is not None and not told:
            self._told = trainer.strategy.broadcast(self._own)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._val_began = self._now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.reserve = trainer.strategy.broadcast(self._now() - self._val_began)

    def state_dict(self) -> dict[str, Any]:
        return {"elapsed": self.elapsed, "reserve": self.reserve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["elapsed"])
        self.reserve = float(state_dict["reserve"])


class Schedule:
    """The learning rate and the input size over a run; a run limited by time is annealed by time.

    Args:
        config: length and shape of the schedule.
        lr: peak learning rate.
    """

    def __init__(self, config: ScheduleConfig, *, lr: float) -> None:
        self.config = config
        self.lr = lr
        self.pace = Pace()
        self.clock = Clock(None if config.max_minutes is None else 60 * config.max_minutes, pace=self.pace)
        self.total_steps = 1
        """Optimizer steps of the whole run, unless time ends it earlier; `scheduler` sets it."""
        self.frozen_steps = 0
        """Those among them in which only the heads learn; `scheduler` sets it."""

    def scheduler(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """Make the scheduler of an optimizer for a run of so many steps; see `ClassifierModule`."""
        per_epoch = total_steps / self.config.epochs
        self.total_steps = min(total_steps, self.config.max_steps or total_steps)
        self.frozen_steps = round(self.config.freeze_share * self.total_steps)
        warmup = self.config.warmup_epochs * per_epoch
        # A plain function: of a callable object torch would put the attributes, the clock among them, into
        # the checkpoint, which then could not be read without running code from it.
        return LambdaLR(
            optimizer,
            lambda step: self._factor(step, warmup),
        )

    def _factor(self, step: int, warmup: float) -> float:
        """Return the factor on the peak learning rate, in the stage that a step belongs to."""
        frozen, share, passed = self.frozen_steps, self.config.freeze_share, self.clock.progress
        if step < frozen:
            steps, scale, passed = frozen, 1.0, min(passed / share, 1.0)
        else:
            step, steps = step - frozen, max(self.total_steps - frozen, 1)
            scale = self.config.last_stage_scale
            passed = (passed - share) / (1 - share) if share < 1 else passed
        floor = min(self.config.min_lr / (self.lr * scale), 1.0)
        return scale * warmup_cosine(step, steps, warmup, floor=floor, passed=passed)

    def is_frozen(self, step: int) -> bool:
        """Tell whether only the heads learn in a step; once the clock has ended that, it stays ended."""
        if step < self.frozen_steps and self.clock.progress >= self.config.freeze_share < 1:
            self.frozen_steps = step
        return step < self.frozen_steps

    def work(self, step: int) -> float:
        """Return the work of a run up to a step, in steps that train all layers."""
        frozen = min(step, self.frozen_steps)
        return frozen * FORWARD_SHARE + step - frozen

    def resize(self, images: Tensor, step: int) -> Tensor:
        """Resize images (B, C, H, W) to the size that a run with `progressive_from` trains at."""
        start = self.config.progressive_from
        if start is None:
            return images
        done = max(step / self.total_steps, self.clock.progress)
        size = progressive_size(start, (images.shape[2], images.shape[3]), done)
        if size == tuple(images.shape[2:]):
            return images
        return interpolate(images, size=size, mode="bilinear", antialias=True)

    def seconds_left(self, step: int) -> float:
        """Estimate the seconds left from the steps done so far and from the clock, whichever ends first."""
        done = self.work(step)
        by_steps = self.clock.elapsed * (self.work(self.total_steps) - done) / (done or 1)
        return min(by_steps, self.clock.left + self.clock.reserve)


def warmup_cosine(done: float, total: int, warmup: float, *, floor: float, passed: float = 0.0) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine down to `floor`.

    The cosine follows the larger of two shares: of the steps done and of the time passed. So a run that the
    clock cuts short is still annealed to the end.

    Args:
        done: steps before this one.
        total: steps of the whole run, 1 or more.
        warmup: steps of the warm-up, limited to half of the run.
        floor: factor at the end, in [0, 1].
        passed: share of the time that has passed, in [0, 1].
    """
    warmup = min(warmup, total / 2)
    ramp = min((done + 1) / (warmup + 1), 1.0)
    progress = min(max((done - warmup) / (total - warmup), passed, 0.0), 1.0)
    return ramp * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def progressive_size(start: int, full: tuple[int, int], done: float) -> tuple[int, int]:
    """Return height and width of the training images in a run whose input grows in four equal parts.

    Args:
        start: pixels of the shorter side in the first part.
        full: height and width of the last part, at least `start`.
        done: share of the run that is done, in [0, 1].

    Returns:
        Multiples of 8 pixels, except for the last part.
    """
    part = min(int(done * 4), 3)
    if part == 3:
        return full
    shorter = start + (min(full) - start) * part / 3
    height, width = (max(round(side * shorter / min(full) / 8) * 8, 8) for side in full)
    return min(height, full[0]), min(width, full[1])
