"""lightning's Trainer as a configuration asks for it: devices, processes, precision."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
from lightning import Callback
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..errors import UserError, first_line
from .groups import HardwareConfig
from .processes import Processes, count_processes
from .state import StateWriter

_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def build_trainer(
    config: HardwareConfig,
    *,
    epochs: int,
    accumulate: int = 1,
    clip_grad: float | None = None,
    log: bool = False,
    in_stages: bool = False,
    folder: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> lightning.Trainer:
    """Make the trainer of a run.

    Args:
        config: device, precision, which has been chosen, and processes.
        epochs: passes over the training images.
        accumulate: forward and backward passes per optimizer step.
        clip_grad: largest gradient norm.
        log: keep a place for loggers, which `start_loggers` makes when training begins.
        in_stages: whether there are steps that leave most parameters without a gradient.
        folder: where lightning itself may write.
        callbacks: in the order in which they are called.

    Raises:
        UserError: a device, a number of processes or a precision that this machine does not have.
    """
    assert config.precision != "auto", "parts.prepare chooses it"
    devices, nodes = count_processes(config)
    try:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator=_ACCELERATORS[config.device],
            devices=devices,
            num_nodes=nodes,
            strategy=Processes(find_unused_parameters=in_stages) if devices * nodes > 1 else "auto",
            sync_batchnorm=config.sync_bn,
            precision=config.precision,
            gradient_clip_val=clip_grad,
            accumulate_grad_batches=accumulate,
            callbacks=list(callbacks),
            default_root_dir=folder,
            logger=log and DummyLogger(),
            plugins=[StateWriter()],
            use_distributed_sampler=False,  # our own order shares out the images
            enable_checkpointing=False,  # RunFolder writes: atomically, and weights that need no pickle
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise UserError(
            f"device {config.device!r} with devices {devices} cannot be used here "
            f"({first_line(error)}); 'cpu' always can"
        ) from error
    # Before every batch lightning asks the first process whether SIGTERM came. RunFolder asks all of them,
    # about once a second (Pace).
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    if isinstance(trainer.accelerator, CPUAccelerator):
        if config.precision == "16-mixed":
            raise UserError("precision 16-mixed needs a GPU; bf16-mixed works on the CPU too")
        if config.sync_bn:
            raise UserError("sync_bn needs GPUs; leave it out on the CPU")
    return trainer


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
