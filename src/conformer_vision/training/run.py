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
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from torch.utils.data import Dataset

from ..console import say
from ..data import ImageDataModule
from ..data.order import images_per_batch
from ..data.stream import ImageStream
from ..errors import UserError
from ..runs import CONFIG_FILE, LAST_CHECKPOINT
from .averaging import Averaging
from .broken import BrokenImages
from .callbacks import Limits, Recorder
from .config import TrainConfig
from .folder import RunFolder, make_folder, new_folder, remove_if_unused
from .groups import (
    DataConfig,
    HardwareConfig,
    OptimizerConfig,
    OutputConfig,
    Progress,
    RegularizationConfig,
    ScheduleConfig,
)
from .guard import Guard
from .interrupt import Interrupted, TrainingInterrupted
from .loggers import start_loggers
from .module import ClassifierModule
from .network import (
    Network,
    build_network,
    build_preprocessing,
    check_progressive,
    check_single,
    find_batch_size,
)
from .optimization import build_loss, build_mixup, build_optimizer
from .progress import build_progress
from .recipe import read_config
from .schedule import Schedule
from .seeding import StepSeeds
from .state import check_state, damaged
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
        data: Any = config.data.data
        given = None if isinstance(data, str) else data
        return resume(str(output.output), progress=output.progress, data=given, auto_resume=True)
    return _run(config, new_folder(output, model=config.model.model))


