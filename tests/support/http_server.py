"""A server in this process, reached over ASGI: no sockets, no ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO

import httpx
import numpy as np
from PIL import Image

from conformer_vision.serve.app import build_app
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import Limits
from conformer_vision.serve.models import Loader
from conformer_vision.serve.service import Service


def png(seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
    """A file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@asynccontextmanager
async def serving(
    load: Loader, *, limits: Limits | None = None, keys: Keys | None = None
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service that has started, and a client of it."""
    service = Service(load, limits=limits or Limits(), keys=keys)
    transport = httpx.ASGITransport(build_app(service))
    try:
        await service.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield service, client
    finally:
        await service.stop()


def run(test: Callable[[], Awaitable[None]], *, timeout: float = 30) -> None:
    """Run a test in an event loop of its own; one that hangs fails."""

    async def within() -> None:
        async with asyncio.timeout(timeout):
            await test()

    asyncio.run(within())
