"""lightning's Trainer as a configuration asks for it: devices, processes, precision."""

from __future__ import annotations

import os
from pathlib import Path

import lightning
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..errors import UserError, first_line
from .config import TrainConfig

_ACCELERATORS = {"auto": "auto", "cpu": "cpu", "cuda": "gpu", "mps": "mps"}


def build_trainer(
    config: TrainConfig, folder: Path, *, callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    """A trainer for `ClassifierModule`.

    Raises:
        UserError: a device, a number of processes or a precision that this machine does not have.
    """
    devices, nodes = count_processes(config)
    try:
        trainer = lightning.Trainer(
            max_epochs=config.schedule.epochs,
            accelerator=_ACCELERATORS[config.hardware.device],
            devices=devices,
            num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto",
            sync_batchnorm=config.hardware.sync_bn,
            precision=config.hardware.precision,
            gradient_clip_val=config.optimizer.clip_grad,
            accumulate_grad_batches=config.data.accumulate,
            callbacks=callbacks,
            default_root_dir=folder,
            logger=bool(config.output.loggers) and DummyLogger(),  # its place is taken when training begins
            use_distributed_sampler=False,  # our own orders share the images out
            enable_checkpointing=False,  # RunFolder writes: atomically, and weights that need no pickle
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (RuntimeError, ValueError, MisconfigurationException) as error:
        raise UserError(
            f"device {config.hardware.device!r} with devices {devices} cannot be used here "
            f"({first_line(error)}); 'cpu' always can"
        ) from error
    if isinstance(trainer.accelerator, CPUAccelerator):
        if config.hardware.precision == "16-mixed":
            raise UserError("precision 16-mixed needs a GPU; bf16-mixed works on the CPU too")
        if config.hardware.sync_bn:
            raise UserError("sync_bn needs GPUs; leave it out on the CPU")
    return trainer


def count_processes(config: TrainConfig) -> tuple[int, int]:
    """Processes per machine, and machines: what the configuration says, else torchrun or SLURM, else 1.

    Raises:
        UserError: the configuration contradicts torchrun or SLURM.
    """
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        started, by = (local, int(os.environ["WORLD_SIZE"]) // local), "torchrun"
    elif SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        started, by = (max(int(os.environ["SLURM_NTASKS"]) // nodes, 1), nodes), "SLURM"
    else:
        return (1 if config.hardware.devices == "auto" else config.hardware.devices), config.hardware.nodes
    named = (("devices", config.hardware.devices, "auto"), ("nodes", config.hardware.nodes, 1))
    for (name, given, default), there in zip(named, started, strict=True):
        if given not in (default, there):
            raise UserError(f"{name} {given}: {by} has started {there}; leave {name} out")
    return started
