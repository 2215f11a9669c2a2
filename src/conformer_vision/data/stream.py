"""What a stream of labelled images offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from conformer_vision.errors import reason_of

from .base import Label, classes_of
from .images import BrokenImageError, open_image

if TYPE_CHECKING:
    from PIL import Image

    from conformer_vision.geometry import Need


class StreamedImage(NamedTuple):
    """One image of a stream, before it is decoded."""

    name: str
    """What messages call the image: its shard and its place in it."""
    stored: bytes | str | Image.Image | BrokenImageError
    """Its file's bytes, path or address, the RGB image, or why there is none."""
    label: Label
    """As in `ImageSource`; -1 if the label is invalid, and ``stored`` is then the error."""

    def image(self, need: Need | None = None) -> Image.Image:
        """Decode the image to RGB, upright.

        Args:
            need: as in `open_image`.

        Raises:
            BrokenImageError: the image cannot be decoded, which does not end the stream.
        """
        stored = self.stored
        if isinstance(stored, BrokenImageError):
            raise stored
        if isinstance(stored, str):
            stored = _fetch(stored, self.name)
        return open_image(stored, name=self.name, need=need) if isinstance(stored, bytes) else stored


def _fetch(path: str, name: str) -> bytes:
    """Read an image that is stored beside its row."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except Exception as error:  # the file system's, the server's
        raise BrokenImageError(f"{name}: {path} cannot be read ({reason_of(error)})") from error
    return data


class ImageStream(ABC):
    """Labelled images one after the other, picklable for worker processes.

    Attributes:
        classes: the class names; a label is an index into them.
        mirrorable: whether an image keeps its class when it is mirrored left to right.
        length: number of images in the split, about where the split is cut; None if unknown.
        is_cut: as in `ImageSource`.
        multilabel: as in `ImageSource`.
    """

    classes: tuple[str, ...]
    mirrorable: bool = True
    length: int | None = None
    is_cut: bool = False
    multilabel: bool = False

    @abstractmethod
    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """Read one of ``parts`` disjoint parts, which together hold every image of the split once.

        The same arguments give the same images in the same order in any process.

        Args:
            seed: decides the order; None for the stored order.
            part: the part to read, from 0.
            parts: number of parts. If there are more parts than shards, several parts read the same
                shard, and each decodes images of its own.
            start: number of images to skip at the beginning; they are not decoded.

        Raises:
            UserError: a part or start out of range.
        """


class OneHotStream(ImageStream):
    """Images of one label each, for a model of several labels per image."""

    multilabel = True

    def __init__(self, stream: ImageStream) -> None:
        self._stream = stream
        self.classes, self.mirrorable = stream.classes, stream.mirrorable
        self.length, self.is_cut = stream.length, stream.is_cut

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """See `ImageStream.read`."""
        for item in self._stream.read(seed=seed, part=part, parts=parts, start=start):
            yield item._replace(label=classes_of(item.label))
