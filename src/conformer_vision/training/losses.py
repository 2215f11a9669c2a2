"""The loss of a network with two heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from ..data.base import is_counted


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with a weight per class.

    The weighted losses are divided by the number of images. torch divides those of labels by the sum of
    their weights instead, which hides the weights in small batches and would tie the loss of an image to the
    batch and the process that it falls into.

    Args:
        weight: of every class (K,), with a mean of 1 over the training images.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) for labels (B,) or soft targets (B, K)."""
        losses: Tensor = cross_entropy(
            logits.float(),
            target if target.ndim == 1 else target.float(),
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return losses.mean()


class BinaryCrossEntropy(nn.Module):
    """torch's binary cross-entropy of every class by itself, the mean over images and classes.

    Images that are not counted (`is_counted`) are left out.

    Args:
        label_smoothing: share by which every target moves from 0 or 1 towards 1/2.
        pos_weight: weight of an image that has a class, by class (K,), where one that has not weighs 1.
    """

    pos_weight: Tensor | None

    def __init__(self, *, label_smoothing: float = 0.0, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("pos_weight", pos_weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) for targets (B, K) in [0, 1]."""
        counted = is_counted(target)  # to take these rows out, a GPU would have to be waited for
        target = target.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses: Tensor = binary_cross_entropy_with_logits(
            logits.float(),
            target.masked_fill(~counted[:, None], 0.0),
            pos_weight=self.pos_weight,
            reduction="none",
        )
        return losses.mean(dim=1).masked_fill(~counted, 0.0).sum() / counted.sum()


class AsymmetricLoss(nn.Module):
    """Binary cross-entropy that looks away from easy images without a class (Ridnik et al., ICCV 2021).

    The mean over images and classes, as in `BinaryCrossEntropy`. timm's own is a sum or a mean, depending on
    its version, and ends the gradient of a class below a probability of 1e-8.

    Args:
        gamma_neg: focusing of images without the class.
        gamma_pos: focusing of images with it.
        margin: probability that counts as 0 for an image without the class.
    """

    def __init__(self, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, margin: float = 0.05) -> None:
        super().__init__()
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.margin = margin

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits (B, K) for targets (B, K) of 0 and 1."""
        logits = logits.float()
        probability = logits.sigmoid()
        with_class = -logsigmoid(logits) * (1 - probability) ** self.gamma_pos
        shifted = (probability - self.margin).clamp(min=0)
        without = -(1 - shifted).log() * shifted**self.gamma_neg
        return (target * with_class + (1 - target) * without).mean()


class BranchLoss(nn.Module):
    """Mean of the branches' losses, as in the official training code; OpenMMLab sums them.

    Given one tensor instead of branches it is `criterion` itself, so it also serves models with one head and
    validation in timm's own trainers.

    Args:
        criterion: loss of one head, `(logits (B, K), target) -> scalar`, for the targets it takes: hard (B,)
            or soft (B, K).
        conv_share: share of the first of two heads, the convolution head of `BranchLogits`, in [0, 1].

    Example:
        >>> model.set_distilled_training(True)  # training-mode forward returns both branches
        >>> loss = BranchLoss(nn.CrossEntropyLoss())(model(images), target)
    """

    def __init__(self, criterion: nn.Module, *, conv_share: float = 0.5) -> None:
        super().__init__()
        self.criterion = criterion
        self.conv_share = conv_share

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the loss of logits (B, K), or of a sequence of them such as `BranchLogits`."""
        if isinstance(output, Tensor):
            loss: Tensor = self.criterion(output, target)
            return loss
        losses: list[Tensor] = [self.criterion(logits, target) for logits in output]
        if len(losses) != 2:
            return sum(losses[1:], losses[0]) / len(losses)
        return self.conv_share * losses[0] + (1 - self.conv_share) * losses[1]
