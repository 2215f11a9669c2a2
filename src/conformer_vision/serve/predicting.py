"""The answers to `POST /predict`."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from starlette.responses import JSONResponse, Response

from conformer_vision.data.images import BrokenImageError, check_image
from conformer_vision.errors import machine_error
from conformer_vision.serve.batching import ModelFailedError, Place
from conformer_vision.serve.bodies import Upload
from conformer_vision.serve.models import PredictKey, Served
from conformer_vision.serve.receiving import Call, received, while_waiting
from conformer_vision.serve.service import Service

if TYPE_CHECKING:
    from conformer_vision.inference import Prediction, Prepared

_log = logging.getLogger(__name__)


class _Outcome(NamedTuple):
    """What became of one image, and how long each step took."""

    kind: Literal["answered", "broken", "failed"]
    prediction: Prediction
    decode_ms: float = 0
    queue_ms: float = 0
    inference_ms: float = 0


async def predict(call: Call) -> Response:
    """Classify the images of a request."""
    service, model = call.service, call.service.model()
    key = PredictKey(model, call.parameters.get("top_k"))
    async with received(call, service.batcher.places) as images:
        upload = call.since_arrival_ms()
        outcomes = await while_waiting(call, _answer_all(service, key, images))
    kinds = Counter(outcome.kind for outcome in outcomes)
    for kind, number in kinds.items():
        service.metrics.images(kind, number)
    content: dict[str, Any] = {
        "model": model.info._asdict(),
        "predictions": [dataclasses.asdict(outcome.prediction) for outcome in outcomes],
        "timings_ms": timings(
            upload=upload,
            decode=max(outcome.decode_ms for outcome in outcomes),
            queue=max(outcome.queue_ms for outcome in outcomes),
            inference=max(outcome.inference_ms for outcome in outcomes),
            total=call.since_arrival_ms(),
        ),
    }
    if kinds["answered"]:
        return JSONResponse(content)
    first = outcomes[0].prediction.error
    error = (
        first
        if len(outcomes) == 1
        else f"none of the {len(outcomes)} images has an answer; the first: {first}"
    )
    return JSONResponse({"error": error} | content, 500 if kinds["failed"] else 422)


def timings(**milliseconds: float) -> dict[str, float]:
    """Return times as answers show them."""
    return {name: round(value, 3) for name, value in milliseconds.items()}


async def _answer_all(service: Service, key: PredictKey, images: list[Upload]) -> list[_Outcome]:
    service.batcher.places.check(len(images))
    with ExitStack() as stack:
        places = [stack.enter_context(service.batcher.place()) for _ in images]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_answer(service, key, image, place))
                for image, place in zip(images, places, strict=True)
            ]
        return [task.result() for task in tasks]


async def _answer(service: Service, key: PredictKey, image: Upload, place: Place) -> _Outcome:
    """Answer one image; whatever is wrong with it, the others are answered."""
    from conformer_vision.inference import Prediction

    loop = asyncio.get_running_loop()
    began = loop.time()
    with place:
        try:
            prepared = await service.pool.run(partial(_decode, key.model, image, service.limits.pixels))
        except BrokenImageError as error:
            return _Outcome("broken", Prediction(image.name, (), (), error=str(error)))
        except Exception as error:
            line = machine_error(error)
            _log.error(
                "an image could not be decoded: %s", line or repr(error), exc_info=None if line else error
            )
            failed = f"{image.name}: the server could not decode it; its log says why"
            return _Outcome("failed", Prediction(image.name, (), (), error=failed))
        decode_ms = 1000 * (loop.time() - began)
        try:
            computed = await service.batcher.compute(key, prepared, place)
        except ModelFailedError as error:
            return _Outcome("failed", Prediction(image.name, (), (), error=error.line))
    prediction: Prediction = computed.answer
    kind: Literal["answered", "failed"] = "answered" if prediction.error is None else "failed"
    return _Outcome(kind, prediction, decode_ms, computed.queue_ms, computed.inference_ms)


def _decode(model: Served, image: Upload, pixels: int) -> Prepared:
    check_image(image.data, name=image.name, max_pixels=pixels)
    return model.predictor.read(image.data, name=image.name)
