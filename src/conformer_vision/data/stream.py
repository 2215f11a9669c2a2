"""What a stream of labelled images offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from .base import Label, classes_of

if TYPE_CHECKING:
    from PIL import Image

    from .images import BrokenImageError


class StreamedImage(NamedTuple):
    """One image of a stream."""

    name: str
    """What messages call the image: its shard and its place in it."""
    image: Image.Image | BrokenImageError
    """The RGB image, or why there is none; a broken image does not end the stream."""
    label: Label
    """As in `ImageSource`; -1 if the label is invalid, and ``image`` is then the error."""


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
