"""What sets training with one label per image apart from training with several, in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, log_softmax

from ..data.base import NOT_COUNTED
from ..errors import UserError, option
from .groups import Loss, RegularizationConfig
from .losses import AsymmetricLoss, BinaryCrossEntropy, WeightedCrossEntropy
from .scores import OneLabelScores, Scores, SeveralLabelScores

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images (B, C, H, W), labels (B,) or (B, K)) -> mixed images and soft targets (B, K)."""


class Task(ABC):
    """The loss, the scores and what else depends on whether an image has one label or several."""

    leading: ClassVar[str]
    """The score by which epochs are compared, one of `callbacks.LEADING`."""
    label_smoothing: ClassVar[float]
    """Where it is left open."""
    losses: ClassVar[Mapping[Loss, type[nn.Module]]]
    """Names of the training losses, the first by default."""
    named: ClassVar[str]
    """The labels in words."""

    @abstractmethod
    def plain_loss(self) -> nn.Module:
        """Return the loss of validation, which leaves out images that are not counted."""

    @abstractmethod
    def scores(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None) -> Scores:
        """Return the scores of a validation; see `Scores`."""

    @abstractmethod
    def loss(self, config: RegularizationConfig, weights: Tensor | None) -> nn.Module:
        """Return the training loss of one head, with a weight per class (K,) or None; `config` is decided."""

    @abstractmethod
    def mixup(self, config: RegularizationConfig, num_classes: int) -> Mix:
        """Return MixUp and CutMix over whole batches; `config` is decided."""

    @abstractmethod
    def answer_loss(self, *, hard: bool, tau: float) -> nn.Module:
        """Return the loss of one head's logits (B, K) against a teacher's.

        Args:
            hard: against the class, or classes, that the teacher answers, else against its probabilities.
            tau: temperature of both if not hard.
        """

    def decide(self, config: RegularizationConfig) -> RegularizationConfig:
        """Fill in the loss and the label smoothing where they are left open.

        Raises:
            UserError: an option that does not suit the labels or the loss.
        """
        name: Loss = next(iter(self.losses)) if config.loss == "auto" else config.loss
        if name not in self.losses:
            suited = " or ".join(self.losses)
            raise UserError(f"{option('loss', name)} is not for {self.named}; give {suited}, or leave it out")
        smoothing = config.label_smoothing
        if name == "asl":
            given = {"label_smoothing": smoothing, "mixup": config.mixup, "cutmix": config.cutmix}
            given["class_weights"] = config.class_weights != "none"
            if used := [option(each) for each, value in given.items() if value]:
                raise UserError(
                    f"{option('loss', 'asl')} takes plain labels; leave {', '.join(used)} out, or give "
                    f"{option('loss', 'bce')}"
                )
        smoothing = self.label_smoothing if smoothing is None else smoothing
        return replace(config, loss=name, label_smoothing=smoothing)


class OneLabel(Task):
    """An image has one class."""

    leading = "top1"
    label_smoothing = 0.1
    losses: ClassVar[Mapping[Loss, type[nn.Module]]] = {"ce": nn.CrossEntropyLoss}
    named = "images with one label each"

    def plain_loss(self) -> nn.Module:
        """Return cross-entropy."""
        return nn.CrossEntropyLoss(ignore_index=NOT_COUNTED)

    def scores(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None) -> Scores:
        """Return top-1 and top-5."""
        return OneLabelScores(heads, num_classes, groups)

    def loss(self, config: RegularizationConfig, weights: Tensor | None) -> nn.Module:
        """Return cross-entropy, weighted or not."""
        assert config.label_smoothing is not None
        mixes = config.mixup or config.cutmix  # MixUp smooths the targets that it mixes
        smoothing = 0.0 if mixes else config.label_smoothing
        if weights is None:
            return nn.CrossEntropyLoss(label_smoothing=smoothing)
        return WeightedCrossEntropy(weights, label_smoothing=smoothing)

    def mixup(self, config: RegularizationConfig, num_classes: int) -> Mix:
        """Return timm's, which smooths the labels too."""
        mixup: Mix = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            label_smoothing=config.label_smoothing,
            num_classes=num_classes,
        )
        return mixup

    def answer_loss(self, *, hard: bool, tau: float) -> nn.Module:
        """Return cross-entropy, or the divergence of the teacher's probabilities from the student's."""
        return _AnswerLoss(hard=hard, tau=tau)


class SeveralLabels(Task):
    """An image has any number of the classes."""

    leading = "map"
    label_smoothing = 0.0
    losses: ClassVar[Mapping[Loss, type[nn.Module]]] = {"bce": BinaryCrossEntropy, "asl": AsymmetricLoss}
    named = "images with several labels"

    def plain_loss(self) -> nn.Module:
        """Return binary cross-entropy."""
        return BinaryCrossEntropy()

    def scores(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None) -> Scores:
        """Return mean average precision."""
        return SeveralLabelScores(heads, num_classes, groups)

    def loss(self, config: RegularizationConfig, weights: Tensor | None) -> nn.Module:
        """Return binary cross-entropy, in which a weight is that of the images with the class, or ASL."""
        assert config.label_smoothing is not None
        if config.loss == "asl":
            return AsymmetricLoss()
        return BinaryCrossEntropy(label_smoothing=config.label_smoothing, pos_weight=weights)

    def mixup(self, config: RegularizationConfig, num_classes: int) -> Mix:
        """Return timm's with targets that are mixed alike; the loss smooths them."""
        return _MultiHotMixup(mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)

    def answer_loss(self, *, hard: bool, tau: float) -> nn.Module:
        """Return binary cross-entropy against the teacher's answers."""
        return _MultilabelAnswerLoss(hard=hard, tau=tau)


def task_for(multilabel: bool) -> Task:
    """Return the task of a model."""
    return SeveralLabels() if multilabel else OneLabel()


class _MultiHotMixup:
    """timm's MixUp and CutMix for targets (B, K), which those of its versions before 1.0.23 do not take.

    It mixes the numbers of the images as if they were classes: these are then the shares of the targets.
    """

    def __init__(self, *, mixup_alpha: float, cutmix_alpha: float) -> None:
        self.mixup = Mixup(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, label_smoothing=0.0)

    def __call__(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed images and targets."""
        self.mixup.num_classes = len(images)
        images, shares = self.mixup(images, torch.arange(len(images), device=target.device))
        return images, shares.to(target.dtype) @ target


class _AnswerLoss(nn.Module):
    def __init__(self, *, hard: bool, tau: float) -> None:
        super().__init__()
        self.hard = hard
        self.tau = tau

    def forward(self, logits: Tensor, answers: Tensor) -> Tensor:
        if self.hard:
            return cross_entropy(logits, answers.argmax(dim=1))
        student, teacher = (log_softmax(x.float() / self.tau, dim=1) for x in (logits, answers))
        return self.tau**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)


class _MultilabelAnswerLoss(nn.Module):
    """Binary cross-entropy; hard answers are the classes whose probability is at least one half."""

    def __init__(self, *, hard: bool, tau: float) -> None:
        super().__init__()
        self.hard = hard
        self.tau = tau

    def forward(self, logits: Tensor, answers: Tensor) -> Tensor:
        if self.hard:
            return binary_cross_entropy_with_logits(logits.float(), (answers >= 0).float())
        target = (answers.float() / self.tau).sigmoid()
        return self.tau**2 * binary_cross_entropy_with_logits(logits.float() / self.tau, target)
