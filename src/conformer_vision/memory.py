"""How much memory there is, and how much a computation takes, before it is run."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import UserError, option

_PER_VALUE = 100_000
"""Bytes that a forward and backward pass takes at most for a value of the input, in any usual network."""
_LIBRARIES = 250 << 20
"""Bytes that the libraries take for themselves when a computation is first run."""


# ---- what there is ---------------------------------------------------------------------------------


def available_memory() -> float:
    """Return the bytes of main memory that this process may still take; infinite where unknown.

    It is what the machine has left, with swap space, or less in a container or a job of a scheduler, whose
    control group (version 1 or 2) has a limit.
    """
    return min(_machine_memory(), *(_group_memory(group) for group in _groups()), math.inf)


def _machine_memory(source: Path = Path("/proc/meminfo")) -> float:
    if source.is_file():
        lines = dict(line.split(":") for line in source.read_text(encoding="ascii").splitlines())
        return sum(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
    try:
        import psutil
    except ImportError:
        return math.inf
    return float(psutil.virtual_memory().available + psutil.swap_memory().free)


def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Return the folders of this process's control groups, from the innermost to the root."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        # In a container, the path may be the one outside, and the root is the container's own group.
        inner = top / path.lstrip("/")
        folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(top))]
    return folders


def _group_memory(group: Path) -> float:
    """Return what is left of a group's limit; memory that holds files is given back when it is needed."""
    for limit, used, files in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (group / limit).read_text(encoding="ascii").strip()
            now = int((group / used).read_text(encoding="ascii"))
            lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue
        held = int(dict(line.split() for line in lines).get(files, 0))
        return math.inf if most == "max" else max(int(most) - now + held, 0)
    return math.inf


# ---- what is needed --------------------------------------------------------------------------------


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
    if need <= there:
        return
    line = f"needs {_gb(need * processes)} of memory, of which {_gb(there * processes)} are left"
    if name != "batch_size":
        raise UserError(f"{name} {image[1]}x{image[2]}: {line}; give a smaller one")
    fits = _most(needed, there, below=images, need=need) * ((total or images) // images)
    remedy = f"give {fits} or less" if fits > 1 else "give 1"
    if fits < 1:
        remedy = f"give a smaller {option('input_size')} or {option('model')}"
    raise UserError(f"batch_size {total or images}: {line}; {remedy}")


def _most(needed: Callable[[int], int], there: float, *, below: int, need: int) -> int:
    """Return the largest number of images that fits, 0 for none; the need is nearly linear in it.

    Args:
        needed: the need of a number of images.
        there: what there is.
        below: a number that does not fit.
        need: its need.
    """
    fits, used = 0, 0
    while below - fits > 1:
        guess = fits + int((there - used) / (need - used) * (below - fits)) if fits else 1
        guess = min(max(guess, fits + 1), below - 1)
        if (of_guess := needed(guess)) <= there:
            fits, used = guess, of_guess
        else:
            below, need = guess, of_guess
    return fits


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
    return int(1.05 * memory.peak) + _LIBRARIES


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


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
