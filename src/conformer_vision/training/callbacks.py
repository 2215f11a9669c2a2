"""What happens beside the steps of a run: measuring, stopping in time, writing the run folder."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ..files import atomic_path
from ..runs import BEST_WEIGHTS, CURVES_FILE, LAST_CHECKPOINT, LAST_WEIGHTS, METRICS_FILE, TOP_FOLDER
from ..spec import ModelSpec
from ..weights import save_weights
from .averaging import Averaging
from .curves import draw_curves
from .interrupt import Interrupted, InterruptFlag
from .memory import peak_memory
from .processes import any_process, from_first, is_first, summed
from .schedule import Clock

CURVES_EVERY_SECONDS = 10  # a drawing takes half a second, an epoch on few images no longer than that

Row = dict[str, float]
"""One epoch's numbers by column name."""


class Recorder(Callback):
    """Collects one row per epoch: ``epoch, step, lr, train_loss, val_…, seconds, …``.

    ``lr`` is the highest of the epoch's last step, ``seconds`` run from the start of training,
    ``images_per_second`` is the speed of training without validation, ``waiting`` the share of that time
    in which the step waited for images, ``peak_memory_mb`` the most memory so far: of the GPU, or of
    the process (training and its reading, without workers).

    Args:
        clock: started here with training; its reserve becomes what the last validation took.
        batch_size: images per step.
    """

    def __init__(self, clock: Clock, *, batch_size: int) -> None:
        self.clock = clock
        self.batch_size = batch_size
        self.rows: list[Row] = []
        self._lr = math.nan
        self._train_began = self._val_began = self._waiting_since = 0.0
        self._first_step = 0
        self._train_seconds = self._waited = 0.0
        self._loss = self._batches = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.start()
        self._begin(trainer)  # lightning passes the next hook by where a run goes on mid-epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)
        self._loss = self._batches = 0.0

    def _begin(self, trainer: Trainer) -> None:
        self._first_step = trainer.global_step
        self._train_began = self._waiting_since = time.monotonic()
        self._train_seconds = self._waited = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.monotonic() - self._waiting_since
        if self.clock.limit is not None:
            self.clock.hold(from_first(trainer, self.clock.own))
        self._lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # lightning gives the part that the batch has in the step's loss.
        self._loss += float(outputs["loss"]) * trainer.accumulate_grad_batches
        self._batches += 1
        self._waiting_since = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._val_began = time.monotonic()
        self._train_seconds = self._val_began - self._train_began

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.reserve = from_first(trainer, time.monotonic() - self._val_began)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        images = (trainer.global_step - self._first_step) * self.batch_size
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics.pop("train_loss", None)  # of the last step; the row has the epoch's mean
        loss, batches = summed(trainer, self._loss, self._batches)
        seconds = max(self._train_seconds, 1e-9)
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "step": trainer.global_step,
                "lr": self._lr,
                "train_loss": loss / batches if batches else math.nan,
                "val_loss": metrics.pop("val_loss"),
                **metrics,
                "seconds": self.clock.elapsed,
                "images_per_second": images / seconds,
                "waiting": min(self._waited / seconds, 1.0),
                "peak_memory_mb": peak_memory(trainer.strategy.root_device) / 2**20,
            }
        )

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "loss": self._loss, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._loss, self._batches = float(state_dict["loss"]), float(state_dict["batches"])


class Limits(Callback):
    """Ends training when the steps or the time are used up; lightning then validates a last time."""

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


