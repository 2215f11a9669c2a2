"""Connections that end: uvicorn's, with bounds on silence and number, and errors as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 15.0
"""How long a connection may take for the head of its next request, or for what is left of a refused one."""
CONNECTIONS = 500
"""Connections at once; a further one is closed."""
HEAD_BYTES = 16_384
"""The largest head of a request."""


class _Gathering:
    """A transport that sends in one call what is written in one turn of the event loop.

    uvicorn writes the head and the body of an answer one after the other. Every call to the system lets go of
    Python's lock, for which the threads that decode and compute are waiting.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written = bytearray()

    def write(self, data: bytes) -> None:
        """Send data at the end of this turn."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written += data

    def close(self) -> None:
        """Send what was written, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._written:
            data, self._written = bytes(self._written), bytearray()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(H11Protocol):
    """A connection that is closed when it is silent for too long between two requests."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        if len(self.connections) >= CONNECTIONS:
            transport.abort()
        super().connection_made(cast(asyncio.Transport, _Gathering(transport, self.loop)))
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Let uvicorn handle what came; while a request is being answered nothing is waited for."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next request, or the end of one that was answered before its end."""
        self._wait()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, if no other answer has begun."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:  # its body is damaged: its handler is told
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.abort()
                return
        body = json.dumps({"error": "the request is no valid HTTP"}).encode()
        head = [
            ("content-type", "application/json"),
            ("connection", "close"),
            ("content-length", str(len(body))),
        ]
        try:
            self.transport.write(self.conn.send(h11.Response(status_code=400, headers=head)) or b"")
            self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError:  # an answer is complete already
            self.transport.abort()
            return
        self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(IDLE_SECONDS, self._end)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self.transport.abort()  # close() would wait for a client that does not read
