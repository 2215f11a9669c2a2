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
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from ..data.loader import NOT_COUNTED
from ..errors import UserError
from ..inference.intervals import TOP5_FROM, Figure, share, share_of_groups
from ..models.freezing import hold_frozen
from .losses import BranchLoss
from .teacher import Distillation

OptimizerFactory = Callable[[nn.Module], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, optimizer steps of the whole run) -> scheduler that steps after every optimizer step."""
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (B, C, H, W), labels (B,)) -> mixed images and soft targets (B, K), as `timm.data.Mixup`."""
Resize = Callable[[Tensor, int], Tensor]
"""(images (B, C, H, W), optimizer steps done) -> images at the size to train at."""


class Inputs(NamedTuple):
    """What the network saw in one training step."""

    images: Tensor
    """(B, C, H, W), resized and mixed."""
    indices: list[int]
    """Numbers of the images in their source; empty where the batch does not say."""


class ClassifierModule(lightning.LightningModule):
    """A classifier with its loss, metrics, optimizer and schedule.

    A batch is `(images, labels)`: (B, C, H, W), normalized, and (B,) int64; a label of -100 is not counted in
    evaluation. Longer tuples, such as `conformer_vision.data`'s `Batch`, may carry more.

    Validation logs `val_loss`, and `val_top1_HEAD` and (from eleven classes) `val_top5_HEAD`, where HEAD is
    `conv`, `trans` and `fused` for a Conformer and `fused` alone for other models. Testing logs the same with
    `test_`. Prediction returns the fused logits (B, K).

    In training mode a Conformer given to this module returns the logits of both heads
    (`model.set_distilled_training(True)`). Modules whose parameters are all frozen stay in evaluation mode.

    Args:
        model: any timm classifier; (B, C, H, W) to logits (B, K).
        loss: training loss, `(logits, target) -> scalar`; for a model with two heads it is averaged over them
            (see `BranchLoss`, which sets other weights). Defaults to cross-entropy.
        optimizer: optimizer of the model's parameters, or a function that makes one from the model. Defaults
            to AdamW with a learning rate of 1e-3 and weight decay on all but norms and biases.
        scheduler: makes a learning-rate scheduler from the optimizer and the number of optimizer steps.
            Defaults to a constant learning rate.
        num_classes: number of classes. Defaults to `model.num_classes`.
        val_groups: the group of each validation image, such as its patient, by its number in the source, for
            the intervals; batches then carry `indices`.
        val_loss: loss of validation and testing. Defaults to cross-entropy averaged over the heads.
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
        self.train_loss = _per_branch(loss or nn.CrossEntropyLoss())
        self.val_loss = _per_branch(val_loss or nn.CrossEntropyLoss(ignore_index=NOT_COUNTED))
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
        self.val_scores, self.test_scores = _Scores(heads, classes, val_groups), _Scores(heads, classes)
        self.inputs: Inputs | None = None
        """Of the last training step."""
        self.val_counts: tuple[list[int], list[int]] | None = None
        """Of the last validation: images per class, and correct answers of the fused head among them."""
        self.val_shares: dict[str, Figure] = {}
        """Of the last validation: `top1_HEAD` and `top5_HEAD` with their intervals."""

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

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        images, target = batch[0], batch[1]
        if self.resize is not None:
            images = self.resize(images, self.global_step)
        images = self._arrange(images)
        labelled = target != NOT_COUNTED
        if self.distillation is not None:
            target = target.clamp(min=0)  # MixUp makes vectors of them; those without a label are not used
        if self.mixup is not None:
            images, target = self.mixup(images, target)
            labelled = labelled & labelled.flip(0)  # with which it mixes
        indices = getattr(batch, "indices", None)
        self.inputs = Inputs(images, [] if indices is None else indices.tolist())
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
        images, correct = self.val_scores.by_class.compute().tolist()
        self.val_counts = images, correct
        self.val_shares = self.val_scores.shares(sum(images))
        self._log_scores(self.val_scores, "val")

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

    def _score(self, scores: _Scores, batch: Sequence[Any]) -> None:
        images, target = self._arrange(batch[0]), batch[1]
        if self.two_heads:
            branches = self.model.forward_branches(images)  # type: ignore[operator]
            fused = self.model.fuse_logits(branches)  # type: ignore[operator]
            outputs, loss = {**branches._asdict(), "fused": fused}, self.val_loss(branches, target)
        else:
            logits = self.model(images)
            outputs, loss = {"fused": logits}, self.val_loss(logits, target)
        scores.update(outputs, loss, target, getattr(batch, "indices", None))

    def _log_scores(self, scores: _Scores, stage: str) -> None:
        # Computed here and not by `log`, which would do so only in processes that saw an image.
        for name, value in scores.compute().items():
            self.log(f"{stage}_{name}", value, rank_zero_only=False)
        scores.reset()


class _Scores(nn.Module):
    """Mean loss, and top-1 and top-5 accuracy of every head, over an evaluation and all processes."""

    def __init__(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None = None) -> None:
        super().__init__()
        self.loss = MeanMetric()
        self.by_class = _ByClass(num_classes)
        ks = (1, 5) if num_classes >= TOP5_FROM else (1,)
        self.accuracy = nn.ModuleDict(
            {
                f"top{k}_{head}": MulticlassAccuracy(
                    num_classes, top_k=k, average="micro", ignore_index=NOT_COUNTED
                )
                for k in ks
                for head in heads
            }
        )
        self.by_group = None if groups is None else _ByGroup(groups, list(self.accuracy))

    def update(self, logits: dict[str, Tensor], loss: Tensor, target: Tensor, indices: Tensor | None) -> None:
        counted = int((target != NOT_COUNTED).sum())
        if not counted:
            return
        self.loss.update(loss, weight=counted)
        self.by_class.update(logits["fused"], target)
        for name, metric in self.accuracy.items():
            assert isinstance(metric, MulticlassAccuracy)
            metric.update(logits[name.partition("_")[2]], target)
        if self.by_group is not None:
            assert indices is not None
            self.by_group.update(logits, target, indices)

    def compute(self) -> dict[str, Tensor]:
        scores = {"loss": self.loss.compute()}
        for name, metric in self.accuracy.items():
            assert isinstance(metric, MulticlassAccuracy)
            scores[name] = metric.compute()
        return scores

    def shares(self, images: int) -> dict[str, Figure]:
        """Return every accuracy with its interval: of so many images or, where there are any, of groups."""
        if self.by_group is not None:
            total, *correct = self.by_group.compute().tolist()
            return {
                name: share_of_groups(right, total)
                for name, right in zip(self.accuracy, correct, strict=True)
            }
        values = {name: float(value) for name, value in self.compute().items() if name != "loss"}
        return {name: share(round(value * images), images) for name, value in values.items()}

    def reset(self) -> None:
        self.loss.reset()
        if self.by_group is not None:
            self.by_group.reset()
        self.by_class.reset()
        for metric in self.accuracy.values():
            assert isinstance(metric, MulticlassAccuracy)
            metric.reset()


class _ByClass(Metric):
    """Images per class, and correct answers; torchmetrics' own counts take memory per pair of classes."""

    images: Tensor
    correct: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("images", "correct"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        counted = target != NOT_COUNTED
        target = target[counted]
        right = logits[counted].argmax(1) == target
        self.images += torch.bincount(target, minlength=len(self.images))
        self.correct += torch.bincount(target[right], minlength=len(self.correct))

    def compute(self) -> Tensor:
        return torch.stack([self.images, self.correct])


class _ByGroup(Metric):
    """Images per group, and correct answers by accuracy.

    Args:
        groups: of each image, by its number.
        names: of the accuracies, as `top1_conv`.
    """

    counts: Tensor

    def __init__(self, groups: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self.names = list(names)
        of_images = torch.tensor([numbers[group] for group in groups])
        self.register_buffer("numbers", of_images, persistent=False)
        zeros = torch.zeros(1 + len(names), len(numbers), dtype=torch.long)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, logits: dict[str, Tensor], target: Tensor, indices: Tensor) -> None:
        counted = target != NOT_COUNTED
        assert isinstance(self.numbers, Tensor)
        groups = self.numbers[indices.to(self.numbers.device)[counted]]
        found = [groups]
        for name in self.names:
            rank, _, head = name.removeprefix("top").partition("_")
            best = logits[head][counted].topk(int(rank), dim=1).indices
            found.append(groups[(best == target[counted][:, None]).any(dim=1)])
        self.counts += torch.stack([torch.bincount(each, minlength=self.counts.shape[1]) for each in found])

    def compute(self) -> Tensor:
        return self.counts


def _per_branch(loss: nn.Module) -> nn.Module:
    return loss if isinstance(loss, BranchLoss) else BranchLoss(loss)


def _adamw(model: nn.Module) -> Optimizer:
    optimizer: Optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    return optimizer
