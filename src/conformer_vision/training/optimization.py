"""Loss, mixing and optimizer as a configuration asks for them."""

from __future__ import annotations

from typing import Any

import timm
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError, first_line, nearest
from .groups import OptimizerConfig, Precision, RegularizationConfig
from .losses import BranchLoss
from .task import Mix, Task


def build_loss(
    config: RegularizationConfig, model: nn.Module, task: Task, *, weights: Tensor | None = None
) -> BranchLoss:
    """Make the training loss, with a weight per class (K,) if given; `config` is decided (`Task.decide`).

    Raises:
        UserError: an option for the two heads of a Conformer, and the model has one head.
    """
    if config.conv_loss_share != 0.5 and not hasattr(model, "forward_branches"):
        raise UserError("conv_loss_share is for the two heads of a Conformer; this model has one head")
    return BranchLoss(task.loss(config, weights), conv_share=config.conv_loss_share)


def build_mixup(config: RegularizationConfig, task: Task, num_classes: int, *, images: int) -> Mix | None:
    """Make MixUp and CutMix over whole batches, or None where both are off.

    Raises:
        UserError: the number of images of a batch is odd.
    """
    if not (config.mixup or config.cutmix):
        return None
    if images % 2:
        raise UserError(f"mixup and cutmix need an even number of images per pass, not {images}")
    return task.mixup(config, num_classes)


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, precision: Precision = "32") -> Optimizer:
    """Make timm's optimizer; norms, biases and what `model.no_weight_decay()` names do not decay.

    Raises:
        UserError: timm has no such optimizer, or it cannot be used here.
    """
    # One pass over all parameters, which takes a third of the time on a CPU. With it lightning can neither
    # clip under autocast nor scale for float16.
    plain = precision == "16-mixed" or (precision != "32" and config.clip_grad is not None)
    fused = config.optimizer in ("adam", "adamw") and not plain
    options: dict[str, Any] = {"fused": True} if fused else {}
    try:
        optimizer: Optimizer = create_optimizer_v2(
            model,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            **options,
        )
    except (ValueError, TypeError, AssertionError, RuntimeError, ImportError) as error:
        hint = nearest(config.optimizer, [str(name) for name in timm.optim.list_optimizers()])
        raise UserError(f"optimizer {config.optimizer!r}: {first_line(error)}{hint}") from error
    for group in optimizer.param_groups:
        group["lr"] *= group.get("lr_scale", 1.0)  # timm leaves the layer's share to its own schedules
    return optimizer
