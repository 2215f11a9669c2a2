"""Threads that compute, and that keep no process alive."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """Threads that run functions in the order in which they come.

    They are daemons, unlike those of `concurrent.futures`: the process ends when it is told to, whatever they
    do.

    Args:
        name: Of the threads.
        threads: How many; with one, no two functions run at once.
    """

    def __init__(self, name: str, *, threads: int = 1) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = threads
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in a thread and return what it returns, or raise what it raises.

        If the call is cancelled before the function begins, it does not begin.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if future.done():  # whoever waited has gone
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def task() -> None:
            if future.cancelled():
                return
            result: T | None = None
            failure: BaseException | None = None
            try:
                result = function()
            except Exception as error:
                failure = error
            except BaseException as error:  # such as SystemExit, which a future does not take
                failure = RuntimeError(f"{type(error).__name__}: {error}")
            if isinstance(failure, StopIteration):
                failure = RuntimeError("StopIteration")
            with suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(deliver, result, failure)

        self._tasks.put(task)
        return await future

    def stop(self) -> None:
        """End the threads after what they run now and what waits."""
        for _ in range(self._threads):
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # an idle thread holds no batch