class RunFolder(Callback):
    """Keeps the run folder current after every epoch, every so many minutes, and when a signal ends it.

    The best epoch is that of the highest fused top-1; of equals, that of the lowest validation loss.
    It has to be the last callback, so that what it saves holds what the others did in a step.

    Args:
        folder: the run folder.
        model: the network whose weights are kept.
        spec: what is kept with them.
        recorder: of the metrics.
        interrupt: set by a signal.
        averaging: the average that is kept in place of the model's own weights, if any.
        every_seconds: time after which the state is saved within an epoch.
        top_k: number of the best epochs whose weights stay in ``top/``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: nn.Module,
        spec: ModelSpec,
        recorder: Recorder,
        interrupt: InterruptFlag,
        averaging: Averaging | None = None,
        every_seconds: float = math.inf,
        top_k: int = 0,
    ) -> None:
        self.folder = folder
        self.model = model
        self.spec = spec
        self.recorder = recorder
        self.interrupt = interrupt
        self.averaging = averaging
        self.every_seconds = every_seconds
        self.top_k = top_k
        self._best = (-math.inf, -math.inf)
        self._top: list[tuple[float, float, str]] = []
        self._saved = time.monotonic()
        self._drawn = -math.inf

    @property
    def state_key(self) -> str:
        return "RunFolder"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # After the last step of an epoch it is validated first: lightning would not do so on going on.
        # Between the parts of a step there are gradients that no checkpoint holds.
        if trainer.is_last_batch or trainer.should_stop or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self._saved >= self.every_seconds
        stop, due = any_process(trainer, self.interrupt.is_set, due)
        if stop:
            raise Interrupted
        if due:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.recorder.rows[-1]
        score = (row["val_top1_fused"], -row["val_loss"])
        weights = self._weights(trainer)
        if score > self._best:
            self._best = score
            self._save(weights, BEST_WEIGHTS)
        self._keep_top(weights, score, epoch=trainer.current_epoch + 1)
        self._write(trainer)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not last and time.monotonic() - self._drawn >= CURVES_EVERY_SECONDS:
            self._draw()  # the last time is at the end of training
        if any_process(trainer, self.interrupt.is_set and not last)[0]:
            raise Interrupted

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # At the end of an epoch, where it is checked too, all of this was written a moment ago.
        if isinstance(exception, Interrupted):
            self._write(trainer)
            self._draw()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw()

    def _weights(self, trainer: Trainer) -> dict[str, Tensor]:
        """The network's whole state; where processes share it out, every one of them has to ask."""
        if self.averaging is not None:
            return dict(self.averaging.model.state_dict())
        return dict(self.model.state_dict())

    def _save(self, weights: dict[str, Tensor], name: str) -> None:
        if is_first():
            save_weights(weights, self.spec, self.folder / name)

    def _keep_top(self, weights: dict[str, Tensor], score: tuple[float, float], *, epoch: int) -> None:
        if not self.top_k:
            return
        name = f"{TOP_FOLDER}/epoch-{epoch:04d}.safetensors"
        self._top = sorted([*self._top, (*score, name)], reverse=True)
        dropped, self._top = self._top[self.top_k :], self._top[: self.top_k]
        if name in (kept for *_, kept in self._top):
            if is_first():
                (self.folder / TOP_FOLDER).mkdir(exist_ok=True)
            self._save(weights, name)
        for *_, old in dropped:
            if is_first():
                (self.folder / old).unlink(missing_ok=True)

    def _write(self, trainer: Trainer) -> None:
        self._saved = time.monotonic()
        self._save(self._weights(trainer), LAST_WEIGHTS)
        self._save_state(trainer)
        if self.recorder.rows and is_first():
            write_metrics(self.recorder.rows, self.folder / METRICS_FILE)

    def _draw(self) -> None:
        if self.recorder.rows and is_first():
            draw_curves(self.recorder.rows, self.folder / CURVES_FILE)
            self._drawn = time.monotonic()

    def _save_state(self, trainer: Trainer) -> None:
        if is_first():
            with atomic_path(self.folder / LAST_CHECKPOINT) as temporary:
                trainer.save_checkpoint(temporary)
        else:  # takes part, writes nothing
            trainer.save_checkpoint(self.folder / LAST_CHECKPOINT)

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self._best), "top": [list(item) for item in self._top]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = tuple(state_dict["best"])
        self._top = [(float(top1), float(loss), str(name)) for top1, loss, name in state_dict["top"]]


def write_metrics(rows: list[Row], path: Path) -> None:
    """All rows as CSV with a header, in one step or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
