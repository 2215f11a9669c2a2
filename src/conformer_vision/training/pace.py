"""When a run looks at its device and its processes agree: about once a second, not in every step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer

SECONDS = 1.0
"""Time between two looks, as far as steps are short enough."""
MOST_STEPS = 50
"""Optimizer steps between two looks at most."""


class Pace(Callback):
    """Says at which steps the other callbacks may wait for the device and for other processes.

    To read a value from a GPU is to wait until it has computed everything before, and to agree with other
    processes is to wait for the slowest. Done in every step, both leave the devices idle. The number of steps
    until the next look follows from the time of the last ones, by the first process's clock. This must come
    before the callbacks that ask it.

    Args:
        now: a monotonic clock in seconds.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self.begins = True
        """Whether the batch under way is the first one after a look."""
        self.due = False
        """Whether the batch under way ends an optimizer step with a look."""
        self._now = now
        self._steps = 0
        self._until = 1
        self._since = now()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.due, self._steps, self._until = True, 0, 1  # by the first step the next ones are counted
        self._since = self._now()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.begins = self.due
        if self.begins:
            self._count(trainer)
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._steps += 1
            self.due = self._steps >= self._until
        else:
            self.due = False

    def _count(self, trainer: Trainer) -> None:
        if self._steps:
            per_step = (self._now() - self._since) / self._steps
            self._until = max(min(int(SECONDS / max(per_step, 1e-9)), MOST_STEPS), 1)
        if trainer.world_size > 1:
            self._until = trainer.strategy.broadcast(self._until)
        self._steps, self._since = 0, self._now()
