"""POST /predict: the answers are those of `Predictor` on the same files, however they are sent."""

import base64
import dataclasses
import json
from pathlib import Path

import pytest

from conformer_vision import Predictor
from conformer_vision.serve.models import Loader
from http_server import PNG, png, run, serving

FILES = {"a.png": png(1), "b.png": png(2), "c.png": png(3)}


def expected(run_folder: Path, *names: str, top_k: int | None = None) -> list[dict[str, object]]:
    answers = Predictor(run_folder)([FILES[name] for name in names], top_k=top_k)
    found = [dataclasses.replace(answer, name=name) for answer, name in zip(answers, names, strict=True)]
    return json.loads(json.dumps([dataclasses.asdict(each) for each in found]))


def same(answers: list[dict[str, object]], wanted: list[dict[str, object]]) -> None:
    """Equal up to the rounding of batches of another size."""
    assert len(answers) == len(wanted)
    for answer, want in zip(answers, wanted, strict=True):
        assert answer.keys() == want.keys()
        for key, value in want.items():
            if key == "probabilities":
                assert answer[key] == pytest.approx(value, abs=1e-5)
            elif key in ("conv", "trans"):
                assert answer[key] == [value[0], pytest.approx(value[1], abs=1e-5)]
            else:
                assert answer[key] == value


def test_an_image_as_it_is(load: Loader, run_folder: Path) -> None:
    async def test() -> None:
        async with serving(load) as (_, client):
            answer = await client.post("/predict?top_k=3", content=FILES["a.png"], headers=PNG)
        assert answer.status_code == 200
        content = answer.json()
        (wanted,) = expected(run_folder, "a.png", top_k=3)
        same(content["predictions"], [wanted | {"name": "image 1"}])
        assert content["model"]["name"] == "run"
        assert set(content["timings_ms"]) == {"upload", "decode", "queue", "inference", "total"}
        assert content["timings_ms"]["total"] >= content["timings_ms"]["inference"] > 0

    run(test)


def test_a_form_and_json_have_the_same_answers(load: Loader, run_folder: Path) -> None:
    async def test() -> None:
        async with serving(load) as (_, client):
            form = await client.post("/predict", files=[("x", (name, data)) for name, data in FILES.items()])
            images = [
                {"name": name, "data": base64.encodebytes(data).decode()} for name, data in FILES.items()
            ]
            packed = await client.post("/predict", json={"images": images})
        wanted = expected(run_folder, *FILES)
        for answer in (form, packed):
            assert answer.status_code == 200, answer.text
            same(answer.json()["predictions"], wanted)

    run(test)


def test_one_broken_image_fails_alone(load: Loader, run_folder: Path) -> None:
    files = [
        ("x", ("a.png", FILES["a.png"])),
        ("x", ("bad.png", b"no image")),
        ("x", ("b.png", FILES["b.png"])),
    ]

    async def test() -> None:
        async with serving(load) as (_, client):
            answer = await client.post("/predict", files=files)
            alone = await client.post("/predict", content=b"no image", headers=PNG)
        assert answer.status_code == 200
        first, broken, last = answer.json()["predictions"]
        same([first, last], expected(run_folder, "a.png", "b.png"))
        assert broken["error"].startswith("bad.png: cannot be read as an image")
        assert broken["labels"] == []
        assert alone.status_code == 422
        assert alone.json()["error"].startswith("image 1: cannot be read as an image")

    run(test)
