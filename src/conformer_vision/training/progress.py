"""How a run shows its progress: one line per epoch, and a bar below them on a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .callbacks import Recorder, Row
from .groups import OutputConfig
from .schedule import Schedule
from .trainer import is_first


class EpochLines(Callback):
    """Prints one plain line per epoch: losses, top-1 of every head, speed, and the time taken and left.

    Args:
        recorder: its last row is printed.
        schedule: of the run.
        write: takes one line.
    """

    def __init__(self, recorder: Recorder, schedule: Schedule, write: Callable[[str], None]) -> None:
        self.recorder = recorder
        self.schedule = schedule
        self.write = write

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        left = 0.0 if trainer.should_stop else self.schedule.seconds_left(trainer.global_step)
        self.write(epoch_line(self.recorder.rows[-1], epochs=self.schedule.config.epochs, left=left))


class EpochBar(Callback):
    """A bar over the steps of the current epoch, then over its validation.

    Args:
        console: to draw on; the lines it prints appear above the bar.
        batch_size: images per forward pass.
    """

    def __init__(self, console: Console, *, batch_size: int) -> None:
        self.batch_size = batch_size
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def _begin(self, text: str, total: float | None) -> None:
        if self._task is not None:
            self.bar.remove_task(self._task)
        self._task = self.bar.add_task(text, total=total, speed="")

    def _advance(self, per_step: int | None = None) -> None:
        if self._task is None:
            return
        self.bar.advance(self._task)
        speed = self.bar.tasks[-1].speed
        if per_step is not None and speed:
            self.bar.update(self._task, speed=f"{speed * per_step:,.0f} images/s")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(f"epoch {trainer.current_epoch + 1}", trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._advance(self.batch_size)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = sum(float(count) for count in trainer.num_val_batches)
        self._begin("validation", batches if math.isfinite(batches) else None)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._advance()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.bar.stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.bar.stop()


def build_progress(
    config: OutputConfig, recorder: Recorder, schedule: Schedule, *, batch: int
) -> list[Callback]:
    """Make the callbacks that show progress, in the first process alone.

    Args:
        config: how to show it.
        recorder: of the metrics.
        schedule: of the run.
        batch: images per forward pass, over all processes.
    """
    if not is_first():
        return []
    if config.progress == "rich" or (config.progress == "auto" and sys.stdout.isatty()):
        console = Console()
        lines = EpochLines(recorder, schedule, lambda line: console.print(line, highlight=False))
        return [EpochBar(console, batch_size=batch), lines]
    return [EpochLines(recorder, schedule, lambda line: print(line, flush=True))]


def epoch_line(row: Row, *, epochs: int, left: float) -> str:
    """Return one epoch's row as a line; `left` in seconds, infinite where it is not known."""
    heads = [name for name in row if name.startswith("val_top1_") and name != "val_top1_fused"]
    branches = ", ".join(f"{name.removeprefix('val_top1_')} {row[name]:.1%}" for name in heads)
    parts = [
        f"epoch {row['epoch']:.0f}/{epochs}",
        f"loss {row['train_loss']:.3f}",
        f"val loss {row['val_loss']:.3f}",
        f"top-1 {row['val_top1_fused']:.1%}" + (f" ({branches})" if branches else ""),
        f"lr {row['lr']:.1e}",
        f"{row['images_per_second']:,.0f} images/s",
        _time(row["seconds"]),
    ]
    return "  ".join(parts) + (f"  left {_time(left)}" if 0 < left < math.inf else "")


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
