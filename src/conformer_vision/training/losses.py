"""The loss of a network with two heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class BranchLoss(nn.Module):
    """Mean of the losses of the branches (Conformer's official training code; OpenMMLab sums them).

    With one tensor instead of branches it is ``criterion`` itself, so the same loss serves models
    with one head, and validation in timm's own trainers.

    Args:
        criterion: loss of one head, ``(logits (B, K), target) -> scalar``; hard targets (B,) or
            soft ones (B, K), whatever it takes.

    Example:
        >>> model.set_distilled_training(True)  # training-mode forward returns both branches
        >>> loss = BranchLoss(nn.CrossEntropyLoss())(model(images), target)
    """

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """Loss of logits (B, K), or of a sequence of them such as `BranchLogits`."""
        if isinstance(output, Tensor):
            loss: Tensor = self.criterion(output, target)
            return loss
        losses: list[Tensor] = [self.criterion(logits, target) for logits in output]
        return sum(losses[1:], losses[0]) / len(losses)
