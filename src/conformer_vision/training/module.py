"""One step of training and of validation, for lightning."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassAccuracy

from ..models import Conformer
from .config import TrainConfig
from .losses import BranchLoss
from .schedule import Clock, WarmupCosine

TOP5_FROM = 6
"""Number of classes from which top-5 says something."""


class ClassifierModule(lightning.LightningModule):
    """A classifier with its loss, metrics, optimiser and learning-rate schedule.

    Validation logs ``val_loss`` (mean over the branches) and ``val_top1_HEAD`` and ``val_top5_HEAD``,
    where HEAD is ``conv``, ``trans`` and ``fused`` for a Conformer and ``fused`` alone for others.

    Args:
        model: any timm model; (B, C, H, W) to (B, num_classes).
        config: of the run.
        num_classes: 2 or more.
        steps_per_epoch: full batches of the training set.
        clock: time that is gone, for a run limited by it.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, *, num_classes: int, steps_per_epoch: int, clock: Clock
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.clock = clock
        if callable(switch := getattr(model, "set_distilled_training", None)):
            switch(True)  # training-mode forward gives the logits of every head
        self.mixup = build_mixup(config, num_classes)
        # MixUp smooths the targets that it mixes.
        smoothing = config.label_smoothing if self.mixup is None else 0.0
        self.train_loss = BranchLoss(nn.CrossEntropyLoss(label_smoothing=smoothing))
        self.val_loss = BranchLoss(nn.CrossEntropyLoss())
        heads = ("conv", "trans", "fused") if isinstance(model, Conformer) else ("fused",)
        ks = (1, 5) if num_classes >= TOP5_FROM else (1,)
        self.accuracy = nn.ModuleDict(
            {
                f"val_top{k}_{head}": MulticlassAccuracy(num_classes, top_k=k, average="micro")
                for k in ks
                for head in heads
            }
        )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, where time does not end it before."""
        steps = self.config.epochs * self.steps_per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        loss: Tensor = self.train_loss(self.model(images), target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, target = batch
        outputs: dict[str, Tensor]
        if isinstance(self.model, Conformer):
            branches = self.model.forward_branches(images)
            outputs = {**branches._asdict(), "fused": self.model.fuse_logits(branches)}
            loss = self.val_loss(branches, target)
        else:
            outputs = {"fused": self.model(images)}
            loss = self.val_loss(outputs["fused"], target)
        self.log("val_loss", loss, batch_size=len(images))
        for name, metric in self.accuracy.items():
            assert isinstance(metric, MulticlassAccuracy)
            metric.update(outputs[name.rsplit("_", 1)[1]], target)
            self.log(name, metric, batch_size=len(images))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.config
        optimizer = build_optimizer(self.model, config)
        factor = WarmupCosine(
            self.total_steps,
            config.warmup_epochs * self.steps_per_epoch,
            floor=config.min_lr / config.lr,
            clock=self.clock,
        )
        # A plain function: of a callable object torch would put the attributes, the clock among them, into
        # the checkpoint, which then could not be read without running code from it.
        scheduler = LambdaLR(optimizer, lambda step: factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["clock"] = self.clock.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.load_state_dict(checkpoint["clock"])


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """timm's optimiser; norms, biases and what ``model.no_weight_decay()`` names do not decay."""
    optimizer: Optimizer = create_optimizer_v2(
        model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay
    )
    return optimizer


def build_mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    """MixUp and CutMix over whole batches, or None where both are off."""
    if not (config.mixup or config.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
