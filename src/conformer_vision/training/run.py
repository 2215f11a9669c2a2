"""A training run from its first check to its last file."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch.utils.data import Dataset

from ..data.order import Share
from ..data.stream import ImageStream
from ..errors import UserError
from ..runs import CONFIG_FILE, LAST_CHECKPOINT
from .averaging import Averaging
from .broken import BrokenImages
from .callbacks import Limits, Recorder
from .config import TrainConfig
from .folder import RunFolder, make_folder, new_folder, remove_if_unused
from .groups import ModelConfig, Progress
from .guard import Guard
from .images import Images, build_loaders, open_images
from .interrupt import Interrupted, InterruptFlag, TrainingInterrupted
from .loggers import start_loggers
from .module import ClassifierModule
from .network import (
    Network,
    apply_hardware,
    build_network,
    check_progressive,
    check_single,
    find_batch_size,
)
from .optimization import build_loss, build_mixup, build_optimizer
from .progress import build_progress
from .recipe import read_config
from .schedule import Clock, Schedule
from .seeding import StepSeeds
from .state import Restored, check_state, damaged
from .trainer import build_trainer, count_processes


def train(config: TrainConfig) -> Path:
    """Train a classifier and write its run folder.

    Args:
        config: of the run.

    Returns:
        The run folder: config.yaml, classes.txt, best.safetensors, last.safetensors, last.ckpt, metrics.csv
        and curves.png. `conformer_vision.report.write_report(folder)` adds report.html, as the command
        `train` does.

    Raises:
        UserError: a wrong value, file or combination; found before the first step, except for images that
            turn out to be broken.
        TrainingDivergedError: the loss or a gradient is not finite; the run folder keeps the last good state,
            and not_finite.json says where that began.
        TrainingInterrupted: Ctrl-C, SIGTERM or SLURM's warning; the run folder holds what `resume` needs.
    """
    output = config.output
    if output.auto_resume and Path(str(output.output), CONFIG_FILE).is_file():
        given: Any = config.data.data
        data = None if isinstance(given, str) else given
        return _resume(Path(str(output.output)), progress=output.progress, data=data, auto_resume=True)
    return _run(config, new_folder(config))


def resume(folder: str | Path, *, progress: Progress | None = None, data: Dataset[Any] | None = None) -> Path:
    """Continue an interrupted run in its folder, from its last checkpoint to the end of its configuration.

    On the CPU the run ends with the weights, bit for bit, that it would have had without the interruption,
    unless `max_minutes` ties its schedule to the clock. A run that ended before its first checkpoint starts
    again.

    Args:
        folder: a run folder.
        progress: how to show progress, if not as before.
        data: the data of the run, if it was a Python object, which no file records.

    Raises:
        UserError: the folder holds no run that can be continued.
        TrainingInterrupted: as `train`.
    """
    return _resume(Path(folder), progress=progress, data=data)


def _resume(
    folder: Path, *, progress: Progress | None, data: Dataset[Any] | None, auto_resume: bool = False
) -> Path:
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}, so it is no run to resume; give an interrupted run")
    config = read_config(folder / CONFIG_FILE)
    if data is not None:
        config = config.with_options(data=data)
    output = replace(config.output, output=str(folder), auto_resume=auto_resume)
    config = replace(config, output=output if progress is None else replace(output, progress=progress))
    checkpoint = folder / LAST_CHECKPOINT
    return _run(config, folder, checkpoint=checkpoint if checkpoint.is_file() else None)


def _run(config: TrainConfig, folder: Path, *, checkpoint: Path | None = None) -> Path:
    """Data, network, module, trainer, files: everything is checked before the folder is made."""
    with quiet_lightning():
        lightning.seed_everything(config.data.seed, workers=True, verbose=False)
        images = open_images(config.data)
        # A run that resumes has its weights in the checkpoint; those it started from may be gone by now.
        network = build_network(config.model if checkpoint is None else _blank(config.model), images.classes)
        apply_hardware(config.hardware, network.model)
        config = _with_batch_size(config, network, images)
        schedule = build_schedule(config, network)
        module = build_module(config, network, schedule)
        accompany = _Accompany(config, folder, images, network, schedule)
        trainer = build_trainer(
            config.hardware,
            epochs=config.schedule.epochs,
            accumulate=config.data.accumulate,
            clip_grad=config.optimizer.clip_grad,
            log=bool(config.output.loggers),
            callbacks=accompany.callbacks,
        )
        share = Share(trainer.global_rank, trainer.world_size)
        loaders = build_loaders(config.data, config.regularization, images, network.spec, share=share)
        if checkpoint is not None:
            check_state(checkpoint, module)
        # At least once an epoch; lightning has the attribute without declaring it.
        trainer.log_every_n_steps = min(50, len(loaders[0]))  # type: ignore[attr-defined]
        # lightning itself repositions no loader.
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        loaders[0].position = lambda: (trainer.current_epoch, batches.ready)

        make_folder(folder, resolved(config, network, images), network.spec)
        try:
            if trainer.is_global_zero and config.output.loggers:
                trainer.loggers = start_loggers(config.output.loggers, folder)
            with accompany.named_errors(checkpoint), accompany.interrupt.listen():
                trainer.fit(module, *loaders, ckpt_path=checkpoint, weights_only=True)
        finally:
            remove_if_unused(folder)
        if torch.distributed.is_initialized():  # what follows, the first process does alone
            torch.distributed.destroy_process_group()
    return folder


def build_schedule(config: TrainConfig, network: Network) -> Schedule:
    """Make the schedule of a run, with its clock.

    Raises:
        UserError: the network cannot be trained at its sizes.
    """
    if config.schedule.progressive_from is not None:
        check_progressive(network, config.schedule.progressive_from)
    if config.data.images_per_step <= config.data.accumulate:
        check_single(network)
    minutes = config.schedule.max_minutes
    clock = Clock(None if minutes is None else 60 * minutes)
    return Schedule(config.schedule, lr=config.optimizer.lr, clock=clock)


def build_module(config: TrainConfig, network: Network, schedule: Schedule) -> ClassifierModule:
    """Make the module of a run.

    Raises:
        UserError: the loss or the optimizer does not suit the network.
    """
    model = network.model
    optimizer = partial(build_optimizer, config=config.optimizer, precision=config.hardware.precision)
    optimizer(model)  # a mistake shows before training
    if config.hardware.compile:
        model.compile()
    return ClassifierModule(
        model,
        build_loss(config.regularization, model),
        optimizer=optimizer,
        scheduler=schedule.scheduler,
        num_classes=len(network.spec.classes),
        mixup=build_mixup(config.regularization, len(network.spec.classes)),
        resize=schedule.resize if config.schedule.progressive_from is not None else None,
        channels_last=config.hardware.channels_last,
    )


def resolved(config: TrainConfig, network: Network, images: Images) -> TrainConfig:
    """Return the configuration with everything decided that was left to the model or the data.

    The run folder is left out: the same recipe gives another run another folder.
    """
    spec, regularization = network.spec, config.regularization
    return replace(
        config,
        model=replace(config.model, input_size=spec.input_size[1:], crop_pct=spec.crop_pct),
        regularization=replace(regularization, augment=regularization.augment.for_source(images.train)),
        output=replace(config.output, output=None, auto_resume=False),
    )


def _blank(config: ModelConfig) -> ModelConfig:
    """The same network without initial weights of its own."""
    return replace(config, pretrained=False, checkpoint=None, reset_head=False)


def _with_batch_size(config: TrainConfig, network: Network, images: Images) -> TrainConfig:
    """The configuration with a number for `batch_size` "auto"."""
    data = config.data
    if data.batch_size != "auto":
        return config
    if math.prod(count_processes(config.hardware)) > 1:
        raise UserError("batch_size auto is for one process; find it with one, then give batch_size")
    most = data.epoch_images if isinstance(images.train, ImageStream) else len(images.train)
    found = find_batch_size(config.hardware, network, most=max((most or 4096) // data.accumulate, 1))
    print(f"batch_size: {found * data.accumulate}", flush=True)
    return replace(config, data=replace(data, batch_size=found * data.accumulate))


class _Accompany:
    """What accompanies the training loop: the callbacks, in the order in which lightning must call them."""

    def __init__(
        self, config: TrainConfig, folder: Path, images: Images, network: Network, schedule: Schedule
    ) -> None:
        self.folder = folder
        self.auto_resume = config.output.auto_resume
        self.interrupt = InterruptFlag()
        self.restored = Restored()
        optimizer, batch = config.optimizer, config.data.images_per_step
        averaging = None
        if optimizer.ema_decay is not None:
            averaging = Averaging(optimizer.ema_decay, warmup=optimizer.ema_warmup)
        seeds = StepSeeds(config.data.seed)
        recorder = Recorder(schedule.clock, batch_size=batch)
        run_folder = RunFolder(
            folder,
            model=network.model,
            spec=network.spec,
            recorder=recorder,
            interrupt=self.interrupt,
            averaging=averaging,
            every_seconds=60 * config.output.save_minutes,
            top_k=config.output.save_top_k,
        )
        patience = config.schedule.patience
        candidates: list[lightning.Callback | None] = [
            LearningRateMonitor("step") if config.output.loggers else None,
            averaging,
            schedule.clock,
            seeds,
            Guard(folder, seeds=seeds, name=images.name),
            BrokenImages(folder, images=images.count, most=config.data.max_broken),
            recorder,
            None
            if patience is None
            else EarlyStopping("val_top1_fused", mode="max", patience=patience, check_finite=False),
            Limits(schedule.clock, max_steps=config.schedule.max_steps),
            self.restored,
            *build_progress(config.output, recorder, schedule, batch=batch // config.data.accumulate),
            run_folder,
        ]
        self.callbacks = [callback for callback in candidates if callback is not None]

    @contextmanager
    def named_errors(self, checkpoint: Path | None) -> Iterator[None]:
        """Turn what ends training into the errors that `train` promises."""
        try:
            yield
        except Interrupted:
            number = self.interrupt.signal or signal.SIGINT
            raise TrainingInterrupted(self.folder, number=number, auto_resume=self.auto_resume) from None
        except SystemExit:  # what lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
        except Exception as error:  # a damaged state makes lightning raise anything
            named = isinstance(error, (UserError, OSError, torch.OutOfMemoryError))
            if checkpoint is None or self.restored.done or named:
                raise
            raise damaged(checkpoint) from error


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence lightning's advice on workers, devices and logging, which here are the user's decisions."""
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
