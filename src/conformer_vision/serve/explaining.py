"""The answers to `POST /explain`: heat maps of both branches and of every block."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import JSONResponse, Response

from conformer_vision.data.images import BrokenImageError, check_image, open_image
from conformer_vision.errors import UserError, nearest
from conformer_vision.extras import MissingExtraError
from conformer_vision.serve.bodies import Upload
from conformer_vision.serve.limits import RefusedError
from conformer_vision.serve.predicting import timings
from conformer_vision.serve.receiving import Call, received, while_waiting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from conformer_vision.explain import Explainer
    from conformer_vision.explain.explainer import ClassAnswer, Shown
    from conformer_vision.explain.views import BlockMaps
    from conformer_vision.geometry import Box

    Maps = NDArray[np.float32]

_TOO_SLOW = ("occlusion",)
"""Methods that would keep everybody else waiting: a forward pass for every part that they cover."""
_DIGITS = 3


class _Decoded(NamedTuple):
    """An image as it is, and as the network is shown it."""

    name: str
    image: Image.Image
    batch: Tensor
    seen: Box


@dataclass(frozen=True)
class _Explained:
    """What the network says of an image."""

    decoded: _Decoded
    chosen: ClassAnswer
    best: tuple[ClassAnswer, ...]
    heat: dict[str, tuple[str, Maps]]
    """By view: the method and its map."""
    blocks: list[BlockMaps]


async def explain(call: Call) -> Response:
    """Show where the model looks, for the one image of a request."""
    service, model = call.service, call.service.model()
    explainer = model.explainer
    if explainer is None:
        raise RefusedError(
            409, f"{model.info.name} cannot be explained here: serve the weights of one network for that"
        )
    form, label, method = (call.parameters.get(name) for name in ("format", "class", "method"))
    if method is not None and form != "png":
        raise RefusedError(400, "method is for format=png; the other formats have a heat map of every branch")
    _check_method(method or "cam")
    number = None if label is None else _class_number(explainer, label)
    async with received(call, service.batcher.explanations) as images:
        if len(images) > 1:
            raise RefusedError(400, f"the request holds {len(images)} images; explain one at a time")
        upload = call.since_arrival_ms()

        async def work() -> Response:
            loop = asyncio.get_running_loop()
            began = loop.time()
            decoded = await service.pool.run(partial(_decode, explainer, images[0], service.limits.pixels))
            decode = 1000 * (loop.time() - began)
            if form == "png":
                computed = await service.batcher.run(
                    partial(_overlay_parts, explainer, decoded, number, method or "cam")
                )
                return Response(
                    await service.pool.run(partial(_overlay, computed.answer)), media_type="image/png"
                )
            computed = await service.batcher.run(partial(_explain, explainer, decoded, number))
            content = await service.pool.run(partial(_content, computed.answer, form == "values"))
            times = timings(
                upload=upload,
                decode=decode,
                queue=computed.queue_ms,
                inference=computed.inference_ms,
                total=call.since_arrival_ms(),
            )
            return JSONResponse({"model": model.info._asdict(), **content, "timings_ms": times})

        try:
            with service.batcher.explanations.hold() as place:
                place.take()
                return await while_waiting(call, work())
        except BrokenImageError as error:
            raise RefusedError(422, str(error)) from error
        except MissingExtraError as error:
            raise RefusedError(409, str(error)) from error
        except UserError as error:  # a method that does not suit the network
            raise RefusedError(400, str(error)) from error


def _check_method(name: str) -> None:
    from conformer_vision.explain.methods import method_of

    try:
        method_of(name)
    except UserError as error:
        raise RefusedError(400, str(error)) from error
    if name in _TOO_SLOW:
        raise RefusedError(400, f"method {name} is too slow for a server; use 'conformer-vision explain'")


def _class_number(explainer: Explainer, label: str) -> int:
    try:
        return explainer.class_numbers([label])[0]
    except UserError as error:  # its line has the path of the model
        hint = nearest(label, explainer.spec.labels)
        raise RefusedError(400, f"there is no class {label!r}; GET /model has all{hint}") from error


def _decode(explainer: Explainer, upload: Upload, pixels: int) -> _Decoded:
    check_image(upload.data, name=upload.name, max_pixels=pixels)
    read = partial(open_image, upload.data, name=upload.name)
    image = read()
    return _Decoded(upload.name, image, *explainer.prepare(image, read))


def _shown(explainer: Explainer, decoded: _Decoded) -> Shown:
    return explainer.shown(decoded.name, decoded.image, decoded.batch, decoded.seen)


def _explain(explainer: Explainer, decoded: _Decoded, number: int | None) -> _Explained:
    from conformer_vision.explain.explainer import MOST_ANSWERS
    from conformer_vision.explain.views import block_maps, evidence, view_methods

    shown = _shown(explainer, decoded)
    best = shown.best(MOST_ANSWERS)
    chosen = best[0] if number is None else number
    maps = evidence(explainer.model, shown.batch, [chosen])
    methods = view_methods(explainer.model, shown.batch)
    return _Explained(
        decoded,
        explainer.answer(chosen, shown),
        tuple(explainer.answer(each, shown) for each in best),
        {view: (methods[view], found[0]) for view, found in maps.items()},
        list(block_maps(explainer.model, shown.batch)),
    )


def _content(explained: _Explained, as_values: bool) -> dict[str, Any]:
    """Return the JSON of an explanation."""
    from conformer_vision import pages
    from conformer_vision.explain.drawing import heat_image, veil
    from conformer_vision.explain.views import TITLES

    def over(values: Maps) -> object:
        return _rows(values) if as_values else pages.png_uri(veil(values))

    def alone(values: Maps) -> object:
        return _rows(values) if as_values else pages.png_uri(heat_image(values))

    return {
        "name": explained.decoded.name,
        "size": list(explained.decoded.image.size),
        "seen": explained.decoded.seen._asdict(),
        "class": _class(explained.chosen),
        "classes": [_class(each) for each in explained.best],
        "heat_maps": {
            view: {"title": TITLES.get(view, view), "method": method, "map": over(values)}
            for view, (method, values) in explained.heat.items()
        },
        "blocks": [
            {
                "block": block.number,
                "conv": alone(block.map),
                "trans": alone(block.tokens),
                "attention": alone(block.attention),
            }
            for block in explained.blocks
        ],
    }


def _class(answer: ClassAnswer) -> dict[str, Any]:
    return {"label": answer.label, "probabilities": answer.probabilities}


def _rows(values: Maps) -> list[list[float]]:
    return [[round(float(value), _DIGITS) for value in row] for row in values]


def _overlay_parts(explainer: Explainer, decoded: _Decoded, number: int | None, method: str) -> Any:
    from conformer_vision.explain.methods import HeatMapOptions

    shown = _shown(explainer, decoded)
    numbers = shown.best(1)[:1] if number is None else [number]
    return explainer.explanation(shown, numbers, HeatMapOptions(method))


def _overlay(explanation: Any) -> bytes:
    from conformer_vision.explain import explained

    buffer = BytesIO()
    explained(explanation).save(buffer, "png")
    return buffer.getvalue()
