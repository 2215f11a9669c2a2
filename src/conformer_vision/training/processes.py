"""Decisions that processes which train together have to take alike."""

from __future__ import annotations

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return getattr(rank_zero_only, "rank", 0) == 0


def any_process(trainer: Trainer, *flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any of the processes; every process has to ask."""
    if trainer.world_size == 1:
        return flags
    numbers = torch.tensor(flags, dtype=torch.int32, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(numbers, op=torch.distributed.ReduceOp.MAX)
    return tuple(bool(number) for number in numbers.tolist())


def from_first(trainer: Trainer, value: float) -> float:
    """The first process's number."""
    if trainer.world_size == 1:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=trainer.strategy.root_device)
    torch.distributed.broadcast(number, src=0)
    return float(number)


def summed(trainer: Trainer, *values: float) -> tuple[float, ...]:
    """Each value's sum over the processes."""
    if trainer.world_size == 1:
        return values
    numbers = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(numbers)
    return tuple(numbers.tolist())
