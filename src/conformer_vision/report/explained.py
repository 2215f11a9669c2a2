"""A page that shows where a model looks: heat maps of both branches and of their coupling, block by block."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from torch import Tensor, nn

from conformer_vision import pages
from conformer_vision.explain import Explainer
from conformer_vision.explain.drawing import heat_image, veil
from conformer_vision.explain.explainer import ClassAnswer, Shown
from conformer_vision.explain.methods import METHODS
from conformer_vision.explain.views import CONFORMER, TITLES, block_maps, evidence
from conformer_vision.geometry import Box
from conformer_vision.report.formats import FILTERS

EDGE = 480
"""Longest edge of an image on the page, in pixels."""


class Place(NamedTuple):
    """Where the part that the network was shown lies on the image, in per cent of its edges."""

    left: float
    top: float
    width: float
    height: float


_WHOLE = Place(0, 0, 100, 100)


class BlockRow(NamedTuple):
    """One block on the slider; images as ``data:`` URIs."""

    number: int
    map: str
    tokens: str
    attention: str


class ClassRow(NamedTuple):
    """One class: what the heads say, and a heat map for each title."""

    answer: ClassAnswer
    heat: dict[str, str]


@dataclass(frozen=True)
class Panel:
    """One image on the page, or the line that says why it is not shown."""

    name: str
    error: str | None = None
    image: str = ""
    size: tuple[int, int] = (0, 0)
    place: Place = _WHOLE
    classes: tuple[ClassRow, ...] = ()
    blocks: tuple[BlockRow, ...] = ()

    @property
    def ratio(self) -> str:
        """The proportions of what the network was shown."""
        width, height = self.size
        return f"{self.place.width * width:.0f} / {self.place.height * height:.0f}"


def panel(explainer: Explainer, shown: Shown, numbers: Sequence[int]) -> Panel:
    """Return what the page shows of an image; the image itself is not kept.

    Args:
        explainer: The model.
        shown: The image, from `Explainer.show`.
        numbers: Numbers of the classes to choose from.
    """
    if shown.image is None:
        return Panel(shown.name, error=shown.error)
    return Panel(
        shown.name,
        image=pages.data_uri(shown.image, edge=EDGE),
        size=shown.image.size,
        place=place_of(shown.seen, shown.image.size),
        classes=tuple(_class_rows(explainer, shown, numbers)),
        blocks=tuple(_block_rows(explainer.model, shown.batch)),
    )


def _class_rows(explainer: Explainer, shown: Shown, numbers: Sequence[int]) -> Iterator[ClassRow]:
    found = evidence(explainer.model, shown.batch, numbers)
    for row, number in enumerate(numbers):
        heat = {title: pages.png_uri(veil(maps[row])) for title, maps in found.items()}
        yield ClassRow(explainer.answer(number, shown), heat)


def _block_rows(model: nn.Module, batch: Tensor) -> Iterator[BlockRow]:
    for block in block_maps(model, batch):
        images = map(heat_image, (block.map, block.tokens, block.attention))
        yield BlockRow(block.number, *map(pages.png_uri, images))


def place_of(seen: Box, size: tuple[int, int]) -> Place:
    """Return where a part of an image of width and height `size` lies, in per cent."""
    width, height = size
    return Place(
        100 * seen.left / width,
        100 * seen.top / height,
        100 * (seen.right - seen.left) / width,
        100 * (seen.bottom - seen.top) / height,
    )


def write_explained(path: str | Path, shown: Sequence[Panel], *, model: str) -> None:
    """Write the page.

    Raises:
        UserError: The file cannot be written.
    """
    script = files(__package__).joinpath("explained.js").read_text(encoding="utf-8")
    context = {
        "panels": shown,
        "model": model,
        "titles": TITLES,
        "methods": METHODS,
        "conformer": CONFORMER,
        "script": Markup(script),
        # Browsers run no other script, whatever a class or a file is called.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    pages.write_page(path, pages.render(__package__, "explained.html.j2", context, filters=FILTERS))
