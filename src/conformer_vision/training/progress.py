"""How a run shows its progress: one line per epoch, and a bar below them on a terminal."""

from __future__ import annotations

import math
import sys
from datetime import timedelta

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ..console import say
from .callbacks import Recorder, Row
from .groups import Progress
from .schedule import Schedule
from .trainer import is_first


class EpochLines(Callback):
    """Prints one line per epoch: losses, top-1 of every head, speed, and the time taken and left.

    Args:
        recorder: its last row is printed.
        schedule: of the run.
    """

    def __init__(self, recorder: Recorder, schedule: Schedule) -> None:
        self.recorder = recorder
        self.schedule = schedule

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        left = 0.0 if trainer.should_stop else self.schedule.seconds_left(trainer.global_step)
        line = epoch_line(self.recorder.rows[-1], epochs=self.schedule.config.epochs, left=left)
        say(line)  # rich prints it above its bar


class EpochBar(RichProgressBar):
    """lightning's bar, with epochs counted from 1 as in the lines above it."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def build_progress(progress: Progress, recorder: Recorder, schedule: Schedule) -> list[Callback]:
    """Make the callbacks that show progress, in the first process alone.

    Args:
        progress: how to show it.
        recorder: of the metrics.
        schedule: of the run.
    """
    if not is_first():
        return []
    bar = progress == "rich" or (progress == "auto" and sys.stdout.isatty())
    return [*([EpochBar(refresh_rate=10)] if bar else []), EpochLines(recorder, schedule)]


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
