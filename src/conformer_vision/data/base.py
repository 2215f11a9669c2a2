"""What every source of labelled images offers, and the rules of class names."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, some_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from conformer_vision.geometry import Need

NOT_COUNTED = -100
"""Label of an image to ignore: it is broken, or only fills up a batch (torch's ``ignore_index``)."""
Label = int | tuple[int, ...]
"""The class of an image, an index; or with several labels per image its classes, ascending, perhaps none."""


def is_counted(labels: Tensor) -> Tensor:
    """Tell which images of a batch have labels, (B,) bool.

    Args:
        labels: (B,) of class numbers or (B, K) of 0 and 1; `NOT_COUNTED` for an image to ignore.
    """
    return (labels if labels.ndim == 1 else labels[:, 0]) != NOT_COUNTED


class ImageSource(ABC):
    """Labelled images by number; a map-style dataset for torch, picklable for its workers.

    Attributes:
        classes: the class names; a label is an index into them.
        labels: one label per image.
        multilabel: whether an image may have several labels, or none: every label is then a tuple of distinct
            indices in ascending order.
        mirrorable: whether an image mirrored left to right is still of its class.
        passed_over: files beside the images that are not read.
        is_cut: whether a `Splitting` cut the images, as the set has no such split of its own.
        groups: one group per image, such as its patient, where `Splitting.group` says which; else None.
    """

    mirrorable = True
    is_cut = False
    groups: Sequence[str] | None = None
    passed_over: Sequence[str] = ()

    def __init__(self, classes: Sequence[str], labels: Iterable[Label], *, multilabel: bool = False) -> None:
        self.classes = tuple(classes)
        self.multilabel = multilabel
        self.labels: Sequence[Label] = tuple(
            label if isinstance(label, tuple) else int(label) for label in labels
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, Label]:
        """RGB image and label.

        Raises:
            BrokenImageError: the image cannot be decoded.
        """
        return self.image(index), self.labels[index]

    @abstractmethod
    def image(self, index: int, need: Need | None = None) -> Image.Image:
        """The RGB image, upright.

        Args:
            index: the number of the image.
            need: as in `open_image`; without effect where the source keeps pixels.

        Raises:
            BrokenImageError: the image cannot be decoded.
        """

    def file(self, index: int) -> Path | bytes | None:
        """The image before decoding: its path or its file's bytes; None where the source keeps pixels.

        Raises:
            BrokenImageError: the file cannot be taken out of what holds it.
        """
        return None

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls the image: its path, or its file and row (the first is 0)."""


def classes_of(label: Label) -> tuple[int, ...]:
    """Return the classes of an image, of one label or of several; none where its label is negative."""
    if isinstance(label, tuple):
        return label
    return (label,) if label >= 0 else ()


def multi_hot(source: ImageSource) -> NDArray[np.bool_]:
    """Return which image has which class, (N, K)."""
    import numpy as np

    rows, classes = label_pairs(source.labels)
    found = np.zeros((len(source), len(source.classes)), bool)
    found[rows, classes] = True
    return found


def class_counts(source: ImageSource) -> NDArray[np.int64]:
    """Return the number of images of each class, (K,)."""
    import numpy as np

    return np.bincount(label_pairs(source.labels)[1], minlength=len(source.classes))


def label_pairs(
    labels: Sequence[Label] | NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return every label with its image: the numbers of the images (P,), ascending, and the classes (P,)."""
    import numpy as np

    if isinstance(labels, np.ndarray):
        return np.arange(len(labels)), labels
    each = [classes_of(label) for label in labels]
    rows = np.repeat(np.arange(len(each)), [len(mine) for mine in each])
    return rows, np.fromiter((one for mine in each for one in mine), np.int64, count=len(rows))


def fingerprint(source: ImageSource) -> str:
    """Return what tells whether two sources hold the same images, as far as their classes and order tell."""
    names = "\0".join(
        "\1".join(source.classes[each] for each in classes_of(label)) for label in source.labels
    )
    return hashlib.blake2b(names.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


class SubsetSource(ImageSource):
    """Some images of another source, with its classes, labels and names.

    Args:
        source: where the images come from.
        rows: their numbers in it, in the order they get here.
    """

    def __init__(self, source: ImageSource, rows: Sequence[int] | NDArray[np.int64]) -> None:
        self._source = source
        self._rows = tuple(map(int, rows))
        self.mirrorable, self.is_cut = source.mirrorable, source.is_cut
        self.groups = None if source.groups is None else tuple(source.groups[row] for row in self._rows)
        labels = (source.labels[row] for row in self._rows)
        super().__init__(source.classes, labels, multilabel=source.multilabel)

    def image(self, index: int, need: Need | None = None) -> Image.Image:
        """The RGB image."""
        return self._source.image(self._rows[index], need)

    def file(self, index: int) -> Path | bytes | None:
        """The image's file in the source."""
        return self._source.file(self._rows[index])

    def name(self, index: int) -> str:
        """The image's name in the source."""
        return self._source.name(self._rows[index])


class OneHotSource(SubsetSource):
    """Images of one label each, for a model of several labels per image."""

    def __init__(self, source: ImageSource) -> None:
        super().__init__(source, range(len(source)))
        self.passed_over = source.passed_over
        self.multilabel = True
        self.labels = tuple(map(classes_of, source.labels))


def match_classes(
    own: Sequence[str], wanted: Sequence[str] | None, *, origin: str
) -> tuple[tuple[str, ...], list[int]]:
    """Return the class names to use, and for each of a source's own classes its index among them.

    Names of WordNet's, as ``n01443537 goldfish``, are equal if their numbers are.

    Args:
        own: class names of the source.
        wanted: class names of a trained model; the source's own where None.
        origin: what an error calls the source.

    Raises:
        UserError: a class that the model does not know; or, without ``wanted``, fewer than two classes.
    """
    if wanted is None:
        if len(own) < 2:
            raise UserError(
                f"{origin} has a single class ({some_names(own)}); a classifier needs two or more"
            )
        return tuple(own), list(range(len(own)))
    numbers = Counter(map(_without_gloss, wanted))
    places = {name: place for place, name in enumerate(map(_without_gloss, wanted)) if numbers[name] == 1}
    places |= {name: place for place, name in enumerate(wanted)}
    index = [places.get(name, places.get(_without_gloss(name), -1)) for name in own]
    if unknown := [name for name, place in zip(own, index, strict=True) if place < 0]:
        raise UserError(
            f"{origin}: the model does not know the class {some_names(unknown)}; "
            f"it knows {some_names(wanted)}"
        )
    return tuple(wanted), index


def _without_gloss(name: str) -> str:
    """Return the number in WordNet that a class name begins with, as ImageNet's folders do; else the name."""
    found = re.match(r"n[0-9]{8}(?![0-9])", name)
    return name if found is None else found[0]
