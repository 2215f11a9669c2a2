"""A training run from its first check to its last file."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from ..errors import UserError
from ..files import atomic_path
from .build import build_card, build_loaders, build_model, check_optimizer, open_data, resolved
from .callbacks import LAST_CHECKPOINT, Limits, Recorder, RunFolder
from .config import Progress, TrainConfig
from .interrupt import Interrupted, InterruptFlag, TrainingInterrupted
from .module import ClassifierModule
from .progress import EpochBar, EpochLines
from .recipe import read_config
from .schedule import Clock
from .state import check_state

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.txt"
_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def train(config: TrainConfig) -> Path:
    """Train a classifier and write its run folder.

    Args:
        config: of the run.

    Returns:
        The run folder: config.yaml, classes.txt, best.safetensors, last.safetensors, last.ckpt,
        metrics.csv and curves.png.

    Raises:
        UserError: a value, a file or a picture that cannot be; found before the first step, but for
            pictures that turn out to be broken.
        TrainingInterrupted: Ctrl-C; the run folder holds what `resume` needs.
    """
    return _run(config, _new_folder(config), checkpoint=None)


def resume(folder: str | Path, *, progress: Progress | None = None) -> Path:
    """Continue an interrupted run in its folder, from its last checkpoint to the end of its configuration.

    Args:
        folder: a run folder.
        progress: how to show progress, where not as the run did before.

    Raises:
        UserError: the folder holds no run that can be continued.
        TrainingInterrupted: Ctrl-C.
    """
    folder = Path(folder)
    checkpoint = folder / LAST_CHECKPOINT
    if not checkpoint.is_file():
        raise UserError(f"{folder} has no {LAST_CHECKPOINT} to resume from; give an interrupted run")
    config = read_config(folder / CONFIG_FILE)
    if progress is not None:
        config = replace(config, progress=progress)
    return _run(config, folder, checkpoint=checkpoint)


def _run(config: TrainConfig, folder: Path, *, checkpoint: Path | None) -> Path:
    with _quiet_lightning():
        lightning.seed_everything(config.seed, workers=True, verbose=False)
        train_source, val_source = open_data(config)
        # A run that goes on has its weights in the checkpoint; those it began with may be gone by now.
        model = build_model(config if checkpoint is None else _unloaded(config), len(train_source.classes))
        card = build_card(config, model, train_source.classes)
        check_optimizer(config, model)
        train_loader, val_loader = build_loaders(config, train_source, val_source, card)

        clock = Clock(None if config.max_minutes is None else 60 * config.max_minutes)
        module = ClassifierModule(
            model,
            config,
            num_classes=len(train_source.classes),
            steps_per_epoch=len(train_loader),
            clock=clock,
        )
        if checkpoint is not None:
            check_state(checkpoint, module)
        recorder = Recorder(clock, batch_size=config.batch_size)
        interrupt = InterruptFlag()
        run_folder = RunFolder(folder, model=model, card=card, recorder=recorder, interrupt=interrupt)
        shown, bar = _progress(config, recorder)
        trainer = _trainer(
            config, folder, [recorder, Limits(clock, max_steps=config.max_steps), run_folder, *shown]
        )

        _make_folder(folder)  # not before everything else is found to be right
        _write_text(folder / CONFIG_FILE, resolved(config, train_source, card).to_yaml())
        _write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in card.classes))
        try:
            with interrupt.listen():
                trainer.fit(module, train_loader, val_loader, ckpt_path=checkpoint, weights_only=True)
        except Interrupted:
            raise TrainingInterrupted(folder) from None
        except SystemExit:  # what lightning makes of a second Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            _remove_if_unused(folder)
            if bar is not None:
                bar.bar.stop()
    return folder


def _unloaded(config: TrainConfig) -> TrainConfig:
    return replace(config, pretrained=False, checkpoint=None, reset_head=False)


def _trainer(config: TrainConfig, folder: Path, callbacks: list[lightning.Callback]) -> lightning.Trainer:
    try:
        return lightning.Trainer(
            max_epochs=config.epochs,
            accelerator=_ACCELERATORS[config.device],
            devices=1,
            precision=config.precision,
            gradient_clip_val=config.clip_grad,
            callbacks=callbacks,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,  # RunFolder writes: atomically, and weights that need no pickle
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {config.device!r} cannot be used here ({reason}); 'cpu' always can"
        ) from error


def _progress(config: TrainConfig, recorder: Recorder) -> tuple[list[lightning.Callback], EpochBar | None]:
    """Callbacks that show progress; the bar among them, if any."""
    terminal = config.progress == "rich" or (config.progress == "auto" and sys.stdout.isatty())
    if not terminal:
        return [EpochLines(recorder, lambda line: print(line, flush=True))], None
    console = Console()
    bar = EpochBar(console, batch_size=config.batch_size)
    return [bar, EpochLines(recorder, lambda line: console.print(line, highlight=False))], bar


def _new_folder(config: TrainConfig) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(config.output) if config.output else Path("runs") / f"{config.model}-{stamp}"
    if folder.is_dir() and any(folder.iterdir()):
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
    """Take back a run folder in which training never came to its first checkpoint."""
    if not (folder / LAST_CHECKPOINT).exists():
        for name in (CONFIG_FILE, CLASSES_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
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
