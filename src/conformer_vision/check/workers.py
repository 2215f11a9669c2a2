"""Work on many images in processes, so that an image that kills or stalls one does not stop the rest."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from conformer_vision.errors import UserError

C = TypeVar("C")
R = TypeVar("R")
_LARGEST_CHUNK = 64
"""Items given to a process at a time: many cost little communication, few keep the progress moving."""


@dataclass(frozen=True)
class Lost:
    """An item without a result."""

    reason: str
    """That it takes too long, or how the process ended on it."""


class WorkerPool:
    """Processes that share one read-only object and apply functions to item numbers.

    When a process ends on a chunk of items (a decoder crashes, memory runs out, an item takes too long),
    the chunk is repeated item by item, and only an item on which a process ends alone is lost. The
    executors of the standard library give up all their work when one process ends.
    Leaving the ``with`` block, also by Ctrl-C, ends the processes at once.

    Args:
        shared: picklable; first argument of every function.
        workers: number of processes.
        timeout: seconds that one item may take.
    """

    def __init__(self, shared: object, *, workers: int, timeout: float) -> None:
        self._shared = shared
        self._workers = workers
        self._timeout = timeout
        self._processes: list[_Process] = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.end()

    def map(self, function: Callable[[C, int], R], items: Sequence[int]) -> Iterator[tuple[int, R | Lost]]:
        """Yield each item with its result, in the order they are done.

        Args:
            function: takes the shared object and an item; the processes import it by name.
            items: what to apply it to.

        Raises:
            UserError: the processes cannot be started.
        """
        size = min(max(len(items) // (self._workers * 8), 1), _LARGEST_CHUNK)
        chunks = deque(items[at : at + size] for at in range(0, len(items), size))
        for process in [process for process in self._processes if process.chunk]:
            self._drop(process)  # of an iteration that was given up
        while len(self._processes) < min(self._workers, len(chunks)):
            self._start()
        while True:
            for process in self._processes:
                if chunks and not process.chunk:
                    process.give(function, chunks.popleft())
            busy = {process.connection: process for process in self._processes if process.chunk}
            if not busy:
                return
            for connection in wait(list(busy)):
                process = busy[cast(Connection, connection)]
                chunk, results = process.take()
                if results is not None:
                    yield from zip(chunk, results, strict=True)
                    continue
                if len(chunk) == 1:
                    yield chunk[0], process.lost()
                else:
                    chunks.extendleft([item] for item in reversed(chunk))
                self._drop(process)
                self._start()

    def _start(self) -> None:
        with _signals_blocked():  # until leaving the block would end the process
            self._processes.append(_Process(self._shared, self._timeout))

    def _drop(self, process: _Process) -> None:
        process.end()
        self._processes.remove(process)


class _Process:
    """One process, and the chunk that it works on."""

    def __init__(self, shared: object, timeout: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, far_end = context.Pipe()
        self.chunk: Sequence[int] = ()
        self._started = False
        self._began = 0.0
        self._timeout = timeout
        self._process = context.Process(target=_serve, args=(far_end, shared, timeout), daemon=True)
        self._process.start()
        far_end.close()

    def give(self, function: Callable[[C, int], R], chunk: Sequence[int]) -> None:
        """Let the process work on a chunk."""
        try:
            if not self._started:
                self._started = self.connection.recv()
        except (EOFError, OSError) as error:
            raise UserError(
                "the reading processes cannot be started; in a script, "
                'put the call below: if __name__ == "__main__":'
            ) from error
        self.chunk, self._began = chunk, time.monotonic()
        self.connection.send((function, chunk))

    def take(self) -> tuple[Sequence[int], list[Any] | None]:
        """Return the chunk and its results, None if the process has ended on it."""
        chunk, self.chunk = self.chunk, ()
        try:
            answer: list[Any] | Exception = self.connection.recv()
        except (EOFError, OSError):
            return chunk, None
        if isinstance(answer, Exception):
            raise answer
        return chunk, answer

    def lost(self) -> Lost:
        """Say how the process has ended."""
        self._process.join()
        if time.monotonic() - self._began >= self._timeout:
            return Lost(f"reading it takes longer than {self._timeout:g} seconds")
        status = self._process.exitcode
        by_signal = f" ({signal.Signals(-status).name})" if status is not None and status < 0 else ""
        return Lost(f"it ends the reading process{by_signal}")

    def end(self) -> None:
        """End the process now, whatever it does."""
        self._process.kill()
        self._process.join()
        self.connection.close()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off; a process that is started within does not get them either."""
    masks = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM}) if masks else set()
    try:
        yield
    finally:
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- in the processes ----


def _serve(connection: Connection, shared: Any, timeout: float) -> None:
    """Answer each chunk with the list of its results, or with the error that a function raised."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection.send(True)
    with open(os.devnull, "w") as nowhere:
        while True:
            function, items = connection.recv()
            results = []
            try:
                for item in items:
                    # A thread of C: it ends the process even where a decoder never returns to Python.
                    faulthandler.dump_traceback_later(timeout, exit=True, file=nowhere)
                    results.append(function(shared, item))
            except Exception as error:
                connection.send(error)
            else:
                connection.send(results)
            finally:
                faulthandler.cancel_dump_traceback_later()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
