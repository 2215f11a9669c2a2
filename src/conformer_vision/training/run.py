"""A training run from its first check to its last file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import Tensor
from torch.utils.data import Dataset

from ..console import say
from ..data import ImageDataModule, ImageSource, fingerprint
from ..data.folds import deal_folds, read_folds
from ..data.opening import describe
from ..data.order import images_per_batch
from ..data.stream import ImageStream
from ..errors import UserError
from ..runs import CONFIG_FILE, LAST_CHECKPOINT
from .averaging import Averaging
from .broken import BrokenImages
from .callbacks import Limits, Recorder
from .class_weights import class_weights
from .config import TrainConfig
from .continuing import check_same, run_of, with_absolute_paths
from .ending import named_errors
from .folder import RunFolder, claimed, must_read_on, write_config
from .folds import train_folds
from .groups import DataConfig, HardwareConfig, OptimizerConfig, Progress, RegularizationConfig
from .guard import Guard
from .loggers import start_loggers
from .module import ClassifierModule
from .network import (
    Network,
    build_network,
    build_preprocessing,
    check_memory,
    check_progressive,
    check_single,
    find_batch_size,
)
from .optimization import build_loss, build_mixup, build_optimizer
from .processes import count_processes, is_first
from .progress import build_progress, device_line, opening_lines
from .recipe import read_config
from .results import ends, is_complete
from .schedule import Schedule
from .seeding import StepSeeds
from .stages import HeadsFirst, Patience, check_stages
from .start import settle
from .state import check_state
from .teacher import Distillation, build_distillation
from .trainer import build_trainer, quiet_lightning


def train(config: TrainConfig) -> Path:
    """Train a classifier and write its run folder.

    Args:
        config: of the run.

    Returns:
        The run folder: config.yaml, classes.txt, best.safetensors, last.safetensors, last.ckpt, metrics.csv,
        results.json and curves.png; with fold "all" the files of `folds.train_folds`.
        `conformer_vision.report.write_report(folder)` adds report.html, as the command `train` does.

    Raises:
        UserError: a wrong value, file or combination; found before the first step, except for images that
            turn out to be broken. With `auto_resume`, also options that differ from those of the run.
        TrainingDivergedError: the loss or a gradient is not finite; the run folder keeps the last good state,
            and not_finite.json says where that began.
        TrainingInterrupted: Ctrl-C, SIGTERM or SLURM's warning; the run folder holds what `resume` needs.
    """
    output = config.output
    if output.auto_resume and Path(str(output.output), CONFIG_FILE).is_file():
        folder = Path(str(output.output))
        check_same(config, read_config(folder / CONFIG_FILE), folder)
        data: Any = config.data.data
        given = None if isinstance(data, str) else data
        return resume(folder, progress=output.progress, data=given, auto_resume=True)
    if config.data.fold == "all":
        return train_folds(config, train_one=_train_fold)
    return _run(config)


def resume(
    folder: str | Path,
    *,
    progress: Progress | None = None,
    data: Dataset[Any] | None = None,
    workers: int | None = None,
    auto_resume: bool = False,
) -> Path:
    """Continue an interrupted run in its folder, from its last checkpoint to the end of its configuration.

    On the CPU the run ends with the weights, bit for bit, that it would have had without the interruption,
    unless `max_minutes` ties its schedule to the clock. A run that ended before its first checkpoint starts
    again. A complete run stays as it is.

    Args:
        folder: a run folder, or its last.ckpt.
        progress: how to show progress, if not as before.
        data: the data of the run, if it was a Python object, which no file records.
        workers: number of reading processes, if not as before; it changes nothing else.
        auto_resume: as in `OutputConfig`.

    Raises:
        UserError: the folder holds no run that can be continued.
        TrainingInterrupted: as `train`.
    """
    folder = run_of(folder)
    changes: dict[str, Any] = {"output": str(folder), "auto_resume": auto_resume, "progress": progress}
    changes |= {"data": data, "workers": workers}
    given = {name: value for name, value in changes.items() if value is not None}
    config = read_config(folder / CONFIG_FILE).with_options(**given)
    if config.data.fold == "all":
        return train_folds(config, resumed=folder, train_one=_train_fold)
    if is_complete(folder, config.schedule):
        if is_first():
            say(f"{folder} is complete; nothing is left to train")
        return folder
    return _run(config, resumed=folder)


def _train_fold(config: TrainConfig, *, resumed: Path | None, recorded: Mapping[str, int] | None) -> Path:
    """Train a fold of a run that trains them all, as `folds.TrainOne` says."""
    if resumed is not None:  # what it decided itself, such as its batch size, it keeps
        given = {"output": str(resumed), "progress": config.output.progress, "workers": config.data.workers}
        config = read_config(resumed / CONFIG_FILE).with_options(**given, data=config.data.data)
    return _run(config, resumed=resumed, recorded=recorded)


def _run(
    config: TrainConfig, *, resumed: Path | None = None, recorded: Mapping[str, int] | None = None
) -> Path:
    """Data, network, module, folder, trainer, files."""
    if recorded is None and resumed is not None:
        recorded = read_folds(resumed)
    checkpoint = resumed / LAST_CHECKPOINT if resumed is not None else None
    if checkpoint is not None and not checkpoint.is_file():
        checkpoint = None
    with quiet_lightning():
        parts = prepare(config, restored=checkpoint is not None, recorded=recorded)
        config, data = parts.config, parts.data
        with claimed(config.output, model=config.model.name, resumed=resumed) as folder:
            callbacks, run_folder = build_callbacks(parts, folder)
            trainer = build_trainer(
                config.hardware,
                epochs=config.schedule.epochs,
                accumulate=config.data.accumulate,
                clip_grad=config.optimizer.clip_grad,
                log=bool(config.output.logger_names),
                in_stages=config.schedule.freeze_share > 0,
                callbacks=callbacks,
            )
            data.trainer = trainer
            data.waiting, data.reads_on = run_folder.interrupt.waiting, partial(must_read_on, trainer)
            # At least once an epoch; lightning has the attribute without declaring it.
            trainer.log_every_n_steps = min(50, len(data.train_dataloader()))  # type: ignore[attr-defined]
            if checkpoint is not None:
                check_state(checkpoint, parts.module)
            write_config(folder, resolved(parts), data.classes, folds=data.splitting.recorded)
            if trainer.is_global_zero:
                if config.output.logger_names:
                    trainer.loggers = start_loggers(config.output.logger_names, folder)
                say(device_line(trainer))
                say(f"output: {folder}")
            with named_errors(trainer, run_folder, checkpoint, auto_resume=config.output.auto_resume):
                trainer.fit(parts.module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if torch.distributed.is_initialized():  # what follows, the first process does alone
            torch.distributed.destroy_process_group()
    return folder


class Parts(NamedTuple):
    """A run before it has a trainer."""

    config: TrainConfig
    """With everything decided that `start.settle` decides."""
    weights: str
    """As in `Start`."""
    data: ImageDataModule
    network: Network
    schedule: Schedule
    module: ClassifierModule


def prepare(
    config: TrainConfig, *, restored: bool = False, recorded: Mapping[str, int] | None = None
) -> Parts:
    """Build the data, the network and the module of a run.

    Args:
        config: of the run.
        restored: whether a checkpoint will replace the initial weights; the file that they came from may be
            gone by now.
        recorded: the folds of groups, where the run has recorded them.

    Raises:
        UserError: a wrong value, file or combination.
    """
    processes = math.prod(count_processes(config.hardware))
    config, weights, note = settle(config, download=processes == 1)
    lightning.seed_everything(config.data.seed, workers=True, verbose=False)
    data = build_data(
        config.data,
        config.regularization,
        build_preprocessing(config.model),
        recorded=recorded,
        unlabelled=config.distillation.unlabelled,
    )
    initial = config.model
    if restored:
        initial = replace(initial, pretrained=False, checkpoint=None, reset_head=False)
    network = build_network(initial, config.hardware, data.classes)
    if is_first():
        shown, note = (f"the state in {LAST_CHECKPOINT}", "") if restored else (weights, note)
        for line in opening_lines(data, network, weights=shown, note=note):
            say(line)
    distillation = build_distillation(config, network.spec, download=processes == 1)
    if distillation is not None and is_first():
        say(distillation.teacher.describe())
    if config.data.batch_size == "auto":
        if processes > 1:
            raise UserError("batch_size auto is for one process; find it with one, then give batch_size")
        data.batch_size = find_batch_size(network, data.drawn_images, config.data, config.hardware)
        say(f"batch_size: {data.batch_size}")
    images = images_per_batch(data.batch_size, processes, config.data.accumulate)
    check_memory(network, config.data, config.hardware, batch_size=data.batch_size)
    if images == 1 and not config.hardware.sync_bn:
        check_single(network)
    if config.schedule.progressive_from is not None:
        check_progressive(network, config.schedule.progressive_from)
    check_stages(network.model, config.schedule)
    assert config.optimizer.lr is not None
    schedule = Schedule(config.schedule, lr=config.optimizer.lr)
    module = build_module(
        network,
        schedule,
        config.optimizer,
        config.regularization,
        config.hardware,
        images=images,
        weights=class_weights(config.regularization.class_weights, data.train_images),
        distillation=distillation,
        val_groups=data.val_images.groups if isinstance(data.val_images, ImageSource) else None,
    )
    return Parts(config, weights, data, network, schedule, module)


def build_data(
    config: DataConfig,
    regularization: RegularizationConfig,
    preprocessing: dict[str, Any],
    *,
    recorded: Mapping[str, int] | None = None,
    unlabelled: str | None = None,
) -> ImageDataModule:
    """Open the images of a run; `recorded` are the folds of groups that it has recorded.

    `unlabelled` are further images, as in `DistillationConfig`.

    Raises:
        UserError: the data or the exclusion list is refused, or an option does not suit the data.
    """
    if recorded is None:
        recorded = deal_folds(config.data, config.splitting, data_dir=config.data_dir)
    data = ImageDataModule(
        config.data,
        preprocessing,
        batch_size=1 if isinstance(config.batch_size, str) else config.batch_size,
        workers=config.workers,
        splitting=replace(config.splitting, recorded=recorded),
        augment=regularization.augment,
        seed=config.seed,
        sampling=config.sampling,
        aug_repeats=config.aug_repeats,
        epoch_images=config.epoch_images,
        exclude=config.exclude,
        data_dir=config.data_dir,
        unlabelled=unlabelled,
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
    weights: Tensor | None = None,
    distillation: Distillation | None = None,
    val_groups: Sequence[str] | None = None,
) -> ClassifierModule:
    """Make the module of a run; `images` is their number per forward pass of one process.

    `weights` are those of the classes in the loss, (K,). For `val_groups` see `ClassifierModule`.

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
        build_loss(regularization, model, weights=weights),
        optimizer=make_optimizer,
        scheduler=schedule.scheduler,
        num_classes=classes,
        val_groups=val_groups,
        mixup=build_mixup(regularization, classes, images=images),
        resize=schedule.resize if schedule.config.progressive_from is not None else None,
        distillation=distillation,
        channels_last=hardware.channels_last,
    )


