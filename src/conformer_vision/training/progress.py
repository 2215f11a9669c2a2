"""What a run prints: what it is about to do, how it gets on, and what came out."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from ..console import say
from ..data import ImageDataModule
from ..data.base import ImageSource
from ..data.groups import leak_line, shared_groups
from ..data.opening import describe
from ..data.stream import ImageStream
from ..errors import some_names
from .callbacks import Recorder, Row, by_head, leading
from .folder import RunFolder
from .groups import Progress
from .network import Network
from .processes import is_first
from .results import closing_lines, score_text
from .schedule import FORWARD_SHARE, Schedule
from .teacher import Distillation

_TIMED_STEPS, _TIMED_SECONDS = 3, 10.0
"""Steps, or seconds, after which the time of the run is estimated."""
_EVERY_SECONDS, _RARELY_SECONDS = 10.0, 300.0
"""Time between two lines within an epoch: at first, and at last."""
_COLUMNS = 80


def opening_lines(data: ImageDataModule, network: Network, *, weights: str, note: str) -> list[str]:
    """Return what a run prints before it begins: images, classes, split, model, weights.

    Args:
        data: the images.
        network: the network.
        weights: what it starts from, in words.
        note: why it starts from nothing better.
    """
    train, val, drawn = data.train_images, data.val_images, data.drawn_images
    others = []
    if isinstance(train, ImageSource) and isinstance(drawn, ImageSource) and drawn is not train:
        others = [f"unlabelled: {len(drawn) - len(train):,} images"]
    model, spec = network
    height, width = spec.input_size[1:]
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return [
        f"data: {describe(data.data)}",
        f"images: {_number(train)} for training, {_number(val)} for validation",
        *others,
        f"split: {_split(data)}",
        f"classes: {len(spec.classes)} ({some_names(spec.classes, most=4)})",
        f"model: {spec.model}, {parameters:.1f} M parameters, {height}x{width} pixels",
        f"initial weights: {weights}",
        *([f"note: {note}"] if note else []),
        *_group_lines(train, val),
    ]


def _group_lines(train: ImageSource | ImageStream, val: ImageSource | ImageStream) -> list[str]:
    """Say how many groups there are on either side, and whether some are on both."""
    if not isinstance(train, ImageSource) or not isinstance(val, ImageSource) or train.groups is None:
        return []
    number = {name: len({*(images.groups or ())}) for name, images in (("train", train), ("val", val))}
    lines = [f"groups: {number['train']:,} for training, {number['val']:,} for validation"]
    return lines + [f"note: {leak_line(shared)}" for shared in [shared_groups(train, val)] if shared]


def _number(images: ImageSource | ImageStream) -> str:
    if isinstance(images, ImageSource):
        return f"{len(images):,}"
    if images.length is None:
        return "a stream"
    return f"a stream of {'about ' * images.is_cut}{images.length:,}"


def _split(data: ImageDataModule) -> str:
    """Say where the validation images come from."""
    cut = data.splitting
    if not data.val_images.is_cut:
        return "the data's own"
    if cut.folds is not None:
        return f"fold {cut.fold} of {cut.folds} is for validation"
    of = "the groups" if cut.group is not None else "each class"
    return f"val_fraction {cut.val_fraction:g} of {of} is for validation, as the data has no split"


def device_line(trainer: Trainer) -> str:
    """Return where a run computes, and in which precision."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{device.type}, {torch.get_num_threads()} threads"
    processes = f"{trainer.world_size} processes, " if trainer.world_size > 1 else ""
    return f"device: {where}, {processes}precision {trainer.precision.removesuffix('-true')}"


