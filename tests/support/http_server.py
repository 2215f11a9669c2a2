"""A server in this process, reached without sockets, and a model that answers when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from conformer_vision.data import open_image
from conformer_vision.inference import Prediction
from conformer_vision.serve.app import build_app
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import Limits
from conformer_vision.serve.models import Loader, ModelInfo, Served
from conformer_vision.serve.service import Service

PNG = {"Content-Type": "image/png"}


def png(seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
    """A file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


class Stub:
    """Answers every image with its name; every forward pass begins when it is let.

    Args:
        free: Whether forward passes need not be let.
        poison: A name with which a forward pass fails.
    """

    def __init__(self, *, free: bool = True, poison: str | None = None) -> None:
        self.batches: list[list[str]] = []
        self.threads: set[int] = set()
        self._poison = poison
        self._entered = threading.Semaphore(0)
        self._let = threading.Semaphore(1_000_000 if free else 0)

    def read(self, image: bytes, *, name: str | None = None) -> Any:
        open_image(image, name=name)
        return name

    def answer(self, images: Sequence[Any], *, top_k: int | None = None) -> list[Prediction]:
        self.batches.append(list(images))
        self.threads.add(threading.get_ident())
        self._entered.release()
        assert self._let.acquire(timeout=20)
        if self._poison in images:
            raise RuntimeError("poison at /secret/model.safetensors")
        return [Prediction(name, (f"top {top_k}",), (1.0,)) for name in images]

    async def entered(self) -> None:
        """Wait until a forward pass has begun."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=10)

    def let(self, passes: int = 1) -> None:
        """Let forward passes go on."""
        self._let.release(passes)


def served(stub: Stub, *, name: str = "stub", version: str = "1") -> Served:
    """The stub as a loaded model."""
    return Served(ModelInfo(name, version, "stub", "weights"), stub, ("a", "b"))


class Server(NamedTuple):
    """A service that has started, and a client of it."""

    service: Service
    client: httpx.AsyncClient

    async def predict(self, name: str = "image", *, query: str = "", **files: bytes) -> httpx.Response:
        """Send images as a form."""
        parts = [("x", (each, data)) for each, data in (files or {name: png()}).items()]
        return await self.client.post(f"/predict{query}", files=parts)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something has come about in the service."""
        while not condition():
            await asyncio.sleep(0.001)

    async def queued(self, images: int) -> None:
        """Wait until so many images are decoded and wait."""
        await self.until(lambda: len(self.service.batcher._jobs) == images)


@asynccontextmanager
async def serving(
    load: Loader | Stub, *, limits: Limits | None = None, keys: Keys | None = None
) -> AsyncIterator[Server]:
    """A service, started and stopped."""
    loader = (lambda: served(load)) if isinstance(load, Stub) else load
    service = Service(loader, limits=limits or Limits(), keys=keys)
    transport = httpx.ASGITransport(build_app(service))
    try:
        await service.start()
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Server(service, client)
    finally:
        await service.stop()


def run(test: Callable[[], Awaitable[None]], *, timeout: float = 30) -> None:
    """Run a test in an event loop of its own; one that hangs fails."""

    async def within() -> None:
        async with asyncio.timeout(timeout):
            await test()

    asyncio.run(within())