def build_callbacks(parts: Parts, folder: Path) -> tuple[list[lightning.Callback], RunFolder]:
    """Make the callbacks of a run, in the order in which lightning must call them.

    `RunFolder` is last of those that have a state, and what is printed comes after it.
    """
    config, train, val = parts.config, parts.data.train_images, parts.data.val_images
    drawn = parts.data.drawn_images
    images = number = None  # a stream does not know it
    if isinstance(train, ImageSource) and isinstance(val, ImageSource) and isinstance(drawn, ImageSource):
        images = {"train": len(train), "val": len(val)}
        number = len(drawn) + len(val)
    clock = parts.schedule.clock
    seeds = StepSeeds(config.data.seed)
    recorder = Recorder(clock, batch_size=parts.data.batch_size)
    averaging = None
    if config.optimizer.ema_decay is not None:
        averaging = Averaging(config.optimizer.ema_decay, warmup=config.optimizer.ema_warmup)
    heads = HeadsFirst(parts.schedule) if config.schedule.freeze_share else None
    run_folder = RunFolder(
        folder,
        network=parts.network,
        recorder=recorder,
        about={
            "version": parts.network.spec.version,
            "model": parts.network.spec.model,
            "initial_weights": parts.weights,
            "data": describe(parts.data.data),
            "images": images,
            "val_fingerprint": fingerprint(val) if isinstance(val, ImageSource) else None,
            "ends": ends(config.schedule),
        },
        averaging=averaging,
        every_seconds=60 * config.output.save_minutes,
        top_k=config.output.save_top_k,
        keep_state=config.output.keep_state,
    )
    callbacks: list[lightning.Callback | None] = [
        LearningRateMonitor("step") if config.output.logger_names else None,
        averaging,
        clock,
        seeds,
        heads,
        Guard(folder, seeds=seeds, name=None if isinstance(drawn, ImageStream) else drawn.name),
        BrokenImages(folder, images=number, most=config.data.max_broken),
        recorder,
        None if (patience := config.schedule.patience) is None else Patience(patience, heads=heads),
        Limits(clock, max_steps=config.schedule.max_steps),
        run_folder,
        *build_progress(config.output.progress, recorder, parts.schedule, run_folder),
    ]
    return [callback for callback in callbacks if callback is not None], run_folder


def resolved(parts: Parts) -> TrainConfig:
    """Return the configuration with everything decided that was left to the model or the data.

    Its paths hold in any working folder. The run folder is left out: the same recipe gives another run
    another folder.
    """
    config, data, spec = parts.config, parts.data, parts.network.spec
    augment = data.augment.for_source(data.train_images)
    config = replace(
        config,
        data=replace(config.data, batch_size=data.batch_size),
        model=replace(config.model, input_size=spec.input_size[1:], crop_pct=spec.crop_pct),
        regularization=replace(config.regularization, augment=augment),
        output=replace(config.output, output=None, auto_resume=False),
    )
    return with_absolute_paths(config)
