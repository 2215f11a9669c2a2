"""A classifier as a LightningModule, for `train` and for one's own `lightning.Trainer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2
from timm.utils import distribute_bn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..data.base import is_counted
from ..data.handover import Batch
from ..errors import UserError
from ..models.freezing import hold_frozen
from .losses import BranchLoss
from .scores import Scores, Summary
from .task import Mix, task_for
from .teacher import Distillation

OptimizerFactory = Callable[[nn.Module], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, optimizer steps of the whole run) -> scheduler that steps after every optimizer step."""
Resize = Callable[[Tensor, int], Tensor]
"""(images (B, C, H, W), optimizer steps done) -> images at the size to train at."""


class Inputs(NamedTuple):
    """What the network saw in one training step."""

    images: Tensor
    """(B, C, H, W), resized and mixed."""
    indices: Tensor | None
    """Numbers of the images in their source (B,); None where the batch does not say."""


class ClassifierModule(lightning.LightningModule):
    """A classifier with its loss, metrics, optimizer and schedule.

    A batch is `(images, labels)`: (B, C, H, W), normalized, and (B,) int64; a label of -100 is not counted in
    evaluation. Longer tuples, such as `conformer_vision.data`'s `Batch`, may carry more.

    Validation logs `val_loss`, and `val_top1_HEAD` and (from eleven classes) `val_top5_HEAD`, where HEAD is
    `conv`, `trans` and `fused` for a Conformer and `fused` alone for other models. Testing logs the same with
    `test_`. Prediction returns the fused logits (B, K).

    With several labels per image, the labels of a batch are (B, K) float32 of 0 and 1, or -100 all over in a
    row that is not counted. Validation then logs `val_map_HEAD`, the mean average precision.

    In training mode a Conformer given to this module returns the logits of both heads
    (`model.set_distilled_training(True)`). Modules whose parameters are all frozen stay in evaluation mode.

    Args:
        model: any timm classifier; (B, C, H, W) to logits (B, K).
        loss: training loss, `(logits, target) -> scalar`; for a model with two heads it is averaged over them
            (see `BranchLoss`, which sets other weights). Defaults to cross-entropy, or binary cross-entropy.
        optimizer: optimizer of the model's parameters, or a function that makes one from the model. Defaults
            to AdamW with a learning rate of 1e-3 and weight decay on all but norms and biases.
        scheduler: makes a learning-rate scheduler from the optimizer and the number of optimizer steps.
            Defaults to a constant learning rate.
        num_classes: number of classes. Defaults to `model.num_classes`.
        multilabel: whether an image has any number of the classes.
        val_groups: the group of each validation image, such as its patient, by its number in the source, for
            the intervals; batches then carry `indices`.
        val_loss: loss of validation and testing. Defaults to that of `loss`, averaged over the heads.
        mixup: mixes every training batch, e.g. `timm.data.Mixup`.
        resize: resizes every training batch, for progressive resizing.
        distillation: a teacher, whose answers are targets too; the label of an image may then be -100.
        channels_last: convert the images to the channels-last memory format.

    Raises:
        UserError: the number of classes is unknown or below 2.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | None = None,
        *,
        optimizer: Optimizer | OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        num_classes: int | None = None,
        multilabel: bool = False,
        val_groups: Sequence[str] | None = None,
        val_loss: nn.Module | None = None,
        mixup: Mix | None = None,
        resize: Resize | None = None,
        distillation: Distillation | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.two_heads = hasattr(model, "forward_branches")
        if self.two_heads:
            model.set_distilled_training(True)  # type: ignore[operator]
        task = task_for(multilabel)
        self.train_loss = _per_branch(loss or task.plain_loss())
        self.val_loss = _per_branch(val_loss or task.plain_loss())
        self.optimizer = optimizer or _adamw
        self.scheduler = scheduler
        self.mixup = mixup
        self.resize = resize
        self.distillation = distillation
        self.channels_last = channels_last
        classes = num_classes or getattr(model, "num_classes", None)
        if not isinstance(classes, int) or classes < 2:
            raise UserError(f"num_classes {classes}: must be 2 or more; pass num_classes=")
        heads = ("conv", "trans", "fused") if self.two_heads else ("fused",)
        self.val_scores = task.scores(heads, classes, val_groups)
        self.test_scores = task.scores(heads, classes, None)
        self.inputs: Inputs | None = None
        """Of the last training step."""
        self.val_summary: Summary | None = None
        """Of the last validation."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W); in training mode a Conformer returns those of both heads."""
        logits: Tensor = self.model(self._arrange(images))
        return logits

    def on_fit_start(self) -> None:
        self.train()  # lightning keeps the modes of modules as they are

    def train(self, mode: bool = True) -> ClassifierModule:
        super().train(mode)
        if mode:
            hold_frozen(self.model)
        return self

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; with a teacher the labels stay, so that the host sees which images have one."""
        if self.distillation is None or not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return batch._replace(images=batch.images.to(device, non_blocking=True))

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        images, target = batch[0], batch[1].to(batch[0].device, non_blocking=True)
        if self.resize is not None:
            images = self.resize(images, self.global_step)
        images = self._arrange(images)
        labelled = is_counted(batch[1])
        if self.distillation is not None:
            target = target.clamp(min=0)  # MixUp makes vectors of them; those without a label are not used
        if self.mixup is not None:
            images, target = self.mixup(images, target)
            labelled = labelled & labelled.flip(0)  # with which it mixes
        self.inputs = Inputs(images, getattr(batch, "indices", None))
        output = self.model(images)
        loss: Tensor
        if self.distillation is None:
            loss = self.train_loss(output, target)
        else:
            loss = self.distillation(images, output, target, labelled=labelled, label_loss=self.train_loss)
        self.log("train_loss", loss, batch_size=len(images))
        return loss

    def validation_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self._score(self.val_scores, batch)

    def test_step(self, batch: Sequence[Any], batch_idx: int) -> None:
        self._score(self.test_scores, batch)

    def predict_step(self, batch: Tensor | Sequence[Any], batch_idx: int) -> Tensor:
        """Fused logits (B, K) of a batch of images, or of images with labels, which are ignored."""
        return self.forward(batch if isinstance(batch, Tensor) else batch[0])

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # every process has met other images
            distribute_bn(self.model, self.trainer.world_size, reduce=True)

    def on_validation_epoch_end(self) -> None:
        self.val_summary = self._log_scores(self.val_scores, "val")

    def on_test_epoch_end(self) -> None:
        self._log_scores(self.test_scores, "test")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        made = self.optimizer if isinstance(self.optimizer, Optimizer) else self.optimizer(self.model)
        if self.scheduler is None:
            return made
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            raise UserError(
                "the length of the run is unknown; give the Trainer max_steps or remove scheduler"
            )
        return {
            "optimizer": made,
            "lr_scheduler": {"scheduler": self.scheduler(made, int(steps)), "interval": "step"},
        }

    def _arrange(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def _score(self, scores: Scores, batch: Sequence[Any]) -> None:
        images, target = self._arrange(batch[0]), batch[1].to(batch[0].device, non_blocking=True)
        if self.two_heads:
            branches = self.model.forward_branches(images)  # type: ignore[operator]
            fused = self.model.fuse_logits(branches)  # type: ignore[operator]
            outputs, loss = {**branches._asdict(), "fused": fused}, self.val_loss(branches, target)
        else:
            logits = self.model(images)
            outputs, loss = {"fused": logits}, self.val_loss(logits, target)
        scores.update(outputs, loss, target, getattr(batch, "indices", None))

    def _log_scores(self, scores: Scores, stage: str) -> Summary:
        # Computed here and not by `log`, which would do so only in processes that saw an image.
        summary = scores.summary()
        for name, value in summary.values.items():
            self.log(f"{stage}_{name}", value, rank_zero_only=False)
        scores.reset()
        return summary


def _per_branch(loss: nn.Module) -> nn.Module:
    return loss if isinstance(loss, BranchLoss) else BranchLoss(loss)


def _adamw(model: nn.Module) -> Optimizer:
    optimizer: Optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    return optimizer
