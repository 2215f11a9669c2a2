"""Thumbnails as data inside a page."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from conformer_vision import pages
from conformer_vision.data import BrokenImageError, ImageSource
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.stream import ImageStream
from conformer_vision.explain import Explainer
from conformer_vision.explain.drawing import overlay
from conformer_vision.explain.explainer import placed
from conformer_vision.explain.views import evidence
from conformer_vision.geometry import Box
from conformer_vision.pages import Thumbnail
from conformer_vision.report.analysis import Outcome
from conformer_vision.spec import ModelSpec
from conformer_vision.tensors import evaluation_transform

EDGE = 256
"""Longest edge of an image, which is shown smaller until it is enlarged, in pixels."""
HEAT_EDGE = 160
"""Longest edge of an image with a heat map."""
VIEWS = 2
"""Heat maps of an image: one of each branch."""
TITLES = {"conv": "convolution", "trans": "transformer"}


class Again(NamedTuple):
    """An image that is read again to be shown."""

    name: str
    image: Image.Image | None
    """None if it could not be read again; the prediction is known all the same."""
    batch: Tensor
    """(1, C, H, W), as the network is shown it."""
    seen: Box
    """The part of the image that it shows."""


def read_again(
    rows: Collection[int],
    outcome: Outcome,
    source: ImageSource | ImageStream,
    *,
    explainer: Explainer,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[int, Again]]:
    """Yield the images in some rows of an outcome, with their rows.

    Images of a stream have no numbers: the stream is read once more, and they are as the network sees them.

    Args:
        rows: numbers from 0 to N - 1.
        outcome: has the predictions.
        source: its images.
        explainer: the model that made them.
        batch_size: as for the predictions.
        workers: as for the predictions, since it decides the order of a stream.
    """
    if isinstance(source, ImageSource):
        for row in rows:
            yield row, again_by_number(source, int(outcome.indices[row]), explainer)
        return
    wanted = {int(outcome.order[row]): row for row in rows}
    seen = 0
    transform = evaluation_transform(explainer.spec)
    for batch in evaluation_loader(source, transform, batch_size=batch_size, workers=workers):
        for place in range(len(batch.labels)):
            if seen + place in wanted:
                row = wanted.pop(seen + place)
                image = as_seen(batch.images[place], explainer.spec)
                tensor = batch.images[place][None].to(explainer.device)
                name = f"image {seen + place + 1} of the stream"
                yield row, Again(name, image, tensor, Box(0, 0, *image.size))
        seen += len(batch.labels)
        if not wanted:
            break


def as_seen(image: Tensor, spec: ModelSpec) -> Image.Image:
    """Turn a network's input (C, H, W) into an image."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def again_by_number(source: ImageSource, index: int, explainer: Explainer) -> Again:
    """Read an image of a source again."""
    try:
        image = source.image(index)
        batch, seen = explainer.prepare(image, partial(source.image, index))
    except BrokenImageError:  # readable a minute ago
        return Again(source.name(index), None, torch.empty(0), Box(0, 0, 0, 0))
    return Again(source.name(index), image, batch, seen)


def thumbnail(again: Again, explainer: Explainer, number: int, *, views: int = VIEWS) -> Thumbnail:
    """Make a thumbnail with heat maps of the evidence for a class; ``views`` is how many of a Conformer."""
    if again.image is None:
        return Thumbnail(again.name, None)
    found = evidence(explainer.model, again.batch, [number], views=views)
    heat = {
        TITLES.get(title, "evidence"): _heated(again.image, again.seen, maps[0])
        for title, maps in found.items()
    }
    return Thumbnail(again.name, pages.data_uri(again.image, edge=EDGE), heat)


def _heated(image: Image.Image, seen: Box, heat: NDArray[np.float32]) -> str:
    """Return a small grey copy of an image under a heat map of the part that was seen, as a URI."""
    scale = HEAT_EDGE / max(image.size)
    width, height = (max(round(edge * scale), 1) for edge in image.size)
    small = image.resize((width, height), Resampling.LANCZOS if scale < 1 else Resampling.NEAREST)
    across, down = width / image.width, height / image.height
    box = Box(seen.left * across, seen.top * down, seen.right * across, seen.bottom * down)
    return pages.data_uri(overlay(small, placed(torch.from_numpy(heat), box, small.size)), edge=HEAT_EDGE)
