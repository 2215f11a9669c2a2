"""A training run from its first check to its last file."""

from __future__ import annotations

import logging
import math
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from rich.console import Console
from torch import nn

from ..data.order import Share
from ..data.stream import ImageStream
from ..errors import UserError
from ..files import atomic_path, remove_leftovers
from ..runs import BROKEN_FILE, CLASSES_FILE, CONFIG_FILE, LAST_CHECKPOINT, NOT_FINITE_FILE
from ..spec import ModelSpec
from .averaging import Averaging
from .broken import BrokenImages
from .build import (
    Data,
    build_loaders,
    build_model,
    build_spec,
    check_optimizer,
    find_batch_size,
    open_images,
    resolved,
)
from .callbacks import Limits, Recorder, RunFolder
from .config import TrainConfig
from .groups import Progress
from .guard import NotFinite, TrainingDivergedError, diagnose
from .interrupt import Interrupted, InterruptFlag, TrainingInterrupted
from .loggers import start_loggers
from .module import ClassifierModule
from .processes import is_first
from .progress import EpochBar, EpochLines
from .recipe import read_config
from .schedule import Clock
from .state import Restored, check_state, damaged
from .trainer import build_trainer, count_processes


def train(config: TrainConfig) -> Path:
    """Train a classifier and write its run folder.

    Args:
        config: of the run.

    Returns:
        The run folder: config.yaml, classes.txt, best.safetensors, last.safetensors, last.ckpt,
        metrics.csv and curves.png. The command `train` adds report.html.

    Raises:
        UserError: a value, a file or an image that cannot be; found before the first step, but for
            images that turn out to be broken.
        TrainingDivergedError: the loss or a gradient is not finite; the run folder keeps the last state
            that was, and not_finite.json says where it began.
        TrainingInterrupted: Ctrl-C, SIGTERM or SLURM's warning; the run folder holds what `resume`
            needs.
    """
    if config.output.auto_resume and Path(str(config.output.output), CONFIG_FILE).is_file():
        return _resume(Path(str(config.output.output)), progress=config.output.progress, auto_resume=True)
    return _run(config, _new_folder(config), checkpoint=None)


def resume(folder: str | Path, *, progress: Progress | None = None) -> Path:
    """Continue an interrupted run in its folder, from its last checkpoint to the end of its configuration.

    On the CPU the run ends with the weights, bit for bit, that it would have had without the
    interruption, unless ``max_minutes`` ties its schedule to the clock. A run that ended before its
    first checkpoint begins again.

    Args:
        folder: a run folder.
        progress: how to show progress, where not as the run did before.

    Raises:
        UserError: the folder holds no run that can be continued.
        TrainingInterrupted: as `train`.
    """
    return _resume(Path(folder), progress=progress)


def _resume(folder: Path, *, progress: Progress | None, auto_resume: bool = False) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}, so it is no run to resume; give an interrupted run")
    checkpoint = folder / LAST_CHECKPOINT
    config = read_config(folder / CONFIG_FILE).with_options(output=str(folder), auto_resume=auto_resume)
    if progress is not None:
        config = config.with_options(progress=progress)
    return _run(config, folder, checkpoint=checkpoint if checkpoint.is_file() else None)


def _run(config: TrainConfig, folder: Path, *, checkpoint: Path | None) -> Path:
    with quiet_lightning():
        lightning.seed_everything(config.data.seed, workers=True, verbose=False)
        train_source, val_source = open_images(config)
        # A run that goes on has its weights in the checkpoint; those it began with may be gone by now.
        model = build_model(config if checkpoint is None else _unloaded(config), len(train_source.classes))
        spec = build_spec(config, model, train_source.classes)
        check_optimizer(config, model)
        config = _with_batch_size(config, model, spec, train_source)

        clock = Clock(None if config.schedule.max_minutes is None else 60 * config.schedule.max_minutes)
        parts = _Callbacks(config, folder, clock, model, spec, _count(train_source, val_source))
        trainer = build_trainer(config, folder, callbacks=parts.in_order)
        loaders = build_loaders(
            config,
            train_source,
            val_source,
            spec,
            share=Share(trainer.global_rank, trainer.world_size),
        )
        # At least once an epoch; lightning has the attribute without declaring it.
        trainer.log_every_n_steps = min(50, len(loaders[0]))  # type: ignore[attr-defined]
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        # lightning itself puts back no loader at the end of an epoch.
        loaders[0].position = lambda: (trainer.current_epoch, progress.ready)
        module = ClassifierModule(
            model,
            config,
            num_classes=len(train_source.classes),
            steps_per_epoch=len(loaders[0]) // config.data.accumulate,
            clock=clock,
        )
        if checkpoint is not None:
            check_state(checkpoint, module)

        if is_first():
            _make_folder(folder)  # not before everything else is found to be right
            remove_leftovers(folder)
            _write_text(folder / CONFIG_FILE, resolved(config, train_source, spec).to_yaml())
            _write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in spec.classes))
        try:
            if config.output.loggers and is_first():
                trainer.loggers = start_loggers(config.output.loggers, folder)
            with parts.interrupt.listen():
                trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
            if torch.distributed.is_initialized():  # what follows, the first process does alone
                torch.distributed.destroy_process_group()
        except NotFinite as failure:
            raise _diverged(config, failure, module, trainer, folder, train_source) from None
        except Interrupted:
            raise TrainingInterrupted(
                folder, number=parts.interrupt.signal or signal.SIGINT, auto_resume=config.output.auto_resume
            ) from None
        except SystemExit:  # what lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:  # of what a damaged state holds, lightning raises anything
            named = isinstance(error, (UserError, OSError, torch.OutOfMemoryError))
            if checkpoint is None or parts.restored.done or named:
                raise
            raise damaged(checkpoint) from error
        finally:
            if is_first():
                _remove_if_unused(folder)
            if parts.bar is not None:
                parts.bar.bar.stop()
    return folder


