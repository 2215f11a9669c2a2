"""How much memory a computation of PyTorch takes, before it is run; a batch that is too large is refused."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .available import LIBRARIES, available_memory, too_large

_PER_VALUE = 100_000
"""Bytes that a forward and backward pass takes at most for a value of the input, in any usual network."""


def check_batch(
    build: Callable[[], nn.Module],
    compute: Callable[[nn.Module, Tensor], object],
    shape: tuple[int, ...],
    *,
    processes: int = 1,
    batches: int = 1,
    reserve: int = 0,
    name: str = "batch_size",
    total: int | None = None,
) -> None:
    """Refuse a batch that main memory cannot hold, as the system would end the process.

    Args:
        build: gives the model, on the CPU; it is not changed.
        compute: what is done with a copy of the model and a batch of images.
        shape: (B, C, H, W) of the batch.
        processes: so many do this at the same time on this machine.
        batches: so many batches of images are held, with those read ahead.
        reserve: bytes that are needed besides.
        name: what the message calls the batch; of a single image, its size.
        total: value of `batch_size`, where it is made of several such batches.

    Raises:
        UserError: it does not fit.
    """
    images, *image = shape
    there = available_memory() / processes
    if math.prod(shape) * _PER_VALUE < there:
        return

    def needed(number: int) -> int:
        read_ahead = batches * 4 * number * math.prod(image)
        return needed_memory(model, compute, (number, *image)) + read_ahead + reserve

    model = build()
    try:
        need = needed(images)
    except Exception:  # a network that cannot be followed
        return
    if need > there:
        raise too_large(needed, shape, there=there, need=need, processes=processes, name=name, total=total)


def needed_memory(
    model: nn.Module, compute: Callable[[nn.Module, Tensor], object], shape: tuple[int, ...]
) -> int:
    """Return the bytes that a computation takes at its peak, beside the model and the batch.

    Nothing is computed: the tensors have no values. What the libraries take besides is added, as it was
    found in training steps of nano and Ti.
    """
    from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode  # takes half a second

    fake = FakeTensorMode()
    with torch.random.fork_rng(devices=[]):
        with FakeCopyMode(fake):
            probe = deepcopy(model)
        with fake:
            images = torch.empty(shape, device=next(model.parameters(), torch.empty(0)).device)
            with _Memory() as memory:
                compute(probe, images)
    return int(1.05 * memory.peak) + LIBRARIES


def measured_memory(compute: Callable[[], object]) -> int:
    """Do a computation, and return the bytes that its tensors took at its peak."""
    with _Memory() as memory:
        compute()
    return int(1.05 * memory.peak)


class _Memory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made within, and forgets those that are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._now: int = 0
        self._held: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return made

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._held:
            return

        def forget(_: Any) -> None:
            self._now -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, forget)
        self._now += size
        self.peak = max(self.peak, self._now)