def resume(
    folder: str | Path,
    *,
    progress: Progress | None = None,
    data: Dataset[Any] | None = None,
    auto_resume: bool = False,
) -> Path:
    """Continue an interrupted run in its folder, from its last checkpoint to the end of its configuration.

    On the CPU the run ends with the weights, bit for bit, that it would have had without the interruption,
    unless `max_minutes` ties its schedule to the clock. A run that ended before its first checkpoint starts
    again.

    Args:
        folder: a run folder.
        progress: how to show progress, if not as before.
        data: the data of the run, if it was a Python object, which no file records.
        auto_resume: as in `OutputConfig`.

    Raises:
        UserError: the folder holds no run that can be continued.
        TrainingInterrupted: as `train`.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}, so it is no run to resume; give an interrupted run")
    changes = {"output": str(folder), "auto_resume": auto_resume, "progress": progress, "data": data}
    given = {name: value for name, value in changes.items() if value is not None}
    config = read_config(folder / CONFIG_FILE).with_options(**given)
    checkpoint = folder / LAST_CHECKPOINT
    return _run(config, folder, checkpoint=checkpoint if checkpoint.is_file() else None)


def _run(config: TrainConfig, folder: Path, *, checkpoint: Path | None = None) -> Path:
    """Data, network, module, trainer, files: everything is checked before the folder is made."""
    with quiet_lightning():
        parts = prepare(config, restored=checkpoint is not None)
        data = parts.data
        callbacks = build_callbacks(
            parts, folder, config.data, config.optimizer, config.schedule, config.output
        )
        run_folder = callbacks[-1]
        assert isinstance(run_folder, RunFolder)
        trainer = build_trainer(
            config.hardware,
            epochs=config.schedule.epochs,
            accumulate=config.data.accumulate,
            clip_grad=config.optimizer.clip_grad,
            log=bool(config.output.loggers),
            callbacks=callbacks,
        )
        data.trainer = trainer
        # At least once an epoch; lightning has the attribute without declaring it.
        trainer.log_every_n_steps = min(50, len(data.train_dataloader()))  # type: ignore[attr-defined]
        if checkpoint is not None:
            check_state(checkpoint, parts.module)

        make_folder(folder, resolved(config, parts), parts.network.spec)
        try:
            if trainer.is_global_zero and config.output.loggers:
                trainer.loggers = start_loggers(config.output.loggers, folder)
            with _named_errors(run_folder, checkpoint, auto_resume=config.output.auto_resume):
                trainer.fit(parts.module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        finally:
            remove_if_unused(folder)
        if torch.distributed.is_initialized():  # what follows, the first process does alone
            torch.distributed.destroy_process_group()
    return folder


class Parts(NamedTuple):
    """A run before it has a trainer."""

    data: ImageDataModule
    network: Network
    schedule: Schedule
    module: ClassifierModule


def prepare(config: TrainConfig, *, restored: bool = False) -> Parts:
    """Build the data, the network and the module of a run.

    Args:
        config: of the run.
        restored: whether a checkpoint will replace the initial weights; the file that they came from may be
            gone by now.

    Raises:
        UserError: a wrong value, file or combination.
    """
    lightning.seed_everything(config.data.seed, workers=True, verbose=False)
    data = build_data(config.data, config.regularization, build_preprocessing(config.model))
    initial = config.model
    if restored:
        initial = replace(initial, pretrained=False, checkpoint=None, reset_head=False)
    network = build_network(initial, config.hardware, data.classes)
    processes = math.prod(count_processes(config.hardware))
    if config.data.batch_size == "auto":
        if processes > 1:
            raise UserError("batch_size auto is for one process; find it with one, then give batch_size")
        data.batch_size = find_batch_size(network, data.train_images, config.data, config.hardware)
        say(f"batch_size: {data.batch_size}")
    images = images_per_batch(data.batch_size, processes, config.data.accumulate)
    if images == 1 and not config.hardware.sync_bn:
        check_single(network)
    if config.schedule.progressive_from is not None:
        check_progressive(network, config.schedule.progressive_from)
    schedule = Schedule(config.schedule, lr=config.optimizer.lr)
    module = build_module(
        network, schedule, config.optimizer, config.regularization, config.hardware, images=images
    )
    return Parts(data, network, schedule, module)


def build_data(
    config: DataConfig, regularization: RegularizationConfig, preprocessing: dict[str, Any]
) -> ImageDataModule:
    """Open the images of a run.

    Raises:
        UserError: the data or the exclusion list is refused, or an option does not suit the data.
    """
    data = ImageDataModule(
        config.data,
        preprocessing,
        batch_size=1 if isinstance(config.batch_size, str) else config.batch_size,
        workers=config.workers,
        splitting=config.splitting,
        augment=regularization.augment,
        seed=config.seed,
        sampling=config.sampling,
        aug_repeats=config.aug_repeats,
        epoch_images=config.epoch_images,
        exclude=config.exclude,
        data_dir=config.data_dir,
    )
    data.setup()
    return data


def build_module(
    network: Network,
    schedule: Schedule,
    optimizer: OptimizerConfig,
    regularization: RegularizationConfig,
    hardware: HardwareConfig,
    *,
    images: int,
) -> ClassifierModule:
    """Make the module of a run; `images` is their number per forward pass of one process.

    Raises:
        UserError: the loss, the optimizer or the mixing does not suit the network or the batch.
    """
    model, classes = network.model, len(network.spec.classes)
    make_optimizer = partial(build_optimizer, config=optimizer, precision=hardware.precision)
    make_optimizer(model)  # a mistake shows before training
    if hardware.compile:
        model.compile()
    return ClassifierModule(
        model,
        build_loss(regularization, model),
        optimizer=make_optimizer,
        scheduler=schedule.scheduler,
        num_classes=classes,
        mixup=build_mixup(regularization, classes, images=images),
        resize=schedule.resize if schedule.config.progressive_from is not None else None,
        channels_last=hardware.channels_last,
    )


def build_callbacks(
    parts: Parts,
    folder: Path,
    data: DataConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    output: OutputConfig,
) -> list[lightning.Callback]:
    """Make the callbacks of a run, in the order in which lightning must call them; `RunFolder` is last."""
    train, val = parts.data.train_images, parts.data.val_images
    number = None  # of images; a stream does not know it
    if not isinstance(train, ImageStream) and not isinstance(val, ImageStream):
        number = len(train) + len(val)
    clock = parts.schedule.clock
    seeds = StepSeeds(data.seed)
    recorder = Recorder(clock, batch_size=parts.data.batch_size)
    averaging = None
    if optimizer.ema_decay is not None:
        averaging = Averaging(optimizer.ema_decay, warmup=optimizer.ema_warmup)
    stopping = None
    if schedule.patience is not None:
        stopping = EarlyStopping("val_top1_fused", mode="max", patience=schedule.patience, check_finite=False)
    callbacks: list[lightning.Callback | None] = [
        LearningRateMonitor("step") if output.loggers else None,
        averaging,
        clock,
        seeds,
        Guard(folder, seeds=seeds, name=None if isinstance(train, ImageStream) else train.name),
        BrokenImages(folder, images=number, most=data.max_broken),
        recorder,
        stopping,
        Limits(clock, max_steps=schedule.max_steps),
        *build_progress(output.progress, recorder, parts.schedule),
        RunFolder(
            folder,
            network=parts.network,
            recorder=recorder,
            averaging=averaging,
            every_seconds=60 * output.save_minutes,
            top_k=output.save_top_k,
        ),
    ]
    return [callback for callback in callbacks if callback is not None]


def resolved(config: TrainConfig, parts: Parts) -> TrainConfig:
    """Return the configuration with everything decided that was left to the model or the data.

    The run folder is left out: the same recipe gives another run another folder.
    """
    data, spec, regularization = parts.data, parts.network.spec, config.regularization
    return replace(
        config,
        data=replace(config.data, batch_size=data.batch_size),
        model=replace(config.model, input_size=spec.input_size[1:], crop_pct=spec.crop_pct),
        regularization=replace(regularization, augment=data.augment.for_source(data.train_images)),
        output=replace(config.output, output=None, auto_resume=False),
    )


@contextmanager
def _named_errors(run_folder: RunFolder, checkpoint: Path | None, *, auto_resume: bool) -> Iterator[None]:
    """Listen to signals, and turn what ends training into the errors that `train` promises."""
    interrupt = run_folder.interrupt
    try:
        with interrupt.listen():
            yield
    except Interrupted:
        number = interrupt.signal or signal.SIGINT
        raise TrainingInterrupted(run_folder.folder, number=number, auto_resume=auto_resume) from None
    except SystemExit:  # what lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from None
    except Exception as error:  # a damaged state makes lightning raise anything
        named = isinstance(error, (UserError, OSError, torch.OutOfMemoryError))
        if checkpoint is None or run_folder.started or named:
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
