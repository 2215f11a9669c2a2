"""What happens beside the steps of a run: recording its metrics, and stopping in time."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from ..inference.intervals import Figure, figure
from ..runtime.base import HEADS
from .memory import peak_memory
from .schedule import Clock

_MOST_LOSSES = 50
"""Losses that stay on the device before the host adds them up."""
Row = dict[str, float]
"""One epoch's numbers by column name."""


LEADING = {"top1": "top-1", "map": "mAP"}
"""Score by which epochs are compared -> its title; the second for several labels per image."""


def leading(row: Row) -> str:
    """Return which of `LEADING` a row has."""
    return next(name for name in LEADING if f"val_{name}_fused" in row)


def by_head(row: Row, name: str) -> dict[str, Figure]:
    """Return what a row has of `top1`, `top5` or `map`, with its interval, by head."""
    columns = {head: f"val_{name}_{head}" for head in HEADS}
    return {
        head: figure(row[column], row.get(f"{column}_low", math.nan), row.get(f"{column}_high", math.nan))
        for head, column in columns.items()
        if column in row
    }


class Recorder(Callback):
    """Collects one row per epoch: `epoch, step, lr, train_loss, val_…, seconds, …`.

    `val_top1_HEAD_low` and `val_top1_HEAD_high` are the bounds of the 95 % interval of `val_top1_HEAD`. With
    several labels per image it is `val_map_HEAD`.
    `lr` is the highest one of the epoch's last step. `seconds` counts from the start of training.
    `images_per_second` is the speed of training without validation, and `waiting` the share of that time in
    which the step waited for images. `peak_memory_mb` is the most memory in use so far, on the GPU or by
    this process without its workers.

    Args:
        clock: of the run; its callback must come first.
        batch_size: images per optimizer step.
    """

    def __init__(self, clock: Clock, *, batch_size: int) -> None:
        self.clock = clock
        self.batch_size = batch_size
        self.rows: list[Row] = []
        self._lr = math.nan
        self._train_began = self._waiting_since = 0.0
        self._first_step = 0
        self._train_seconds = self._waited = 0.0
        self._loss = self._batches = 0.0
        self._losses: list[Tensor] = []
        self._accumulate = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)  # lightning skips the next hook where a run resumes mid-epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)
        self._loss = self._batches = 0.0
        self._losses.clear()

    def _begin(self, trainer: Trainer) -> None:
        self._first_step = trainer.global_step
        self._train_began = self._waiting_since = time.monotonic()
        self._train_seconds = self._waited = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.monotonic() - self._waiting_since
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        self._accumulate = trainer.accumulate_grad_batches
        if len(self._losses) >= _MOST_LOSSES:
            self._add_losses()
        self._waiting_since = time.monotonic()

    def _add_losses(self) -> None:
        """Wait for the losses that are still on the device, and add them up."""
        if self._losses:
            for loss in torch.stack(self._losses).tolist():
                self._loss += loss * self._accumulate  # by which lightning has divided it
        self._batches += len(self._losses)
        self._losses.clear()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._train_seconds = time.monotonic() - self._train_began

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = (trainer.global_step - self._first_step) * self.batch_size
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics.pop("train_loss", None)  # of the last step; the row has the epoch's mean
        summary = getattr(pl_module, "val_summary", None)
        for name, found in (summary.figures if summary else {}).items():
            for side, bound in (("low", found.low), ("high", found.high)):
                metrics[f"val_{name}_{side}"] = math.nan if bound is None else bound
        seconds = max(self._train_seconds, 1e-9)
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._lr,
                "train_loss": self._mean_loss(trainer),
                "val_loss": metrics.pop("val_loss"),
                **metrics,
                "seconds": self.clock.elapsed,
                "images_per_second": images / seconds,
                "waiting": min(self._waited / seconds, 1.0),
                "peak_memory_mb": peak_memory(trainer.strategy.root_device) / 2**20,
            }
        )

    def _mean_loss(self, trainer: Trainer) -> float:
        """Over the epoch and all processes; lightning's own mean would forget what came before a resume."""
        self._add_losses()
        sums = torch.tensor([self._loss, self._batches], dtype=torch.float64)
        if trainer.world_size > 1:
            reduced = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum")
            assert isinstance(reduced, Tensor)
            sums = reduced
        loss, batches = sums.tolist()
        return loss / batches if batches else math.nan

    def state_dict(self) -> dict[str, Any]:
        self._add_losses()
        return {"rows": self.rows, "loss": self._loss, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._loss, self._batches = float(state_dict["loss"]), float(state_dict["batches"])


class Limits(Callback):
    """Ends training when the steps or the time are used up; lightning then validates a last time.

    lightning's own `max_steps` and `Timer` would end without that validation.
    """

    def __init__(self, clock: Clock, *, max_steps: int | None) -> None:
        self.clock = clock
        self.max_steps = max_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)  # a run that goes on may have been at its end
        early = trainer.early_stopping_callback
        if early is not None and early.stopped_epoch:
            trainer.should_stop = True

    def _check(self, trainer: Trainer) -> None:
        if self.clock.left <= 0 or (self.max_steps is not None and trainer.global_step >= self.max_steps):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)