class Lines(Callback):
    """Prints the expected time, one line per epoch, and at the end what came out.

    Without a bar, lines within the epochs too: at first every ten seconds, at last every five minutes.
    This comes after `RunFolder`: what is printed has been saved.

    Args:
        recorder: its last row is printed.
        schedule: of the run.
        folder: keeps what came out.
        within: print within the epochs too.
    """

    def __init__(self, recorder: Recorder, schedule: Schedule, folder: RunFolder, *, within: bool) -> None:
        self.recorder = recorder
        self.schedule = schedule
        self.folder = folder
        self.within = within
        self._estimated = False
        self._steps = 0
        self._began = self._first = 0.0
        self._pause = _EVERY_SECONDS
        self._next = math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()
        self._next = self._began + self._pause

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.monotonic()
        self._steps += 1
        self._first = self._first or now
        if not self._estimated and (self._steps >= _TIMED_STEPS or now - self._began >= _TIMED_SECONDS):
            self._estimated = True
            if trainer.global_step < self.schedule.total_steps:
                say(f"time: {self._estimate(trainer, now)}{_of_teacher(pl_module, trainer)}")
        elif self.within and now >= self._next:
            self._pause = min(2 * self._pause, _RARELY_SECONDS)
            self._next = now + self._pause
            epoch, epochs = trainer.current_epoch + 1, self.schedule.config.epochs
            step, steps = (batch_idx + 1) // trainer.accumulate_grad_batches, self._per_epoch(trainer)
            loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
            left = self.schedule.seconds_left(trainer.global_step)
            say(f"epoch {epoch}/{epochs}  step {step}/{steps}  loss {loss:.3f}{_left(left)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        left = 0.0 if trainer.should_stop else self.schedule.seconds_left(trainer.global_step)
        epochs, short = self.schedule.config.epochs, sys.stdout.isatty()
        line = epoch_line(self.recorder.rows[-1], epochs=epochs, left=left, short=short)
        say(line)  # rich prints it above its bar
        self._next = time.monotonic() + self._pause

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for line in closing_lines(self.folder.results(finished=True)):
            say(line)

    def _per_epoch(self, trainer: Trainer) -> int:
        return max(int(trainer.num_training_batches) // trainer.accumulate_grad_batches, 1)

    def _estimate(self, trainer: Trainer, now: float) -> str:
        """Say how long the run will take, by its first steps; the very first one is slower."""
        later = self._steps - 1
        per_step = (now - self._first) / later if later else now - self._began
        done, schedule = trainer.global_step, self.schedule
        steps = schedule.total_steps - done
        per_work = per_step / (schedule.work(done + 1) - schedule.work(done))
        validations = math.ceil(steps / self._per_epoch(trainer))
        batches = sum(int(number) for number in trainer.num_val_batches if number < math.inf)
        per_validation = FORWARD_SHARE * per_work * batches / trainer.accumulate_grad_batches
        seconds = (schedule.work(schedule.total_steps) - schedule.work(done)) * per_work
        seconds += validations * per_validation
        limit = self.schedule.clock.left + self.schedule.clock.reserve
        if limit < seconds:
            return f"about {_time(limit)}, as max_minutes says; a step takes {per_step:.3g} s"
        return f"about {_time(seconds)} for {steps} steps of {per_step:.3g} s"


class EpochBar(RichProgressBar):
    """lightning's bar, with epochs counted from 1 as in the lines above it."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"


def build_progress(
    progress: Progress, recorder: Recorder, schedule: Schedule, folder: RunFolder
) -> list[Callback]:
    """Make the callbacks that show progress, in the first process alone.

    Args:
        progress: how to show it.
        recorder: of the metrics.
        schedule: of the run.
        folder: of the run.
    """
    if not is_first():
        return []
    bar = progress == "rich" or (progress == "auto" and sys.stdout.isatty())
    lines = Lines(recorder, schedule, folder, within=not bar)
    return [*([EpochBar(refresh_rate=10)] if bar else []), lines]


def epoch_line(row: Row, *, epochs: int, left: float, short: bool) -> str:
    """Return one epoch's row as a line.

    Args:
        row: of the epoch.
        epochs: of the run.
        left: seconds left, infinite where that is not known.
        short: for a terminal of 80 columns: the losses of training and validation with a slash between them,
            no learning rate, speed and times, and no branches if they do not fit.
    """
    score = score_text(leading(row), by_head(row, leading(row)))
    epoch = f"epoch {row['epoch']:.0f}/{epochs}"
    loss, val_loss = f"{row['train_loss']:.3f}", f"{row['val_loss']:.3f}"
    if short:
        line = f"{epoch}  loss {loss}/{val_loss}  {score}"
        return line if len(line) <= _COLUMNS else line.partition(" (")[0]
    line = f"{epoch}  loss {loss}  val loss {val_loss}  {score}"
    times = f"{row['images_per_second']:,.0f} images/s  {_time(row['seconds'])}{_left(left)}"
    return f"{line}  lr {row['lr']:.1e}  {times}"


def _of_teacher(module: LightningModule, trainer: Trainer) -> str:
    """Say how much of a step a teacher takes, if there is one."""
    distillation = getattr(module, "distillation", None)
    if not isinstance(distillation, Distillation):
        return ""
    return (
        f", of which the teacher takes {distillation.teacher.seconds * trainer.accumulate_grad_batches:.3g} s"
    )


def _left(seconds: float) -> str:
    return f"  left {_time(seconds)}" if 0 < seconds < math.inf else ""


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
