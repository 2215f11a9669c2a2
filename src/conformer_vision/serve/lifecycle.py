"""A server from its socket to its end: signals, draining, exit statuses.

The first SIGTERM or Ctrl-C: not ready, no new connections, and the requests that are there are answered. A
second one ends the process at once. SIGHUP loads the model anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address

import uvicorn

from conformer_vision.console import note, say
from conformer_vision.errors import UserError, option, reason_of
from conformer_vision.serve.app import build_app
from conformer_vision.serve.limits import RefusedError
from conformer_vision.serve.protocol import HEAD_BYTES, BoundedProtocol
from conformer_vision.serve.service import Service

_ENDING = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 128
_SWITCH_SECONDS = 0.0005
"""How long a thread that decodes or computes may keep the others waiting; Python's own 5 ms is long beside a
request."""


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how long it takes to end.

    Raises:
        UserError: A port or number of seconds out of range, or a key of TLS without its certificate.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"{option('port', self.port)}: must be from 1 to 65535, or 0 for any free one")
        if not 0 <= self.drain_seconds < float("inf"):
            raise UserError(f"{option('drain_seconds', self.drain_seconds)}: must be 0 or more")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise UserError(f"{option('ssl_keyfile', self.ssl_keyfile)} needs {option('ssl_certfile')} too")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def bind(self) -> socket.socket:
        """Take the port.

        Raises:
            UserError: It is in use, or the host is none of this machine's.
        """
        where = f"{option('host', self.host)} {option('port', self.port)}"
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, kind, protocol)
        except (OSError, ValueError) as error:  # ValueError: a name that no host can have
            raise UserError(f"{option('host', self.host)}: no such address of this machine") from error
        try:
            if os.name == "posix":
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            bound.listen(_BACKLOG)
        except OSError as error:
            bound.close()
            remedy = "give another --port, or 0 for any free one"
            raise UserError(f"{where}: {reason_of(error)}; {remedy}") from error
        return bound


class _Server(uvicorn.Server):
    """uvicorn's server without its own handling of signals, which would end the process by the signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`."""
        yield


def serve(service: Service, address: Address, *, on_start: Callable[[str], None] = say) -> int:
    """Serve until a signal ends it; return the exit status.

    Args:
        service: What answers.
        address: Where.
        on_start: Told the line with the address, when the model is loaded.

    Raises:
        UserError: The port is taken, a certificate cannot be used, or the model cannot be loaded.
    """
    bound = address.bind()
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return asyncio.run(_serve(service, address, bound, on_start))
    finally:
        sys.setswitchinterval(before)
        bound.close()


async def _serve(
    service: Service, address: Address, bound: socket.socket, on_start: Callable[[str], None]
) -> int:
    for name in ("uvicorn.error", "python_multipart"):  # they note what clients send; the metrics count it
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    config = uvicorn.Config(
        build_app(service),
        http=BoundedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=HEAD_BYTES,
        backlog=_BACKLOG,
        ssl_certfile=address.ssl_certfile,
        ssl_keyfile=address.ssl_keyfile,
        timeout_graceful_shutdown=address.drain_seconds,  # type: ignore[arg-type]
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        what = " ".join(
            option(name, value)
            for name in ("ssl_certfile", "ssl_keyfile")
            if (value := getattr(address, name)) is not None
        )
        raise UserError(f"{what} cannot be used: {reason_of(error)}; give PEM files that fit") from error
    server = _Server(config)
    _listen_to_signals(service, server, address)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        starting = asyncio.create_task(service.start())
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            host, port = bound.getsockname()[:2]
            scheme = "http" if address.ssl_certfile is None else "https"
            on_start(f"serving at {scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        await serving
    finally:
        server.should_exit = True
        with suppress(Exception):
            await serving
        await service.stop()
    return 0


def _listen_to_signals(service: Service, server: _Server, address: Address) -> None:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def end(number: int) -> None:
        if service.draining:
            note("stopped at once")
            os._exit(128 + number)
        service.draining = True
        server.should_exit = True
        note(f"ending: requests that have begun are answered, for {address.drain_seconds:g} s at most")

    def reload() -> None:
        task = loop.create_task(_reload(service))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in _ENDING:
        _handle(loop, number, lambda number=number: end(number))  # type: ignore[misc]
    if hasattr(signal, "SIGHUP"):
        _handle(loop, signal.SIGHUP, reload)


def _handle(loop: asyncio.AbstractEventLoop, number: int, handler: Callable[[], None]) -> None:
    try:
        loop.add_signal_handler(number, handler)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler))


async def _reload(service: Service) -> None:
    try:
        await service.reload()
    except UserError:
        pass  # the service has said it
    except RefusedError as error:
        note(f"not reloaded: {error.line}")
