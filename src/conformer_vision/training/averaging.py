"""The exponential moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


class Averaging(WeightAveraging):
    """lightning's weight averaging with an optional warm-up of the decay, which its own EMA callback lacks.

    Buffers are averaged too. Validation sees the average, and the average is what a run keeps.

    Args:
        decay: of the average, per optimizer step, in (0, 1).
        warmup: use ``min(decay, (1 + n) / (10 + n))`` after n steps.
    """

    def __init__(self, decay: float, *, warmup: bool) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=_average_with(decay, warmup=warmup))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where the module itself will be moved later
        super().setup(trainer, pl_module, stage)

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights."""
        assert self._average_model is not None
        model = self._average_model.module.model
        assert isinstance(model, nn.Module)
        return model


def _average_with(decay: float, *, warmup: bool) -> Any:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        weight = 1 - (min(decay, (1 + steps) / (10 + steps)) if warmup else decay)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, weight)
        else:  # BatchNorm's count of batches
            for mine, other in zip(averaged, current, strict=True):
                mine.copy_(other)

    return update
