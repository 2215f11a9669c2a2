"""The ASGI application: routes to handlers, and whatever goes wrong to one line of JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp

from conformer_vision.errors import machine_error
from conformer_vision.serve.limits import RefusedError
from conformer_vision.serve.openapi import docs_page, openapi
from conformer_vision.serve.pages import HEADERS, Static, page_files, static
from conformer_vision.serve.receiving import Call
from conformer_vision.serve.routes import ROUTES, Route
from conformer_vision.serve.service import Service
from conformer_vision.serve.shedding import Shedding

_log = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]
_GONE = 499
"""Status in the metrics of a request whose client went away; it is never sent."""


def build_app(service: Service) -> ASGIApp:
    """Return the application that answers for a service."""
    with_keys = service.keys is not None
    described = json.dumps(openapi(ROUTES, with_keys=with_keys), indent=2).encode()
    docs = docs_page(ROUTES, with_keys=with_keys).encode()
    fixed = page_files() | {
        "/openapi.json": static(described, "application/json"),
        "/docs": static(docs, "text/html; charset=utf-8"),
    }
    routes = [
        StarletteRoute(route.path, _endpoint(service, route), methods=[route.method]) for route in ROUTES
    ]
    routes += [StarletteRoute(path, _fixed(service, path, file)) for path, file in fixed.items()]

    async def refused(request: Request, error: Exception) -> Response:
        """Answer for a path or method that no route has."""
        assert isinstance(error, HTTPException)
        path = repr(request.url.path[:80])
        lines = {
            404: f"there is no {path} here; GET /docs lists what there is",
            405: f"{path} does not take {request.method[:20]}; GET /docs says what it takes",
        }
        service.metrics.request("other", error.status_code, 0)
        line = lines.get(error.status_code, str(error.detail))
        return JSONResponse({"error": line}, error.status_code, dict(error.headers or {}) | HEADERS)

    app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    app.router.redirect_slashes = False
    return Shedding(app, service, path="/predict")


def _endpoint(service: Service, route: Route) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        status = _GONE
        service.in_flight += 1
        try:
            response = await _answer(service, route, request, arrived)
            status = response.status_code
        except ClientDisconnect:
            response = Response(status_code=_GONE)
        finally:
            service.in_flight -= 1
            service.metrics.request(route.path, status, loop.time() - arrived)
        return response

    return endpoint


async def _answer(service: Service, route: Route, request: Request, arrived: float) -> Response:
    try:
        if service.keys is not None and route.needs_key:
            service.keys.check(request)
        response = await route.handler(Call(service, request, route.parse(request), arrived))
    except RefusedError as error:
        service.metrics.rejected(error.reason)
        response = JSONResponse({"error": error.line}, error.status, error.headers)
    except ClientDisconnect:
        raise
    except Exception as error:
        line = machine_error(error)
        _log.error("%s failed: %s", route.path, line or repr(error), exc_info=None if line else error)
        response = JSONResponse({"error": "the server failed; its log says why"}, 500)
    response.headers.update(HEADERS)
    if service.draining:
        response.headers["Connection"] = "close"
    return response


def _fixed(service: Service, path: str, file: Static) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        response = file.answer(request)
        service.metrics.request(path, response.status_code, 0)
        response.headers.update(HEADERS)
        return response

    return endpoint
