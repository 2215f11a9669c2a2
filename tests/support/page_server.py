"""A server with sockets in a thread of this process, and a model whose answers are made up."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn

from conformer_vision.inference import Prediction
from conformer_vision.serve.app import build_app
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import Limits
from conformer_vision.serve.models import Loader, ModelInfo, Served
from conformer_vision.serve.protocol import BoundedProtocol
from conformer_vision.serve.service import Service


class MadeUp:
    """Answers every image with one prediction; waits where it is told to.

    Args:
        fields: Those of the `Prediction`.
    """

    def __init__(self, **fields: Any) -> None:
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.top_k: list[int | None] = []
        self._fields = fields

    def read(self, image: bytes, *, name: str | None = None) -> Any:
        return name

    def answer(self, images: Sequence[Any], *, top_k: int | None = None) -> list[Prediction]:
        self.entered.set()
        assert self.go.wait(timeout=20)
        self.top_k.append(top_k)
        return [Prediction(name, **self._fields) for name in images]

    def load(self, *classes: str, **options: Any) -> Loader:
        """Return what loads it."""
        served = Served(ModelInfo("made up", "1", "none", "onnx"), self, classes, **options)
        return lambda: served


@contextmanager
def listening(load: Loader, *, limits: Limits | None = None, keys: Keys | None = None) -> Iterator[str]:
    """Serve at a port of this machine; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        config: dict[str, Any] = {
            "http": BoundedProtocol,
            "lifespan": "off",
            "log_config": None,
            "ws": "none",
        }
        ready, failed = threading.Event(), list[BaseException]()
        servers = list[uvicorn.Server]()

        async def serve() -> None:
            service = Service(load, limits=limits or Limits(), keys=keys)
            servers.append(uvicorn.Server(uvicorn.Config(build_app(service), **config)))
            try:
                await service.start()
                ready.set()
                await servers[0].serve(sockets=[bound])
            finally:
                await service.stop()

        def run() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:
                failed.append(error)
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert ready.wait(timeout=30) and not failed, failed
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            servers[0].should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive() and not failed, failed
