"""The table of routes: what the app answers, and what openapi.json and the page of docs say of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from conformer_vision.errors import UserError, nearest
from conformer_vision.serve.explaining import explain
from conformer_vision.serve.limits import RefusedError, busy
from conformer_vision.serve.predicting import predict
from conformer_vision.serve.receiving import Call

Handler = Callable[[Call], Awaitable[Response]]

_NUMBER = re.compile("[0-9]{1,6}")
_PATHS = re.compile(r"(?<![^\s'\"(])[^\s'\"(]*/(?=[^\s/])")


@dataclass(frozen=True)
class Parameter:
    """A parameter in the URL of a route."""

    name: str
    text: str
    parse: Callable[[str], Any]
    """From its text to its value; raises ValueError with what it has to be."""
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a route answers with one status."""

    text: str
    media: Mapping[str, str] = field(default_factory=dict)
    """Content type -> name of a schema in `schemas`."""


@dataclass(frozen=True)
class Route:
    """One route."""

    method: str
    path: str
    handler: Handler
    text: str
    answers: Mapping[int, Answer]
    parameters: tuple[Parameter, ...] = ()
    body: str | None = None
    """What the body holds; None for no body. All bodies hold images, in one of three ways."""
    needs_key: bool = True
    """Whether a server with keys asks for one."""

    def parse(self, request: Request) -> dict[str, Any]:
        """Return the values of the parameters in the URL, as far as they are given.

        Raises:
            RefusedError: One is unknown, is given twice, or has a wrong value.
        """
        known, values = {parameter.name: parameter for parameter in self.parameters}, dict[str, Any]()
        for name, text in request.query_params.multi_items():
            shown = repr(name[:60])
            if name not in known:
                has = f"{self.path} has {', '.join(known)}" if known else f"{self.path} has none"
                raise RefusedError(400, f"unknown parameter {shown}; {has}{nearest(name[:60], known)}")
            if name in values:
                raise RefusedError(400, f"parameter {shown} is given twice; give it once")
            try:
                values[name] = known[name].parse(text)
            except ValueError as error:
                raise RefusedError(400, f"{name}={text[:60]!r}: must be {error}") from error
        return values


async def _model(call: Call) -> Response:
    """Say what answers, and what is accepted."""
    model, limits = call.service.model(), call.service.limits
    return JSONResponse(
        {
            "model": model.info._asdict(),
            "classes": list(model.classes),
            "multilabel": model.multilabel,
            "input_size": list(model.input_size),
            "explainable": model.explainer is not None,
            "limits": {
                "body_bytes": limits.body_bytes,
                "images": limits.max_images,
                "pixels": limits.pixels,
                "deadline_seconds": limits.deadline_seconds,
            },
        }
    )


async def _health(call: Call) -> Response:
    if not call.service.batcher.alive:
        raise RefusedError(500, "batches are made no more; start the server again", reason="failed")
    return JSONResponse({"status": "alive"})


async def _ready(call: Call) -> Response:
    call.service.model()
    if not call.service.ready:
        raise busy("the server does not compute", reason="failed")
    return JSONResponse({"status": "ready"})


async def _metrics(call: Call) -> Response:
    metrics = call.service.metrics
    return Response(metrics.text(), media_type=metrics.content_type)


async def _reload(call: Call) -> Response:
    if call.service.keys is None:
        raise RefusedError(
            403, "reload over HTTP needs a server with --api_key_file; or send SIGHUP to its process"
        )
    try:
        model = await call.service.reload()
    except UserError as error:
        line = _PATHS.sub("", str(error))
        raise RefusedError(
            409, f"the new model cannot be loaded, the old one stays: {line}", reason="reload"
        ) from error
    return JSONResponse({"model": model.info._asdict()})


def _whole_number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or not int(text):
        raise ValueError("a whole number from 1 on")
    return int(text)


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return text

    return parse


_JSON = "application/json"
_ERROR = {_JSON: "Error"}
_FORMATS = ("json", "values", "png")
_IMAGES = {
    400: Answer("The body is not what its content type says, or a parameter is wrong.", _ERROR),
    408: Answer("The body did not arrive in time.", _ERROR),
    413: Answer("The body is too large, or holds too many images.", _ERROR),
    415: Answer("Another content type, or a compressed body.", _ERROR),
    500: Answer("The model failed.", _ERROR),
    503: Answer("Full, loading or draining; try again after Retry-After.", _ERROR),
    504: Answer("Not ready in time.", _ERROR),
}

ROUTES = (
    Route(
        "POST",
        "/predict",
        predict,
        "Classify one or many images.",
        {
            200: Answer("One prediction per image.", {_JSON: "Predictions"}),
            422: Answer("No image can be read.", {_JSON: "NoPredictions"}),
            **_IMAGES,
        },
        parameters=(
            Parameter(
                "top_k",
                "Number of classes per image.",
                _whole_number,
                {"type": "integer", "minimum": 1, "maximum": 999_999},
            ),
        ),
        body="One or many images.",
    ),
    Route(
        "POST",
        "/explain",
        explain,
        "Show where the model looks, for one image.",
        {
            200: Answer("Heat maps.", {_JSON: "Explanation", "image/png": "Bytes"}),
            422: Answer("The image cannot be read.", _ERROR),
            409: Answer("The model cannot be explained: it is an exported file or an ensemble.", _ERROR),
            **_IMAGES,
        },
        parameters=(
            Parameter(
                "format",
                "Heat maps as PNG images in JSON (default), as numbers in JSON, or one PNG.",
                _one_of(*_FORMATS),
                {"type": "string", "enum": list(_FORMATS)},
            ),
            Parameter(
                "class", "The class to explain; the most probable by default.", str, {"type": "string"}
            ),
            Parameter(
                "method", "Of format=png: how the heat map is made; cam by default.", str, {"type": "string"}
            ),
        ),
        body="One image.",
    ),
    Route(
        "GET",
        "/model",
        _model,
        "Say which model answers, its classes, and what is accepted.",
        {200: Answer("The model.", {_JSON: "Model"}), 503: _IMAGES[503]},
    ),
    Route(
        "POST",
        "/reload",
        _reload,
        "Load the model anew; the old one answers until the new one is ready, or for good if that is broken.",
        {
            200: Answer("The new model answers.", {_JSON: "Reloaded"}),
            403: Answer("The server has no keys.", _ERROR),
            409: Answer("The new model is broken, or is being loaded already.", _ERROR),
            503: _IMAGES[503],
        },
    ),
    Route(
        "GET",
        "/health",
        _health,
        "Tell whether the process lives.",
        {200: Answer("It does.", {_JSON: "Status"}), 500: Answer("It does not compute.", _ERROR)},
        needs_key=False,
    ),
    Route(
        "GET",
        "/ready",
        _ready,
        "Tell whether requests are taken.",
        {200: Answer("They are.", {_JSON: "Status"}), 503: _IMAGES[503]},
        needs_key=False,
    ),
    Route(
        "GET",
        "/metrics",
        _metrics,
        "Give figures to Prometheus.",
        {200: Answer("The figures.", {"text/plain": "Text"})},
    ),
)
"""What takes parameters, bodies or keys; `pages` adds the files of the page, openapi.json and the docs."""
