"""Stopping when the loss or a gradient is no longer finite, and finding out why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError, option
from ..files import atomic_path
from ..runs import NOT_FINITE_FILE
from .module import Inputs
from .seeding import StepSeeds

_BRANCHES = (  # part of a module's name -> what it belongs to, the more special first
    ("fcu_down", "coupling from the convolution to the transformer branch"),
    ("fcu_up", "coupling from the transformer to the convolution branch"),
    ("transformer", "transformer branch"),
    ("patch_embed", "transformer branch"),
    ("norm", "transformer branch"),
    ("trans_head", "transformer branch"),
    ("cls_token", "transformer branch"),
    ("bottleneck", "convolution branch"),
    ("fusion", "convolution branch"),
    ("conv_head", "convolution branch"),
    ("stem", "stem"),
)


class TrainingDivergedError(UserError):
    """The loss or a gradient is not finite; the message says where that began and what helps."""


class Guard(Callback):
    """Stops training at the first loss or gradient that is not finite, and says where that began.

    Works with a `ClassifierModule`. The weights are left as they were before the step.

    Args:
        folder: where the diagnosis is written as `not_finite.json`; None for nowhere.
        seeds: seeds of the steps, so that the diagnosis repeats the step exactly.
        name: gives the name of an image from its number in the source.

    Raises:
        TrainingDivergedError: from within the step.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seeds: StepSeeds | None = None,
        name: Callable[[int], str] | None = None,
    ) -> None:
        self.folder = folder
        self.seeds = seeds
        self.name = name

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # A single process must not leave a step alone while the others wait in it.
        if not trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss))):
            self._stop(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.precision == "16-mixed":
            return  # its scaler skips steps with such gradients, and lowers its scale
        gradients = {n: p.grad for n, p in _network(pl_module).named_parameters() if p.grad is not None}
        norms = torch._foreach_norm(list(gradients.values()))
        if not bool(torch.isfinite(torch.stack([norm.to(pl_module.device) for norm in norms])).all()):
            first = next(
                n for n, norm in zip(gradients, norms, strict=True) if not bool(torch.isfinite(norm))
            )
            self._stop(trainer, pl_module, parameter=first)

    def _stop(self, trainer: Trainer, module: LightningModule, *, parameter: str | None = None) -> NoReturn:
        inputs = getattr(module, "inputs", None)
        assert isinstance(inputs, Inputs), "Guard works with a ClassifierModule"
        network = _network(module)
        if self.seeds is not None:
            self.seeds.again()  # stochastic depth must leave out what it left out
        what, where = find_first(
            network,
            inputs.images,
            parameter=parameter,
            autocast=trainer.precision_plugin.forward_context,
        )
        diagnosis = Diagnosis(
            what=what,
            module=where,
            branch=branch_of(where) if what != "input" and hasattr(network, "forward_branches") else "",
            epoch=trainer.current_epoch + 1,
            step=trainer.global_step,
            lr=max(group["lr"] for group in trainer.optimizers[0].param_groups),
            precision=trainer.precision.removesuffix("-true"),
            images=[] if self.name is None else [self.name(index) for index in inputs.indices],
        )
        if self.folder is None:
            raise TrainingDivergedError(str(diagnosis))
        if trainer.is_global_zero:
            diagnosis.write(self.folder)
        raise TrainingDivergedError(f"{diagnosis} ({self.folder / NOT_FINITE_FILE} names the images)")


@dataclass(frozen=True)
class Diagnosis:
    """Where a step went wrong, and what helps."""

    what: str
    """`input`, `weights`, `output`, `loss` or `gradient`."""
    module: str
    """The first module in the order of computation, or the parameter."""
    branch: str
    """The branch of a Conformer that it belongs to; empty for others."""
    epoch: int
    """From 1."""
    step: int
    """Optimizer steps done before."""
    lr: float
    precision: str
    images: list[str]
    """Names of the images of the batch."""

    def __str__(self) -> str:
        where = f"{self.module} ({self.branch})" if self.branch else self.module
        what = {
            "input": "the images of the batch hold values that are not finite",
            "weights": f"the weights {where} are not finite",
            "output": f"the output of {where} is the first that is not finite",
            "loss": "all outputs are finite, the loss is not",
            "gradient": f"the loss is finite, the gradient of {where} is not",
        }[self.what]
        return (
            f"training diverged in epoch {self.epoch} at step {self.step} (lr {self.lr:.3g}, "
            f"{self.precision}): {what}; {self.remedy}"
        )

    @property
    def remedy(self) -> str:
        """What to try."""
        if self.what == "input":
            return f"look at the images that {NOT_FINITE_FILE} names"
        lower = f"lower {option('lr')} (to {self.lr / 3:.1g}, say)"
        hints = [lower, f"set {option('clip_grad')} to 1"]
        if self.precision != "32":
            other = "bf16-mixed or 32" if self.precision == "16-mixed" else "32"
            hints.append(f"use {option('precision')} {other}")
        return "start again with one of: " + ", ".join(hints)

    def write(self, folder: Path) -> None:
        """Write all of it as JSON into a folder."""
        with atomic_path(folder / NOT_FINITE_FILE) as temporary:
            values = asdict(self) | {"remedy": self.remedy}
            temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")


def find_first(
    model: nn.Module, images: Tensor, *, parameter: str | None, autocast: Callable[[], Any]
) -> tuple[str, str]:
    """Compute a step again, watch every module, and find where values stop being finite.

    Args:
        model: with the weights of the step.
        images: the step's input (B, C, H, W).
        parameter: the first parameter whose gradient is not finite; None where the loss is not.
        autocast: the precision's context for the forward pass.

    Returns:
        What it is, and the module or parameter, as in `Diagnosis`.
    """
    if not _finite(images):
        return "input", ""
    for name, tensor in model.named_parameters():
        if not _finite(tensor):
            return "weights", name
    if parameter is not None:
        return "gradient", parameter
    first = _first_module(model, images, autocast)
    return ("loss", "loss") if first is None else ("output", first)


def _first_module(model: nn.Module, images: Tensor, autocast: Callable[[], Any]) -> str | None:
    found: list[str] = []

    def watch(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [output] if isinstance(output, Tensor) else list(output)
        if not all(_finite(tensor) for tensor in tensors if isinstance(tensor, Tensor)):
            found.append(name)

    # Inner modules end before those that hold them, so the first found is the innermost.
    hooks = [
        module.register_forward_hook(partial(watch, name or type(model).__name__))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad(), autocast():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _network(module: LightningModule) -> nn.Module:
    model = module.model
    assert isinstance(model, nn.Module)
    return model


def branch_of(name: str) -> str:
    """Return the part of a Conformer that a module or parameter belongs to; empty for none."""
    parts = name.split(".")
    return next((meaning for part, meaning in _BRANCHES if part in parts), "")
