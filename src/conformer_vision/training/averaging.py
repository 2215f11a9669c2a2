"""The exponential moving average of the weights."""

from __future__ import annotations

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Averaging(WeightAveraging):
    """lightning's weight averaging with an optional warm-up of the decay, which its own EMA callback lacks.

    Buffers are averaged too. Validation sees the average, and the average is what a run keeps.

    Args:
        decay: of the average, per optimizer step, in (0, 1).
        warmup: use ``min(decay, (1 + n) / (10 + n))`` after n steps.
    """

    def __init__(self, decay: float, *, warmup: bool) -> None:
        super().__init__()
        self.decay = decay
        self.warmup = warmup

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            device = trainer.strategy.root_device  # where the module itself will be moved later
            self._average_model = _Average(pl_module, device=device, decay=self.decay, warmup=self.warmup)

    @property
    def model(self) -> nn.Module:
        """The network with the averaged weights."""
        assert self._average_model is not None
        model = self._average_model.module.model
        assert isinstance(model, nn.Module)
        return model


class _Average(AveragedModel):
    """torch's average, updated without asking the device how many updates there were."""

    def __init__(self, model: nn.Module, *, device: torch.device, decay: float, warmup: bool) -> None:
        super().__init__(model, device, use_buffers=True)
        self.decay = decay
        self.warmup = warmup
        self._updates: int | None = None

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards a model's weights and buffers; the first update copies them."""
        if self._updates is None:  # at the start, or what a checkpoint says
            self._updates = int(self.n_averaged)
        steps, pairs = self._updates, list(zip(_tensors(self.module), _tensors(model), strict=True))
        whole = [pair for pair in pairs if not steps or not pair[0].is_floating_point()]
        for mine, other in whole:  # among them BatchNorm's counts of batches
            mine.copy_(other)
        if steps:
            decay = min(self.decay, (1 + steps) / (10 + steps)) if self.warmup else self.decay
            averaged, current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
            torch._foreach_lerp_(averaged, current, 1 - decay)
        self._updates += 1
        self.n_averaged += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
