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
from .pace import Pace
from .seeding import StepSeeds
from .watch import Found, Pass, Watch

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
    """Stops training when a loss or a gradient is not finite, and says where that began.

    Works with a `ClassifierModule`. No step waits for the device: the guard looks about once a second
    (`Pace`), before every validation, and before anything is saved. What it names is the first step that went
    wrong, which it repeats with the weights and images of then. The weights are left as they were before that
    step; the optimizer's state is not.

    Args:
        folder: where the diagnosis is written as `not_finite.json`; None for nowhere.
        seeds: seeds of the steps, so that the diagnosis repeats the step exactly.
        name: gives the name of an image from its number in the source.
        pace: says when to look; None for one of its own. If given, it must be a callback before this one.

    Raises:
        TrainingDivergedError: from within training.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        seeds: StepSeeds | None = None,
        name: Callable[[int], str] | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.folder = folder
        self.seeds = seeds
        self.name = name
        self.pace = pace or Pace()
        self._own_pace = pace is None
        self._modes: list[bool] = []  # of the network's modules in training
        self._watch = Watch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.clear()
        if self._own_pace:
            self.pace.on_train_start(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._own_pace:
            self.pace.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        inputs = getattr(pl_module, "inputs", None)
        assert isinstance(inputs, Inputs), "Guard works with a ClassifierModule"
        at = Pass(
            epoch=trainer.current_epoch + 1,
            step=trainer.global_step,
            lr=max(group["lr"] for group in trainer.optimizers[0].param_groups),
            indices=inputs.indices,
            seeds=None if self.seeds is None else self.seeds.step,
        )
        if not self._watch.passes:
            self._modes = [module.training for module in _network(pl_module).modules()]
        self._watch.loss(at, inputs.images, loss)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        # The scaler of float16 skips steps with such gradients, and lowers its scale.
        if trainer.precision != "16-mixed":
            self._watch.gradients(_network(pl_module))
        if self.pace.due:
            self.look(trainer)
        else:
            self._watch.before_step(_network(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.look(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer)

    def look(self, trainer: Trainer) -> None:
        """Wait for the device, and stop if a step since the last look was not finite.

        All processes must look at the same time.

        Raises:
            TrainingDivergedError: one was not finite, in any of the processes.
        """
        if not self._watch.passes:
            return
        found = self._watch.found()
        # A single process must not leave the others waiting for it in a later step.
        if not trainer.strategy.reduce_boolean_decision(not found.bad):
            self._stop(trainer, found)
        self._watch.clear()

    def _stop(self, trainer: Trainer, found: Found) -> NoReturn:
        self._watch.clear()
        network = _network(trainer.lightning_module)
        # As in the pass: in eval mode, which validation has begun with, later steps' statistics would count.
        for module, training in zip(network.modules(), self._modes, strict=True):
            module.training = training
        if self.seeds is not None and found.at.seeds is not None:
            self.seeds.again(found.at.seeds)  # stochastic depth must leave out what it left out
        what, where = find_first(
            network,
            found.images,
            parameter=found.parameter,
            autocast=trainer.precision_plugin.forward_context,
        )
        numbers = [] if self.name is None or found.at.indices is None else found.at.indices.tolist()
        own = Diagnosis(
            what=what,
            module=where,
            branch=branch_of(where) if what != "input" and hasattr(network, "forward_branches") else "",
            epoch=found.at.epoch,
            step=found.at.step,
            lr=found.at.lr,
            precision=trainer.precision.removesuffix("-true"),
            images=[self.name(number) for number in numbers] if self.name is not None else [],
        )
        diagnosis = _first_of_all(trainer, own, found)
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


def _first_of_all(trainer: Trainer, own: Diagnosis, found: Found) -> Diagnosis:
    """Return the diagnosis of the process in which it began; the others have its gradients alone."""
    if trainer.world_size == 1:
        return own
    all_of_them: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(all_of_them, (not found.bad, found.parameter is not None, own))
    diagnosis: Diagnosis = min(all_of_them, key=lambda each: each[:2])[2]
    return diagnosis


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
