"""A request from its arrival to its images, and what is done with them while the client waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from conformer_vision.serve.bodies import Upload, check_kind, check_length, read_images
from conformer_vision.serve.limits import Budget, RefusedError
from conformer_vision.serve.service import Service

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request to one of the routes."""

    service: Service
    request: Request
    parameters: Mapping[str, Any]
    """Those of the URL, by name, as far as they are given."""
    arrived: float
    """On the clock of the event loop."""

    @property
    def deadline(self) -> float:
        """When the answer has to be there, on the same clock."""
        return self.arrived + self.service.limits.deadline_seconds

    def since_arrival_ms(self) -> float:
        """Return the time since the request arrived."""
        return 1000 * (asyncio.get_running_loop().time() - self.arrived)


@asynccontextmanager
async def received(call: Call, queue: Budget) -> AsyncIterator[list[Upload]]:
    """Read the images of a request; within the block their bytes count among those of all bodies.

    What can be refused without the body is refused before it is read.

    Args:
        call: The request.
        queue: Where they are to wait; a request that finds it full is refused at once.

    Raises:
        RefusedError: No place, too many bodies at once, too slow, and as `read_images`.
        ClientDisconnect: The client went away.
    """
    service = call.service
    check_kind(call.request)
    check_length(call.request, service.limits)
    queue.check()
    with service.bodies.hold() as held:
        with service.uploads.hold() as upload:
            upload.take()
            try:
                async with asyncio.timeout_at(call.deadline):
                    images = await read_images(
                        call.request, limits=service.limits, held=held, pool=service.pool
                    )
            except TimeoutError as error:
                seconds = service.limits.deadline_seconds
                raise RefusedError(
                    408,
                    f"the body did not arrive within {seconds:g} s; send it faster, or less",
                    reason="slow",
                ) from error
        yield images


async def while_waiting(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """Do something for a request whose body has been read, as long as its client waits.

    Raises:
        RefusedError: It was not done in time; it is cancelled then, as when the client goes away.
        ClientDisconnect: The client went away.
    """
    loop = asyncio.get_running_loop()
    task, gone = loop.create_task(work), loop.create_task(_gone(call.request))
    try:
        left = max(call.deadline - loop.time(), 0)
        done, _ = await asyncio.wait({task, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise ClientDisconnect
        seconds = call.service.limits.deadline_seconds
        raise RefusedError(
            504,
            f"the answer was not ready within {seconds:g} s; try again when the server is less busy",
            reason="expired",
        )
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
