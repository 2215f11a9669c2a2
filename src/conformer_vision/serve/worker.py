"""One thread that computes, so that a model is never used by two at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """A thread that runs functions one after the other.

    It is a daemon: a computation that never ends does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in the thread and return what it returns, or raise what it raises."""
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
        """End the thread after what it runs now."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # an idle thread holds no batch
