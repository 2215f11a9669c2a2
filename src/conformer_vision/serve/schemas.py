"""The JSON of answers, as schemas of OpenAPI 3.1; tests hold them against answers."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_TEXTS = {"type": "array", "items": _TEXT}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_GUESS = {
    "type": "array",
    "description": "A class and its probability.",
    "prefixItems": [_TEXT, _SHARE],
    "minItems": 2,
    "maxItems": 2,
}
_MAP = {
    "description": "A data: URI of a PNG image, or rows of numbers from 0 to 1.",
    "anyOf": [_TEXT, {"type": "array", "items": {"type": "array", "items": _SHARE}}],
}
_TIMINGS = _object(upload=_NUMBER, decode=_NUMBER, queue=_NUMBER, inference=_NUMBER, total=_NUMBER)
_PREDICTIONS = {"type": "array", "items": _ref("Prediction"), "minItems": 1}

SCHEMAS: dict[str, dict[str, Any]] = {
    "Error": {
        "type": "object",
        "properties": {
            "error": {"type": "string", "description": "What was wrong and what to do, in one line."}
        },
        "required": ["error"],
    },
    "ModelInfo": _object(name=_TEXT, version=_TEXT, architecture=_TEXT, format=_TEXT),
    "Prediction": _object(
        name=_TEXT,
        labels=_TEXTS,
        probabilities={"type": "array", "items": _SHARE},
        error=_or_null(_TEXT),
        conv=_or_null(_GUESS),
        trans=_or_null(_GUESS),
        unsure=_or_null(_TEXT),
        conformal_set=_or_null(_TEXTS),
        present=_or_null(_TEXTS),
    ),
    "Predictions": _object(model=_ref("ModelInfo"), predictions=_PREDICTIONS, timings_ms=_TIMINGS),
    "NoPredictions": _object(
        error=_TEXT, model=_ref("ModelInfo"), predictions=_PREDICTIONS, timings_ms=_TIMINGS
    ),
    "ClassAnswer": _object(
        label=_TEXT,
        probabilities={"type": "object", "additionalProperties": _SHARE, "required": ["fused"]},
    ),
    "Explanation": _object(
        model=_ref("ModelInfo"),
        name=_TEXT,
        size={"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        seen=_object(left=_NUMBER, top=_NUMBER, right=_NUMBER, bottom=_NUMBER),
        **{"class": _ref("ClassAnswer")},
        classes={"type": "array", "items": _ref("ClassAnswer")},
        heat_maps={
            "type": "object",
            "additionalProperties": _object(title=_TEXT, method=_TEXT, map=_MAP),
        },
        blocks={
            "type": "array",
            "items": _object(block={"type": "integer", "minimum": 1}, conv=_MAP, trans=_MAP, attention=_MAP),
        },
        timings_ms=_TIMINGS,
    ),
    "Model": _object(
        model=_ref("ModelInfo"),
        classes=_TEXTS,
        multilabel={"type": "boolean"},
        input_size={"type": "array", "items": {"type": "integer"}},
        explainable={"type": "boolean"},
        limits=_object(
            body_bytes={"type": "integer"},
            images={"type": "integer"},
            pixels={"type": "integer"},
            deadline_seconds=_NUMBER,
        ),
    ),
    "Reloaded": _object(model=_ref("ModelInfo")),
    "Status": _object(status=_TEXT),
    "Bytes": {"type": "string", "contentMediaType": "image/png"},
    "Text": _TEXT,
}

BODY: dict[str, dict[str, Any]] = {
    "application/octet-stream": {"type": "string", "format": "binary"},
    "image/*": {"type": "string", "format": "binary"},
    "multipart/form-data": {
        "type": "object",
        "additionalProperties": {"type": "string", "format": "binary"},
        "minProperties": 1,
    },
    "application/json": {
        "type": "object",
        "properties": {
            "images": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "anyOf": [
                        {"type": "string", "contentEncoding": "base64"},
                        {
                            "type": "object",
                            "properties": {
                                "name": _TEXT,
                                "data": {"type": "string", "contentEncoding": "base64"},
                            },
                            "required": ["data"],
                            "additionalProperties": False,
                        },
                    ]
                },
            }
        },
        "required": ["images"],
        "additionalProperties": False,
    },
}
"""Content type of a body -> its schema."""
