"""openapi.json says what the server does: every route, and answers that fit their schemas."""

import dataclasses
import re
from typing import Any

import jsonschema_rs
import pytest

from conformer_vision.inference import Prediction
from conformer_vision.serve.models import Loader
from conformer_vision.serve.pages import HEADERS
from conformer_vision.serve.routes import ROUTES
from conformer_vision.serve.schemas import SCHEMAS
from http_server import PNG, Stub, png, run, serving


def fits(described: dict[str, Any], path: str, method: str, answer: Any) -> None:
    """The answer has a status that is listed, and a body that fits its schema."""
    listed = described["paths"][path][method]["responses"][str(answer.status_code)]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = listed["content"][kind]["schema"]
    if kind == "application/json":
        whole = {"components": described["components"], **schema}
        jsonschema_rs.validator_for(whole).validate(answer.json())


def test_answers_fit_their_schemas(load: Loader) -> None:
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("post", "/predict", {"content": png(), "headers": PNG}),
        ("post", "/predict?top_k=2", {"files": {"x": png(), "y": b"no image"}}),
        ("post", "/predict", {"content": b"no image", "headers": PNG}),
        ("post", "/predict?x=1", {"content": png(), "headers": PNG}),
        ("post", "/predict", {"content": b"x"}),
        ("post", "/explain", {"content": png(), "headers": PNG}),
        ("post", "/explain?format=values", {"content": png(), "headers": PNG}),
        ("post", "/explain?format=png", {"content": png(), "headers": PNG}),
        ("post", "/reload", {}),
        *[("get", path, {}) for path in ("/model", "/health", "/ready", "/metrics")],
    ]

    async def test() -> None:
        async with serving(load) as server:
            described = (await server.client.get("/openapi.json")).json()
            for method, path, content in requests:
                answer = await server.client.request(method, path, **content)
                fits(described, path.partition("?")[0], method, answer)
            assert set(described["paths"]) == {route.path for route in ROUTES}

    run(test)


def test_predictions_have_the_fields_of_the_command() -> None:
    fields = [field.name for field in dataclasses.fields(Prediction)]
    assert list(SCHEMAS["Prediction"]["properties"]) == fields


def test_docs_and_page_need_nothing_from_elsewhere() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            docs = (await server.client.get("/docs")).text
            for route in ROUTES:
                assert f"{route.method} {route.path}" in docs
            for path in ("/", "/docs", "/openapi.json", "/style.css", "/script.js"):
                answer = await server.client.get(path)
                assert answer.status_code == 200
                for name, value in HEADERS.items():
                    assert answer.headers[name] == value
                if path != "/openapi.json":
                    assert not re.search(
                        r"(src|href)=\"?(https?:)?//|@import|url\((?!['\"]?data:)", answer.text
                    )
                again = await server.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
                assert (again.status_code, again.content) == (304, b"")
                head = await server.client.head(path)
                assert (head.status_code, head.headers["etag"]) == (200, answer.headers["etag"])

    run(test)


@pytest.mark.parametrize("with_keys", [True, False])
def test_keys_are_described(with_keys: bool) -> None:
    from conformer_vision.serve.openapi import docs_page, openapi

    described = openapi(ROUTES, with_keys=with_keys)
    guarded = {route.path for route in ROUTES if route.needs_key}
    found = {
        path
        for path, methods in described["paths"].items()
        for operation in methods.values()
        if "security" in operation and "401" in operation["responses"]
    }
    assert found == (guarded if with_keys else set())
    assert ("Needs a key." in docs_page(ROUTES, with_keys=with_keys)) == with_keys
