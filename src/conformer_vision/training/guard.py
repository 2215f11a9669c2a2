"""What to say when the loss is no longer a number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UserError
from ..files import atomic_path
from ..runs import NOT_FINITE_FILE
from .seeding import seed_step

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


class NotFinite(Exception):  # noqa: N818  # raised to leave the step
    """A loss or a gradient that is not finite.

    Attributes:
        parameter: the first parameter with such a gradient; None where the loss is it.
        images: the step's input (B, C, H, W), after MixUp.
        indices: numbers of its images in the source.
        draw: what `seed_step` took before the step, so that it can be computed again.
    """

    def __init__(
        self,
        *,
        images: Tensor,
        indices: Sequence[int],
        draw: tuple[int, int, int, int],
        parameter: str | None = None,
    ) -> None:
        super().__init__("not finite")
        self.images = images
        self.indices = list(indices)
        self.draw = draw
        self.parameter = parameter


@dataclass(frozen=True)
class Diagnosis:
    """Where a step went wrong."""

    what: str
    """``input``, ``weights``, ``output``, ``loss`` or ``gradient``."""
    module: str
    """The first module, in the order of computation, or the parameter."""
    branch: str
    """The branch of a Conformer that it belongs to; empty for others."""
    epoch: int
    """From 1."""
    step: int
    """Optimiser steps done before."""
    lr: float
    precision: str
    images: list[str]
    """Names of the images of the batch."""
    remedy: str

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

    def write(self, folder: Path) -> None:
        """Writes all of it as JSON into the run folder."""
        with atomic_path(folder / NOT_FINITE_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False), encoding="utf-8")


def diagnose(
    model: nn.Module,
    failure: NotFinite,
    *,
    autocast: Callable[[], Any],
    **step: Any,
) -> Diagnosis:
    """Compute the step again and watch every module.

    Args:
        model: with the weights of the step.
        failure: of the step.
        autocast: the precision's context for the forward pass.
        step: ``epoch``, ``step``, ``lr``, ``precision`` and ``images`` of the `Diagnosis`.
    """
    what, name = _find(model, failure, autocast)
    branch = ""
    if what != "input" and hasattr(model, "forward_branches"):
        parts = name.split(".")
        branch = next((meaning for part, meaning in _BRANCHES if part in parts), "")
    return Diagnosis(what=what, module=name, branch=branch, remedy=_remedy(what, step), **step)


def _find(model: nn.Module, failure: NotFinite, autocast: Callable[[], Any]) -> tuple[str, str]:
    if not _finite(failure.images):
        return "input", ""
    for name, tensor in model.named_parameters():
        if not _finite(tensor):
            return "weights", name
    if failure.parameter is not None:
        return "gradient", failure.parameter
    seed_step(*failure.draw)  # stochastic depth has to leave out what it left out
    first = _first_module(model, failure.images, autocast)
    return ("loss", "loss") if first is None else ("output", first)


def _first_module(model: nn.Module, images: Tensor, autocast: Callable[[], Any]) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [output] if isinstance(output, Tensor) else list(output)
            if not found and not all(_finite(tensor) for tensor in tensors if isinstance(tensor, Tensor)):
                found.append(name)

        return hook

    # Inner modules end before those that hold them, so the first found is the innermost.
    hooks: list[RemovableHandle] = [
        module.register_forward_hook(watch(name or type(model).__name__))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad(), autocast():
            model(images)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else None


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _remedy(what: str, step: dict[str, Any]) -> str:
    if what == "input":
        return f"look at the images that {NOT_FINITE_FILE} names"
    hints = [f"lower lr (to {step['lr'] / 3:.1g}, say)", "set clip_grad to 1"]
    if step["precision"] != "32":
        hints.append("use precision " + ("bf16-mixed or 32" if step["precision"] == "16-mixed" else "32"))
    return "the state before is kept: begin again with one of: " + ", ".join(hints)
