"""A training run from its first check to its last file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.utils.data import Dataset

from ..console import say
from ..data import ImageSource, fingerprint
from ..data.folds import read_folds
from ..data.opening import describe
from ..data.stream import ImageStream
from ..run_path import Run
from ..runs import CONFIG_FILE, LAST_CHECKPOINT
from .averaging import Averaging
from .broken import BrokenImages
from .callbacks import Limits, Recorder
from .config import TrainConfig
from .continuing import check_same, run_of, with_absolute_paths
from .ending import named_errors
from .folder import RunFolder, claimed, must_read_on, write_config
from .folds import train_folds
from .groups import Progress
from .guard import Guard
from .loggers import start_loggers
from .parts import Parts, prepare
from .processes import is_first
from .progress import build_progress, device_line
from .recipe import read_config
from .results import ends, is_complete
from .seeding import StepSeeds
from .stages import HeadsFirst, Patience
from .state import check_state
from .task import task_for
from .trainer import build_trainer, quiet_lightning


def train(config: TrainConfig) -> Run:
    """Train a classifier and write its run folder.

    Args:
        config: of the run.

    Returns:
        The run folder: config.yaml, classes.txt, best.safetensors, last.safetensors, last.ckpt, metrics.csv,
        results.json and curves.png; with fold "all" the files of `folds.train_folds`.
        `conformer_vision.report.write_report(folder)` adds report.html, as the command `train` does. It is a
        `pathlib.Path`, which notebooks show with figures, curves and report.

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
        return Run(train_folds(config, train_one=_train_fold))
    return Run(_run(config))


def resume(
    folder: str | Path,
    *,
    progress: Progress | None = None,
    data: Dataset[Any] | None = None,
    workers: int | None = None,
    auto_resume: bool = False,
) -> Run:
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
        return Run(train_folds(config, resumed=folder, train_one=_train_fold))
    if is_complete(folder, config.schedule):
        if is_first():
            say(f"{folder} is complete; nothing is left to train")
        return Run(folder)
    return Run(_run(config, resumed=folder))


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


def build_callbacks(parts: Parts, folder: Path) -> tuple[list[lightning.Callback], RunFolder]:
    """Make the callbacks of a run, in the order in which lightning must call them.

    `RunFolder` is last of those that have a state, and what is printed comes after it.
    """
    config, train, val = parts.config, parts.data.train_images, parts.data.val_images
    drawn, task = parts.data.drawn_images, task_for(parts.network.spec.multilabel)
    images = number = None  # a stream does not know it
    if isinstance(train, ImageSource) and isinstance(val, ImageSource) and isinstance(drawn, ImageSource):
        images = {"train": len(train), "val": len(val)}
        number = len(drawn) + len(val)
    clock, pace = parts.schedule.clock, parts.schedule.pace
    seeds = StepSeeds(config.data.seed)
    recorder = Recorder(clock, batch_size=parts.data.batch_size)
    averaging = None
    if config.optimizer.ema_decay is not None:
        averaging = Averaging(config.optimizer.ema_decay, warmup=config.optimizer.ema_warmup)
    heads = HeadsFirst(parts.schedule) if config.schedule.freeze_share else None
    patience = None
    if config.schedule.patience is not None:
        patience = Patience(config.schedule.patience, score=task.leading, heads=heads)
    name = None if isinstance(drawn, ImageStream) else drawn.name
    guard = Guard(folder, seeds=seeds, name=name, pace=pace)
    run_folder = RunFolder(
        folder,
        network=parts.network,
        recorder=recorder,
        pace=pace,
        guard=guard,
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
        parts.shared,
        averaging,
        pace,
        clock,
        seeds,
        heads,
        guard,
        BrokenImages(folder, images=number, most=config.data.max_broken),
        recorder,
        patience,
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
    regularization = task_for(spec.multilabel).decide(config.regularization)
    config = replace(
        config,
        data=replace(config.data, batch_size=data.batch_size),
        model=replace(config.model, input_size=spec.input_size[1:], crop_pct=spec.crop_pct),
        regularization=replace(regularization, augment=augment),
        output=replace(config.output, output=None, auto_resume=False),
    )
    return with_absolute_paths(config)
