"""Work on many images in processes that an image may kill or stop without ending the whole."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO, TypeVar

import conformer_vision_command
from conformer_vision.errors import UserError

C = TypeVar("C")
R = TypeVar("R")
_LARGEST_CHUNK = 64
"""Items that a process is given at a time: many cost little talk, few keep the progress moving."""


@dataclass(frozen=True)
class Lost:
    """An item without a result.

    Attributes:
        reason: that it takes too long, or how the process ended on it.
    """

    reason: str


@dataclass(frozen=True)
class _Chunk:
    items: tuple[int, ...]
    retry: bool = False
    """Whether its items were in a chunk on which a process ended."""


class WorkerPool:
    """Processes that share one read-only object and apply functions to item numbers.

    When a process ends on a chunk of items (a decoder that crashes, no memory, or an item that takes too
    long), the chunk is done again item by item, and only an item that ends a process again is lost.
    Leaving the ``with`` block, by Ctrl-C too, ends the processes at once.

    Args:
        shared: picklable; first argument of every function.
        workers: number of processes.
        timeout: seconds that one item may take.

    Raises:
        UserError: from `map`: the processes cannot be started.
    """

    def __init__(self, shared: object, *, workers: int, timeout: float) -> None:
        self._shared = shared
        self._workers = workers
        self._timeout = timeout
        self._lanes: list[_Lane] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lane in self._lanes:
            lane.end()

    def map(self, function: Callable[[C, int], R], items: Sequence[int]) -> Iterator[tuple[int, R | Lost]]:
        """Each item with its result, in the order they get done.

        Args:
            function: takes the shared object and an item; found by its name in the processes.
            items: what to apply it to.
        """
        size = min(max(len(items) // (self._workers * 8), 1), _LARGEST_CHUNK)
        chunks = deque(_Chunk(tuple(items[at : at + size])) for at in range(0, len(items), size))
        while len(self._lanes) < min(self._workers, len(chunks)):
            self._lanes.append(_Lane(self._shared, self._timeout))
        running: dict[Future[Any], tuple[_Lane, _Chunk, float]] = {}
        idle = deque(self._lanes)
        while chunks or running:
            while idle and chunks:
                lane, chunk = idle.popleft(), chunks.popleft()
                running[lane.submit(function, chunk.items)] = lane, chunk, time.monotonic()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                lane, chunk, began = running.pop(future)
                try:
                    yield from zip(chunk.items, future.result(), strict=True)
                except BrokenProcessPool:
                    if chunk.retry:
                        seconds = time.monotonic() - began
                        yield chunk.items[0], Lost(self._reason(seconds, lane.exit_status()))
                    else:
                        chunks.extendleft(_Chunk((item,), retry=True) for item in reversed(chunk.items))
                    lane.end()
                    self._lanes.remove(lane)
                    lane = _Lane(self._shared, self._timeout)
                    self._lanes.append(lane)
                idle.append(lane)

    def _reason(self, seconds: float, status: int | None) -> str:
        if seconds >= self._timeout:
            return f"reading it takes longer than {self._timeout:g} seconds"
        by_signal = f" ({signal.Signals(-status).name})" if status is not None and status < 0 else ""
        return f"it ends the reading process{by_signal}"


class _Lane:
    """One process, as an executor of its own: when it ends, the work of the others goes on."""

    def __init__(self, shared: object, timeout: float) -> None:
        self._executor = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=conformer_vision_command.call,  # there the models are left out
            initargs=(_start, shared, timeout),
        )
        others = set(multiprocessing.active_children())
        with _starting():
            self._ready: Future[None] | None = self._executor.submit(_do_nothing)
        self._processes = [child for child in multiprocessing.active_children() if child not in others]

    def submit(self, function: Callable[[C, int], R], items: tuple[int, ...]) -> Future[list[R]]:
        if self._ready is not None:
            try:
                self._ready.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "the reading processes cannot be started; in a script, "
                    'put the call below: if __name__ == "__main__":'
                ) from error
            self._ready = None
        return self._executor.submit(_apply, function, items)

    def exit_status(self) -> int | None:
        """The status of a process that ended: negative where by a signal."""
        self._executor.shutdown(wait=True)
        return next((process.exitcode for process in self._processes), None)

    def end(self) -> None:
        for process in self._processes:
            process.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _starting() -> Iterator[None]:
    """Start a process that ignores Ctrl-C from its first moment."""
    masks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the processes ----

_shared: Any = None
_timeout = 0.0
_nowhere: TextIO


def _start(shared: object, timeout: float) -> None:
    global _shared, _timeout, _nowhere
    _shared, _timeout = shared, timeout
    _nowhere = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_nothing() -> None:
    """Shows that the process has started."""


def _apply(function: Callable[[Any, int], R], items: tuple[int, ...]) -> list[R]:
    results = []
    for item in items:
        # A thread of C: it ends the process even where a decoder never comes back to Python.
        faulthandler.dump_traceback_later(_timeout, exit=True, file=_nowhere)
        results.append(function(_shared, item))
    faulthandler.cancel_dump_traceback_later()
    return results