def _unloaded(config: TrainConfig) -> TrainConfig:
    return config.with_options(pretrained=False, checkpoint=None, reset_head=False)


def _with_batch_size(config: TrainConfig, model: nn.Module, spec: ModelSpec, source: Data) -> TrainConfig:
    """The configuration with a number for ``batch_size auto``."""
    if config.data.batch_size != "auto":
        return config
    if math.prod(count_processes(config)) > 1:
        raise UserError("batch_size auto is for one process; find it with one, then give batch_size")
    most = config.data.epoch_images if isinstance(source, ImageStream) else len(source)
    found = find_batch_size(config, model, spec, most=max((most or 4096) // config.data.accumulate, 1))
    print(f"batch_size: {found * config.data.accumulate}", flush=True)
    return config.with_options(batch_size=found * config.data.accumulate)


def _count(train: Data, val: Data) -> int | None:
    """Images altogether; None where a stream does not know."""
    if isinstance(train, ImageStream) or isinstance(val, ImageStream):
        return None
    return len(train) + len(val)


class _Callbacks:
    """What accompanies the training loop, in the order in which lightning has to call it."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        clock: Clock,
        model: nn.Module,
        spec: ModelSpec,
        images: int | None,
    ) -> None:
        self.interrupt = InterruptFlag()
        self.restored = Restored()
        recorder = Recorder(clock, batch_size=config.data.images_per_step)
        shown, self.bar = _progress(config, recorder)
        averaging = None
        if config.optimizer.ema_decay is not None:
            averaging = Averaging(config.optimizer.ema_decay, warmup=config.optimizer.ema_warmup)
        run_folder = RunFolder(
            folder,
            model=model,
            spec=spec,
            recorder=recorder,
            interrupt=self.interrupt,
            averaging=averaging,
            every_seconds=60 * config.output.save_minutes,
            top_k=config.output.save_top_k,
        )
        self.in_order: list[lightning.Callback] = []
        if config.output.loggers:
            self.in_order.append(LearningRateMonitor("step"))
        if averaging is not None:
            self.in_order.append(averaging)
        self.in_order += [BrokenImages(folder, images=images, most=config.data.max_broken), recorder]
        if config.schedule.patience is not None:
            self.in_order.append(
                EarlyStopping(
                    "val_top1_fused", mode="max", patience=config.schedule.patience, check_finite=False
                )
            )
        self.in_order += [
            Limits(clock, max_steps=config.schedule.max_steps),
            self.restored,
            *shown,
            run_folder,
        ]


def _diverged(
    config: TrainConfig,
    failure: NotFinite,
    module: ClassifierModule,
    trainer: lightning.Trainer,
    folder: Path,
    source: Data,
) -> TrainingDivergedError:
    names = [] if isinstance(source, ImageStream) else [source.name(i) for i in failure.indices]
    diagnosis = diagnose(
        module.model,
        failure,
        autocast=trainer.precision_plugin.forward_context,
        epoch=trainer.current_epoch + 1,
        step=trainer.global_step,
        lr=max(group["lr"] for group in trainer.optimizers[0].param_groups),
        precision=config.hardware.precision,
        images=names,
    )
    if is_first():
        diagnosis.write(folder)
    return TrainingDivergedError(f"{diagnosis} ({folder / NOT_FINITE_FILE} names the images)")


def _progress(config: TrainConfig, recorder: Recorder) -> tuple[list[lightning.Callback], EpochBar | None]:
    """Callbacks that show progress; the bar among them, if any."""
    if not is_first():
        return [], None
    terminal = config.output.progress == "rich" or (config.output.progress == "auto" and sys.stdout.isatty())
    if not terminal:
        return [EpochLines(recorder, lambda line: print(line, flush=True))], None
    console = Console()
    bar = EpochBar(console, batch_size=config.data.images_per_step // config.data.accumulate)
    return [bar, EpochLines(recorder, lambda line: console.print(line, highlight=False))], bar


def _new_folder(config: TrainConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = (
        Path(config.output.output) if config.output.output else Path("runs") / f"{config.model.model}-{stamp}"
    )
    # Of several processes the first may have made it by now.
    if is_first() and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"output {folder} is not empty; give a new one, or continue it with --resume {folder}"
        )
    return folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror or error}") from error


def _remove_if_unused(folder: Path) -> None:
    """Take back a run folder in which training never came to its first checkpoint, nor diverged."""
    if not ((folder / LAST_CHECKPOINT).exists() or (folder / NOT_FINITE_FILE).exists()):
        for name in (CONFIG_FILE, CLASSES_FILE, BROKEN_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep back lightning's advice: on workers, devices and logging, which here are the user's decisions."""
    loggers: list[tuple[Any, int]] = [
        (logging.getLogger(name), logging.getLogger(name).level)
        for name in ("lightning.pytorch", "lightning.fabric")
    ]
    for logger, _ in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*")
            yield
    finally:
        for logger, level in loggers:
            logger.setLevel(level)
