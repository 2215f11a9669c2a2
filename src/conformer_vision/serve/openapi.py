"""openapi.json and its page for people, from the table of routes."""

from __future__ import annotations

import html
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from conformer_vision import __version__
from conformer_vision.serve.routes import Answer, Route
from conformer_vision.serve.schemas import BODY, SCHEMAS

_UNAUTHORIZED = Answer("The key is missing or wrong.", {"application/json": "Error"})
_BAD_PARAMETER = Answer("A parameter is unknown or wrong.", {"application/json": "Error"})


def answers_of(route: Route, *, with_keys: bool) -> dict[int, Answer]:
    """Return everything that a route answers, by status."""
    common = {400: _BAD_PARAMETER} | ({401: _UNAUTHORIZED} if with_keys and route.needs_key else {})
    return dict(sorted((common | dict(route.answers)).items()))


def openapi(routes: Sequence[Route], *, with_keys: bool) -> dict[str, Any]:
    """Return the description of routes in OpenAPI 3.1.

    Args:
        routes: The routes.
        with_keys: Whether the server asks for a key.
    """
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, with_keys=with_keys)
    components: dict[str, Any] = {"schemas": SCHEMAS}
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "conformer-vision", "version": __version__},
        "paths": paths,
        "components": components,
    }


def _operation(route: Route, *, with_keys: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.text,
        "operationId": route.path.strip("/"),
        "parameters": [
            {
                "name": each.name,
                "in": "query",
                "required": False,
                "description": each.text,
                "schema": dict(each.schema),
            }
            for each in route.parameters
        ],
        "responses": {
            str(status): _response(status, answer)
            for status, answer in answers_of(route, with_keys=with_keys).items()
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "description": route.body,
            "content": {kind: {"schema": schema} for kind, schema in BODY.items()},
        }
    if with_keys and route.needs_key:
        operation["security"] = [{"key": []}]
    return operation


def _response(status: int, answer: Answer) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": answer.text,
        "content": {
            kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for kind, name in answer.media.items()
        },
    }
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
        }
    return response


def docs_page(routes: Sequence[Route], *, with_keys: bool) -> str:
    """Return the page of docs: complete in itself, without a script."""
    sections = "\n".join(_section(route, with_keys=with_keys) for route in routes)
    key = (
        "<p>Send the header <code>Authorization: Bearer KEY</code> where a key is needed.</p>"
        if with_keys
        else ""
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>conformer-vision: the interface</title>
</head>
<body>
<h1>conformer-vision {html.escape(__version__)}</h1>
<p>Programs read <a href="openapi.json">openapi.json</a>; people send images on <a href="./">the page</a>.</p>
{key}
{sections}
</body>
</html>
"""


def _section(route: Route, *, with_keys: bool) -> str:
    lines = [f"<h2><code>{route.method} {route.path}</code></h2>", f"<p>{html.escape(route.text)}</p>"]
    if with_keys and route.needs_key:
        lines.append("<p>Needs a key.</p>")
    if route.body is not None:
        kinds = ", ".join(f"<code>{kind}</code>" for kind in BODY)
        lines.append(f"<p>Body: {html.escape(route.body)} As {kinds}.</p>")
    if route.parameters:
        items = "".join(
            f"<li><code>{each.name}</code>: {html.escape(each.text)}</li>" for each in route.parameters
        )
        lines.append(f"<p>Parameters:</p><ul>{items}</ul>")
    rows = "".join(
        f"<tr><td>{status}</td><td>{html.escape(answer.text)}</td></tr>"
        for status, answer in answers_of(route, with_keys=with_keys).items()
    )
    lines.append(f"<table><tr><th>Status</th><th>When</th></tr>{rows}</table>")
    return "\n".join(lines)
