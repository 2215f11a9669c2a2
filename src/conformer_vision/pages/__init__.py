"""HTML pages that are complete in one file: templates, and images as data."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.extras import require
from conformer_vision.files import atomic_path
from conformer_vision.pages.palette import PALETTE

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Thumbnail:
    """A small image on a page, with heat maps that stand beside it."""

    name: str
    """Of the image, as its source has it."""
    data: str | None
    """``data:image/...`` URI; None if the image could not be read again."""
    heat: Mapping[str, str] = field(default_factory=dict)
    """Title -> URI."""


_TINY = 48
"""At this size PNG costs no more than JPEG, and every pixel counts."""


def render(
    package: str,
    template: str,
    context: Mapping[str, Any],
    *,
    filters: Mapping[str, Callable[..., str]],
) -> str:
    """Render a template of a package; every value is escaped, as class and file names come from anywhere.

    Args:
        package: Has the template; those of `conformer_vision.pages` can be extended and imported too.
        template: Its file name.
        context: What it shows.
        filters: How it writes numbers and names.
    """
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, "") for name in (package, __name__)]),
    )
    environment.filters.update(filters)
    environment.globals["palette"] = PALETTE
    page: str = environment.get_template(template).render(context)
    return page


def write_page(path: str | Path, page: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        # File names need not be UTF-8; what no encoding has is shown escaped.
        temporary.write_bytes(page.encode("utf-8", "backslashreplace"))


def data_uri(image: Image.Image, *, edge: int) -> str:
    """Encode a small copy of an image as a ``data:`` URI: tiny images as PNG, others as JPEG.

    Args:
        image: RGB or grey.
        edge: pixels of the copy's longer edge, at most.
    """
    image = image.copy()
    image.thumbnail((edge, edge))
    return png_uri(image) if max(image.size) <= _TINY else _uri(image, "jpeg", quality=82)


def png_uri(image: Image.Image) -> str:
    """Encode an image as a ``data:`` URI without loss."""
    return _uri(image, "png", optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
