"""The refusal of requests that find the queue full, at a fraction of the price of any other answer.

Whatever comes beyond what a server can compute must cost little, or refusing takes the time of computing.
"""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conformer_vision.serve.limits import RefusedError
from conformer_vision.serve.pages import HEADERS
from conformer_vision.serve.service import Service


class Shedding:
    """An application before which a full queue refuses requests, without looking at them further.

    Args:
        app: Gets all other requests.
        service: Has the queue.
        path: Of the requests that need a place in it.
    """

    def __init__(self, app: ASGIApp, service: Service, *, path: str) -> None:
        self._app = app
        self._service = service
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        service = self._service
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            service.batcher.places.check()
        except RefusedError as refusal:
            service.metrics.rejected(refusal.reason)
            service.metrics.request(self._path, refusal.status, 0)
            for message in _messages(refusal):
                await send(message)
        else:
            await self._app(scope, receive, send)


def _messages(refusal: RefusedError) -> tuple[Message, Message]:
    body = json.dumps({"error": refusal.line}).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **refusal.headers,
        **HEADERS,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return (
        {"type": "http.response.start", "status": refusal.status, "headers": raw},
        {"type": "http.response.body", "body": body},
    )
