"""What makes a training wait for its device or for other processes, found on a CPU.

Here every tensor is in main memory, so a read costs nothing and only the calls can be counted. Calls for
tensors that are in main memory beside a GPU too are ignored: while images are read, the counts of steps that
optimizers keep, and those of `OnTheHost`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conformer_vision.cli import main
from conformer_vision.training import module, pace, parts, progress
from conformer_vision.training.pace import Pace
from conformer_vision.training.precision import Choice, SharedPrecision

METHODS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")
COLLECTIVES = (
    *("all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor", "gather", "scatter"),
    *(
        "all_to_all",
        "reduce_scatter",
        "barrier",
        "all_gather_object",
        "broadcast_object_list",
        "send",
        "recv",
    ),
)
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2")
"""Of torch's own code, which calls no method of `Tensor`: the host needs what they return, or its size."""
FIRST, LAST = 2, 7
"""Batches of the first epoch from which and up to which everything is counted."""


class OnTheHost(Tensor):
    """A tensor that stays in main memory, as what is computed from it does until it is moved."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return result.as_subclass(Tensor) if func is Tensor.to else result


def _is_on_the_host() -> bool:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        # The second is of torch's and timm's optimizers.
        if "/conformer_vision/data/" in frame.f_code.co_filename or frame.f_code.co_name == "_get_value":
            return True
        frame = frame.f_back
    return False


class _Operations(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if (masks or name in OPERATIONS) and not isinstance(args[0], OnTheHost) and not _is_on_the_host():
            self.found.append(f"aten.{name}")
        return func(*args, **(kwargs or {}))


def main_counted(arguments: list[str]) -> int:
    """The command, in whose training only the first step is looked at; the first process chooses bfloat16."""
    precisions: list[str] = []
    setup = SharedPrecision.setup

    def noting(self: SharedPrecision, trainer: Any, pl_module: Any, stage: str) -> None:
        setup(self, trainer, pl_module, stage)
        precisions.append(trainer.precision)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "SECONDS", 1e6)
        patch.setattr(progress, "_EVERY_SECONDS", 1e6)
        patch.setattr(parts, "_choose", lambda *_, **__: Choice("bf16-mixed"))
        patch.setattr(SharedPrecision, "setup", noting)
        with counted() as found:
            status = main(arguments)
    print(f"counted: {found} in {precisions[0]}")
    return status


@contextmanager
def counted() -> Iterator[list[str]]:
    """Count within the steps of trainings in this block; yields what was found, `end` last."""
    found: list[str] = []
    begin, operations, counting = Pace.on_train_batch_start, _Operations(found), False

    def between(self: Pace, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        nonlocal counting
        if trainer.current_epoch == 0 and batch_idx == FIRST:
            counting = True
            operations.__enter__()
        if trainer.current_epoch == 0 and batch_idx == LAST:
            counting = False
            operations.__exit__(None, None, None)
            found.append("end")
        begin(self, trainer, pl_module, batch, batch_idx)

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            host = bool(args) and isinstance(args[0], OnTheHost)
            if counting and not host and not _is_on_the_host():
                found.append(name)
            return call(*args, **kwargs)

        return called

    labelled = module.is_counted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "on_train_batch_start", between)
        patch.setattr(module, "is_counted", lambda labels: labelled(labels).as_subclass(OnTheHost))
        for name in METHODS:
            patch.setattr(Tensor, name, noting(name, getattr(Tensor, name)))
        for place in (torch.distributed, torch.distributed.distributed_c10d):
            for name in COLLECTIVES:
                patch.setattr(place, name, noting(name, getattr(place, name)))
        yield found
