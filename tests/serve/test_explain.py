"""POST /explain: the maps are those of `Explainer` on the same file."""

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conformer_vision.explain import Explainer, explained
from conformer_vision.explain.explainer import relative
from conformer_vision.explain.methods import METHODS, HeatMapOptions, heat_maps
from conformer_vision.explain.views import CONFORMER
from conformer_vision.serve.models import Loader
from http_server import PNG, png, run, serving

FILE = png(5, size=(60, 44))


@pytest.fixture(scope="module")
def explainer(run_folder: Path) -> Explainer:
    return Explainer(run_folder)


def test_maps_as_numbers(load: Loader, explainer: Explainer) -> None:
    (shown,) = explainer.show([FILE])
    best = shown.best(5)

    async def test() -> None:
        async with serving(load) as server:
            answer = await server.client.post("/explain?format=values", content=FILE, headers=PNG)
        assert answer.status_code == 200, answer.text
        content = answer.json()
        assert content["size"] == [60, 44]
        assert list(content["seen"].values()) == list(shown.seen)
        assert [each["label"] for each in content["classes"]] == [explainer.spec.labels[k] for k in best]
        assert content["class"] == content["classes"][0]
        wanted = explainer.answer(best[0], shown).probabilities
        assert content["class"]["probabilities"] == pytest.approx(wanted, abs=1e-5)
        for view, method in CONFORMER.items():
            found = content["heat_maps"][view]
            maps = heat_maps(explainer.model, shown.batch, [best[0]], method=method).maps[0]
            evidence = relative(maps, signed=METHODS[method].signed)[0]
            assert found["method"] == method
            np.testing.assert_allclose(found["map"], evidence.numpy(), atol=2e-3)
        assert [block["block"] for block in content["blocks"]] == [1, 2, 3, 4, 5]
        for block in content["blocks"]:
            for name in ("conv", "trans", "attention"):
                values = np.array(block[name])
                assert values.ndim == 2
                assert (values.min(), values.max()) == (0, 1)

    run(test)


def test_maps_as_images(load: Loader) -> None:
    """Of the class that is asked for, and of the model that is named."""

    def opened(uri: str) -> Image.Image:
        kind, _, data = uri.partition(",")
        assert kind == "data:image/png;base64"
        return Image.open(BytesIO(base64.b64decode(data)))

    async def test() -> None:
        async with serving(load) as server:
            answer = await server.client.post("/explain?class=7", files={"x": ("a.png", FILE)})
            info = (await server.client.get("/model")).json()
        content = answer.json()
        assert (content["name"], content["class"]["label"]) == ("a.png", "7")
        assert info["explainable"] and info["model"] == content["model"]
        for found in content["heat_maps"].values():
            assert opened(found["map"]).mode == "RGBA"
        assert {opened(block[each]).mode for block in content["blocks"] for each in ("conv", "trans")} == {
            "RGB"
        }
        assert set(content["timings_ms"]) == {"upload", "decode", "queue", "inference", "total"}

    run(test)


@pytest.mark.parametrize("method", ["cam", "rollout"])
def test_one_overlay(load: Loader, explainer: Explainer, method: str) -> None:
    (wanted,) = explainer.explain([FILE], classes=["3"], options=HeatMapOptions(method))

    async def test() -> None:
        async with serving(load) as server:
            query = f"?format=png&class=3&method={method}"
            answer = await server.client.post(f"/explain{query}", content=FILE, headers=PNG)
        assert answer.headers["content-type"] == "image/png"
        found = np.asarray(Image.open(BytesIO(answer.content)), dtype=int)
        assert np.abs(found - np.asarray(explained(wanted), dtype=int)).max() <= 2

    run(test)


@pytest.mark.parametrize(
    ("query", "status", "line"),
    [
        ("class=nope", 400, "there is no class 'nope'; GET /model has all"),
        ("format=jpeg", 400, "format='jpeg': must be one of json, values, png"),
        ("method=cam", 400, "method is for format=png"),
        ("format=png&method=camm", 400, "must be one of cam, "),
        ("format=png&method=occlusion", 400, "too slow for a server"),
    ],
)
def test_what_cannot_be_explained(load: Loader, run_folder: Path, query: str, status: int, line: str) -> None:
    async def test() -> None:
        async with serving(load) as server:
            answer = await server.client.post(f"/explain?{query}", content=FILE, headers=PNG)
            broken = await server.client.post("/explain", content=b"no image", headers=PNG)
            two = await server.client.post("/explain", files=[("x", ("a", FILE)), ("x", ("b", FILE))])
            assert server.service.batcher.explanations.held == 0
        assert answer.status_code == status
        assert line in answer.json()["error"]
        assert str(run_folder) not in answer.text
        assert broken.status_code == 422
        assert "image 1: cannot be read as an image" in broken.json()["error"]
        assert two.status_code == 400
        assert "one at a time" in two.json()["error"]

    run(test)


def test_a_model_without_explanations(load: Loader) -> None:
    async def test() -> None:
        async with serving(lambda: replace(load(), explainer=None)) as server:
            answer = await server.client.post("/explain", content=FILE, headers=PNG)
            assert answer.status_code == 409
            assert "serve the weights of one network" in answer.json()["error"]
            assert not (await server.client.get("/model")).json()["explainable"]

    run(test)


def test_explanations_have_a_bounded_queue(load: Loader) -> None:
    async def test() -> None:
        async with serving(load) as server:
            budget = server.service.batcher.explanations
            with budget.hold() as held:
                held.take(budget.most)
                answer = await server.client.post("/explain", content=FILE, headers=PNG)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert (await server.predict()).status_code == 200
            assert (await server.client.post("/explain", content=FILE, headers=PNG)).status_code == 200

    run(test)
