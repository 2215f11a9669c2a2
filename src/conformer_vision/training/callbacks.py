"""What happens beside the steps of a run: measuring, stopping in time, writing the run folder."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import nn

from ..files import atomic_path
from ..models.saved import BEST_WEIGHTS, LAST_WEIGHTS, ModelCard, save_model
from .curves import draw_curves
from .interrupt import Interrupted, InterruptFlag
from .schedule import Clock

LAST_CHECKPOINT = "last.ckpt"
METRICS_FILE = "metrics.csv"
CURVES_FILE = "curves.png"

Row = dict[str, float]
"""One epoch's numbers by column name."""


class Recorder(Callback):
    """Collects one row per epoch: ``epoch, step, lr, train_loss, val_…, seconds, images_per_second``.

    ``lr`` is that of the epoch's last step, ``seconds`` run from the start of training,
    ``images_per_second`` is the speed of training without validation.

    Args:
        clock: started here with training; its reserve becomes what the last validation took.
        batch_size: pictures per step.
    """

    def __init__(self, clock: Clock, *, batch_size: int) -> None:
        self.clock = clock
        self.batch_size = batch_size
        self.rows: list[Row] = []
        self._lr = math.nan
        self._train_began = self._val_began = 0.0
        self._first_step = 0
        self._train_seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.start()
        self.on_train_epoch_start(trainer, pl_module)  # lightning passes it by where a run goes on mid-epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step
        self._train_began = time.monotonic()
        self._train_seconds = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._val_began = time.monotonic()
        self._train_seconds = self._val_began - self._train_began

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.reserve = time.monotonic() - self._val_began

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = (trainer.global_step - self._first_step) * self.batch_size
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._lr,
                "train_loss": metrics.pop("train_loss", math.nan),
                "val_loss": metrics.pop("val_loss"),
                **metrics,
                "seconds": self.clock.elapsed,
                "images_per_second": images / max(self._train_seconds, 1e-9),
            }
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class Limits(Callback):
    """Ends training when the steps or the time are used up; lightning then validates a last time."""

    def __init__(self, clock: Clock, *, max_steps: int | None) -> None:
        self.clock = clock
        self.max_steps = max_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)  # a run that goes on may have been at its end

    def _check(self, trainer: Trainer) -> None:
        if self.clock.left <= 0 or (self.max_steps is not None and trainer.global_step >= self.max_steps):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(trainer)


class RunFolder(Callback):
    """Keeps the run folder current after every epoch and after Ctrl-C.

    The best epoch is that of the highest fused top-1; of equals, that of the lowest validation loss.
    """

    def __init__(
        self, folder: Path, *, model: nn.Module, card: ModelCard, recorder: Recorder, interrupt: InterruptFlag
    ) -> None:
        self.folder = folder
        self.model = model
        self.card = card
        self.recorder = recorder
        self.interrupt = interrupt
        self._best = (-math.inf, -math.inf)

    @property
    def state_key(self) -> str:
        return "RunFolder"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After the last step of an epoch it is validated first: lightning would not do so on going on.
        if not (trainer.is_last_batch or trainer.should_stop):
            self.interrupt.check()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.recorder.rows[-1]
        score = (row["val_top1_fused"], -row["val_loss"])
        if score > self._best:
            self._best = score
            save_model(self.model, self.card, self.folder / BEST_WEIGHTS)
        self._write(trainer)
        if not (trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs):
            self.interrupt.check()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Interrupted):
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        save_model(self.model, self.card, self.folder / LAST_WEIGHTS)
        with atomic_path(self.folder / LAST_CHECKPOINT) as temporary:
            trainer.save_checkpoint(temporary)
        if self.recorder.rows:
            write_metrics(self.recorder.rows, self.folder / METRICS_FILE)
            draw_curves(self.recorder.rows, self.folder / CURVES_FILE)

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self._best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = tuple(state_dict["best"])


def write_metrics(rows: list[Row], path: Path) -> None:
    """All rows as CSV with a header, in one step or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
