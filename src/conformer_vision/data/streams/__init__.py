"""Streams: sets of images larger than the disk, read one image after the other.

The names below are imported when first used; the formats' libraries when a stream is opened.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import ImageStream, StreamedImage
    from .opening import open_stream
    from .shards import write_shards

_HOMES = {
    "ImageStream": "base",
    "StreamedImage": "base",
    "open_stream": "opening",
    "write_shards": "shards",
}

__all__ = ["ImageStream", "StreamedImage", "open_stream", "write_shards"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
