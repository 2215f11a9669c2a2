"""One step of training and of validation, for lightning."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ..data.loader import NOT_COUNTED, Batch
from ..models import Conformer
from ..models.freezing import freeze, hold_frozen
from .config import TrainConfig
from .guard import NotFinite
from .losses import BranchLoss
from .schedule import Clock, WarmupCosine, progressive_size
from .seeding import seed_step

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
        self.lr = config.optimizer.lr  # where lightning's search for a learning rate puts what it found
        if isinstance(model, Conformer):
            model.set_distilled_training(True)  # training-mode forward gives the logits of every head
            freeze(model, blocks=config.model.freeze_blocks, branch=config.model.freeze_branch)
        if config.hardware.grad_checkpointing != "off":
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        if config.hardware.channels_last:
            model.to(memory_format=torch.channels_last)
        if config.hardware.compile:
            model.compile()
        self.mixup = build_mixup(config, num_classes)
        # MixUp smooths the targets that it mixes.
        smoothing = config.regularization.label_smoothing if self.mixup is None else 0.0
        self.train_loss = BranchLoss(
            nn.CrossEntropyLoss(label_smoothing=smoothing),
            conv_share=config.regularization.conv_loss_share,
            mutual=config.regularization.mutual_distillation,
        )
        self.val_loss = BranchLoss(nn.CrossEntropyLoss(ignore_index=NOT_COUNTED))
        self.mean_val_loss = MeanMetric()
        heads = ("conv", "trans", "fused") if isinstance(model, Conformer) else ("fused",)
        ks = (1, 5) if num_classes >= TOP5_FROM else (1,)
        self.accuracy = nn.ModuleDict(
            {
                f"val_top{k}_{head}": MulticlassAccuracy(
                    num_classes, top_k=k, average="micro", ignore_index=NOT_COUNTED
                )
                for k in ks
                for head in heads
            }
        )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run, where time does not end it before."""
        steps = self.config.schedule.epochs * self.steps_per_epoch
        return steps if self.config.schedule.max_steps is None else min(steps, self.config.schedule.max_steps)

    def on_fit_start(self) -> None:
        self.train()  # lightning keeps the modes of modules as they are

    def train(self, mode: bool = True) -> ClassifierModule:
        super().train(mode)
        if mode:
            hold_frozen(self.model)
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # A step draws from a seed of its own, so that a run that goes on draws what it would have drawn.
        draw = (self.config.data.seed, self.global_rank, self.current_epoch, batch_idx)
        seed_step(*draw)
        images, target = self._arrange(self._shrink(batch.images)), batch.labels
        if self.mixup is not None:
            images, target = self.mixup(images, target)
        loss: Tensor = self.train_loss(self.model(images), target)
        self._stepped_on = (images, batch.indices, draw)
        # A single process must not leave a step alone that the others wait in.
        if not bool(self._everywhere(torch.isfinite(loss))):
            raise NotFinite(images=images, indices=batch.indices.tolist(), draw=draw)
        self.log("train_loss", loss, batch_size=len(images))
        return loss

    def _shrink(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) at the size that this part of the run trains at."""
        start = self.config.schedule.progressive_from
        if start is None:
            return images
        gone = max(self.global_step / self.total_steps, self.clock.progress)
        size = progressive_size(start, (images.shape[2], images.shape[3]), gone)
        if size == tuple(images.shape[2:]):
            return images
        return interpolate(images, size=size, mode="bilinear", antialias=True)

    def _arrange(self, images: Tensor) -> Tensor:
        return (
            images.contiguous(memory_format=torch.channels_last)
            if self.config.hardware.channels_last
            else images
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.trainer.precision == "16-mixed":
            return  # there the scaler leaves out steps with such gradients, and lowers its scale
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        norms = torch._foreach_norm(list(gradients.values()))
        if not bool(torch.isfinite(torch.stack([norm.to(self.device) for norm in norms])).all()):
            name = next(n for n, norm in zip(gradients, norms, strict=True) if not bool(torch.isfinite(norm)))
            images, indices, draw = self._stepped_on
            raise NotFinite(images=images, indices=indices.tolist(), draw=draw, parameter=name)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, target = self._arrange(batch.images), batch.labels
        counted = int((target != NOT_COUNTED).sum())
        outputs: dict[str, Tensor]
        if isinstance(self.model, Conformer):
            branches = self.model.forward_branches(images)
            outputs = {**branches._asdict(), "fused": self.model.fuse_logits(branches)}
            loss = self.val_loss(branches, target)
        else:
            outputs = {"fused": self.model(images)}
            loss = self.val_loss(outputs["fused"], target)
        if counted:
            self.mean_val_loss.update(loss, weight=counted)
            for name, metric in self.accuracy.items():
                assert isinstance(metric, MulticlassAccuracy)
                metric.update(outputs[name.rsplit("_", 1)[1]], target)

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # every process has met other images
            distribute_bn(self.model, self.trainer.world_size, reduce=True)

    def on_validation_epoch_end(self) -> None:
        # Computed here and not by `log`, which would do so only for processes that saw an image.
        self.log("val_loss", self.mean_val_loss.compute(), rank_zero_only=False)
        self.mean_val_loss.reset()
        for name, metric in self.accuracy.items():
            assert isinstance(metric, MulticlassAccuracy)
            self.log(name, metric.compute())
            metric.reset()

    def _everywhere(self, value: Tensor) -> Tensor:
        """Whether it is true in every process."""
        if not torch.distributed.is_initialized():
            return value
        number = value.to(torch.int32)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MIN)
        return number

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        min_lr = min(self.config.schedule.min_lr, self.lr)
        config = self.config.with_options(lr=self.lr, min_lr=min_lr)
        optimizer = build_optimizer(self.model, config)
        factor = WarmupCosine(
            self.total_steps,
            config.schedule.warmup_epochs * self.steps_per_epoch,
            floor=config.schedule.min_lr / config.optimizer.lr,
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
    # One pass over all parameters: a third of the time on a CPU. Under autocast lightning cannot clip then.
    plain = config.hardware.precision == "16-mixed" or (
        config.hardware.precision != "32" and config.optimizer.clip_grad is not None
    )
    fused = config.optimizer.optimizer in ("adam", "adamw") and not plain
    options: dict[str, Any] = {"fused": True} if fused else {}
    optimizer: Optimizer = create_optimizer_v2(
        model,
        opt=config.optimizer.optimizer,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        layer_decay=config.optimizer.layer_decay,
        **options,
    )
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)  # timm leaves the layer's share to its own schedules
    return optimizer


def build_mixup(config: TrainConfig, num_classes: int) -> Mixup | None:
    """MixUp and CutMix over whole batches, or None where both are off."""
    if not (config.regularization.mixup or config.regularization.cutmix):
        return None
    return Mixup(
        mixup_alpha=config.regularization.mixup,
        cutmix_alpha=config.regularization.cutmix,
        label_smoothing=config.regularization.label_smoothing,
        num_classes=num_classes,
    )
