"""What of the machine this process may use: memory and processors; and what does not fit into it.

Nothing here imports torch.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import UserError, option

LIBRARIES = 250 << 20
"""Bytes that the libraries take for themselves when a computation is first run."""


def available_memory() -> float:
    """Return the bytes of main memory that this process may still take; infinite where unknown.

    It is what the machine has left, with swap space, or less in a container or a job of a scheduler, whose
    control group (version 1 or 2) has a limit.
    """
    return min(_machine_memory(), *(_group_memory(group) for group in _groups("memory")), math.inf)


def _machine_memory(source: Path = Path("/proc/meminfo")) -> float:
    if source.is_file():
        lines = dict(line.split(":") for line in source.read_text(encoding="ascii").splitlines())
        return sum(int(lines[name].split()[0]) << 10 for name in ("MemAvailable", "SwapFree"))
    try:
        import psutil
    except ImportError:
        return math.inf
    return float(psutil.virtual_memory().available + psutil.swap_memory().free)


def _groups(
    controller: str, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> list[Path]:
    """Return the folders of this process's control groups, from the innermost to the root.

    Args:
        controller: ``memory`` or ``cpu``, which version 1 has apart.
        root: Where the groups are.
        own: Says which are this process's.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
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


def compute_threads() -> int:
    """Return the number of threads that computes a network on the CPU.

    Where PyTorch is loaded it is PyTorch's, which `torch.set_num_threads` sets. Otherwise it is what PyTorch
    would take: ``OMP_NUM_THREADS``, or one for each core, not each hardware thread, that this process may
    use; but no more than a container's limit pays for.
    """
    if count := getattr(sys.modules.get("torch"), "get_num_threads", None):
        return int(count())
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isascii() and first.isdigit() and int(first):
        return min(int(first), len(_processors()))
    limits = (_group_processors(group) for group in _groups("cpu"))
    return max(math.floor(min(_cores(), *limits, math.inf)), 1)


def _processors() -> set[int]:
    """Return the numbers of the processors, or hardware threads, that this process may use."""
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # macOS and Windows
        return set(range(os.cpu_count() or 1))


def _cores(system: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the number of cores that this process may use."""
    allowed, cores = _processors(), set()
    for number in allowed:
        topology = system / f"cpu{number}" / "topology"
        try:
            cores.add((topology / "thread_siblings_list").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return len(allowed)
    return len(cores)


def _group_processors(group: Path) -> float:
    """Return how many processors' time a group may take, rounded up; infinite without a limit."""
    with suppress(OSError, ValueError):
        quota, _, period = (group / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
        return math.inf if quota == "max" else math.ceil(int(quota) / int(period))
    with suppress(OSError, ValueError):
        share = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        of = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return math.inf if share < 0 else math.ceil(share / of)
    return math.inf


_RUNTIME = 64 << 20
"""Bytes that a library other than PyTorch takes for itself when it first computes."""


def check_linear(per_image: float, shape: tuple[int, ...], *, batches: int) -> None:
    """Refuse a batch that main memory cannot hold, of images that each take so many bytes.

    Args:
        per_image: Bytes that computing one image takes.
        shape: (B, C, H, W) of the batch.
        batches: So many batches of images are held, with those read ahead.

    Raises:
        UserError: It does not fit.
    """
    images, *image = shape

    def needed(number: int) -> int:
        return int(number * (per_image + 4 * batches * math.prod(image))) + _RUNTIME

    there = available_memory()
    if needed(images) > there:
        raise too_large(needed, shape, there=there, need=needed(images))


def too_large(
    needed: Callable[[int], int],
    shape: tuple[int, ...],
    *,
    there: float,
    need: int,
    processes: int = 1,
    name: str = "batch_size",
    total: int | None = None,
) -> UserError:
    """Return the error for a batch that does not fit, which says how many images would.

    Args:
        needed: The need in bytes of a number of images.
        shape: (B, C, H, W) of the batch.
        there: What there is for each process.
        need: What the batch needs.
        processes: See `memory.check_batch`, like the next two.
        name: What the message calls the batch.
        total: Value of `batch_size`.
    """
    images, *image = shape
    line = f"needs {_gb(need * processes)} of memory, of which {_gb(there * processes)} are left"
    if name != "batch_size":
        return UserError(f"{name} {image[1]}x{image[2]}: {line}; give a smaller one")
    fits = _most(needed, there, below=images, need=need) * ((total or images) // images)
    remedy = f"give {fits} or less" if fits > 1 else "give 1"
    if fits < 1:
        remedy = f"give a smaller {option('input_size')} or {option('model')}"
    return UserError(f"batch_size {total or images}: {line}; {remedy}")


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


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
