"""How reading processes hand over batches, so that whatever fails in them reaches the main process."""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import ProcessError
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import default_collate

from conformer_vision.console import note

from .images import ReadingError, reading_error

_PER_WORKER, _SPARE = 6, 16
"""Descriptors that a worker takes in the main process, and those that files take for a moment."""
_FEW_DESCRIPTORS = 512
"""With a lower limit, batches avoid shared memory: each takes descriptors in both processes."""
_REMEDIES = {
    signal.SIGKILL: "systems do that when memory runs out; give fewer workers or a smaller batch_size",
    signal.SIGBUS: "memory or a disk is full, or a file was cut short while it was read",
}
_CRASHED = "an image may have crashed its decoder; conformer-vision check finds it"


_shared = True
"""Whether this process hands over batches in shared memory."""


class WaitingEnded(Exception):  # noqa: N818  # not an error
    """Raised from within a wait for images, say by a signal handler, to end a wait that takes too long."""


class Batch(NamedTuple):
    """Images of one forward pass."""

    images: Tensor
    """(B, C, H, W), normalised."""
    labels: Tensor
    """(B,), int64; of a source with several labels per image (B, K), float32, of 0 and 1.
    All are `NOT_COUNTED` for an image to ignore."""
    indices: Tensor
    """(B,), int64: number of each image in its source; -1 in a stream."""
    broken: list[str]
    """What was wrong with the images that could not be read, one line each with their names."""


class Parcel:
    """A batch on its way to the main process, where unpickling it gives a `Batch` or a `ReadingError`.

    A reading process packs it in its main thread. The thread of the queue would only print what fails
    there, and the main process would wait for ever.
    """

    def __init__(self, unpack: Callable[..., Batch | ReadingError], *arguments: object) -> None:
        self._reduced = unpack, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._reduced


def pack(images: list[Tensor], labels: Tensor, indices: Tensor, broken: list[str]) -> Parcel | ReadingError:
    """Pack a batch in shared memory or, where that cannot hold it, in a temporary file.

    Args:
        images: (C, H, W) each.
        labels: as in `Batch`.
        indices: as in `Batch`.
        broken: as in `Batch`.
    """
    global _shared
    if _shared:
        try:
            stacked = default_collate(images)  # into shared memory
            return Parcel(_from_memory, bytes(ForkingPickler.dumps(Batch(stacked, labels, indices, broken))))
        except (RuntimeError, OSError):  # it is small in containers, or missing
            _shared = False
            for unfilled in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):  # torch leaves it there
                unfilled.unlink(missing_ok=True)
    try:
        handle, path = tempfile.mkstemp(prefix=_prefix(_main_process()))
        with open(handle, "wb") as file:
            for tensor in (torch.stack(images), labels, indices):
                np.save(file, tensor.numpy())
    except (OSError, MemoryError) as error:
        return reading_error("a batch", error)
    return Parcel(_from_file, path, broken)


def _from_memory(pickled: bytes) -> Batch | ReadingError:
    try:
        batch: Batch = pickle.loads(pickled)
    # The process has ended, or this one has no memory or descriptors left.
    except (OSError, EOFError, RuntimeError, MemoryError, ProcessError) as error:
        return reading_error("a batch", error)
    return batch


def _from_file(path: str, broken: list[str]) -> Batch | ReadingError:
    _say_that_files_are_used(Path(path).parent)
    try:
        with open(path, "rb") as file:
            tensors = [torch.from_numpy(np.load(file, allow_pickle=False)) for _ in range(3)]
        os.unlink(path)
    except (OSError, ValueError, MemoryError) as error:
        return reading_error("a batch", error)
    images, labels, indices = tensors
    return Batch(images, labels, indices, broken)


@functools.cache
def _say_that_files_are_used(folder: Path) -> None:
    note(
        f"shared memory cannot hold the batches: they go through files in {folder}, which is slower "
        "(with Docker, --shm-size=2g gives more)"
    )


def _main_process() -> int | None:
    parent = multiprocessing.parent_process()
    return parent.pid if parent is not None else os.getpid()


def _prefix(main_process: int | None) -> str:
    return f"conformer-vision-{main_process}-"


# ---- the processes ---------------------------------------------------------------------------------

_WORKERS: weakref.WeakSet[BaseProcess] = weakref.WeakSet()
_owner = 0
"""The process that has started them."""


def prepare_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, and say nothing when another signal ends this one.

    Both go to the whole process group.
    """
    global _shared
    _shared = get_sharing_strategy() != "file_descriptor" or _descriptors() >= _FEW_DESCRIPTORS
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for name in ("SIGBUS", "SIGSEGV", "SIGFPE"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)  # in place of torch's, which print


def _descriptors() -> float:
    if os.name == "nt":
        return math.inf
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def check_descriptors(workers: int) -> None:
    """Raise an OSError unless there are enough descriptors for workers and the files that are read."""
    held: list[int] = []
    try:
        for _ in range(_PER_WORKER * workers + _SPARE):
            held.append(os.dup(0 if not held else held[0]))
    finally:
        for number in held:
            os.close(number)


@contextmanager
def started_or_ended() -> Iterator[None]:
    """End the workers that the block has started if it raises an error.

    torch's half-made iterator would print a traceback when it is collected, and leave them running.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except OSError as error:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
            child.join()
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        traceback.clear_frames(error.__traceback__)  # they hold the iterator
        sys.unraisablehook = hook
        raise


@contextmanager
def no_child_handler() -> Iterator[None]:
    """Keep torch's handler of SIGCHLD out: it raises wherever the main process is, say within a step.

    Without it, a worker that has ended is found when a batch is awaited.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _children_unhandled() -> Iterator[None]:
    """Leave children that end unnoticed, where another loader of the process has set torch's handler."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def remember(workers: Iterable[BaseProcess]) -> None:
    """End these processes with this one, if they are still running."""
    global _owner
    if _owner != os.getpid():
        _owner = os.getpid()
        _WORKERS.clear()
        # Before multiprocessing's own hook, which would send a SIGTERM and wait for ever.
        Finalize(None, end_workers, exitpriority=10)
    _WORKERS.update(workers)


def lost(workers: Iterable[BaseProcess]) -> ReadingError | None:
    """Return how the first of the processes that have ended did, or None if all are running."""
    for worker in workers:
        worker.join(0.05)  # a process closes its files a moment before it has ended
        status = worker.exitcode
        if status is None:
            continue
        if status >= 0:
            return ReadingError(f"a reading process has ended with status {status}")
        number = signal.Signals(-status)
        return ReadingError(
            f"a reading process was ended by {number.name}: {_REMEDIES.get(number, _CRASHED)}"
        )
    return None


def end_workers() -> None:
    """Kill the workers of this process; they only read, so nothing is lost.

    torch would first wait ten seconds for each that hangs.
    """
    if _owner != os.getpid():
        return
    alive = [worker for worker in _WORKERS if worker.is_alive()]
    with _children_unhandled():
        for worker in alive:
            worker.kill()
        for worker in alive:
            worker.join(1)  # it writes no more; one that waits for a dead disk may take for ever
    for path in Path(tempfile.gettempdir()).glob(f"{_prefix(os.getpid())}*"):
        path.unlink(missing_ok=True)
