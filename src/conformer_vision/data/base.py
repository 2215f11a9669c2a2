"""What every source of labelled pictures offers, and the rules of splits and class names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from conformer_vision.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

Split = Literal["train", "val", "all"]


class ImageSource(ABC):
    """Labelled pictures by number; a map-style dataset for torch, picklable for its workers.

    Attributes:
        classes: the class names; a label is an index into them.
        labels: one label per picture.
        mirrorable: whether a picture mirrored left to right is still of its class.
    """

    mirrorable = True

    def __init__(self, classes: Sequence[str], labels: Iterable[int]) -> None:
        self.classes = tuple(classes)
        self.labels: Sequence[int] = tuple(map(int, labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """RGB picture and label.

        Raises:
            BrokenImageError: the picture cannot be decoded.
        """
        return self.image(index), self.labels[index]

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The RGB picture."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a message calls the picture: its path, or its file and row (the first is 0)."""


def stratified_split(
    labels: Sequence[int] | NDArray[np.int64], *, val_fraction: float, seed: int
) -> dict[Split, NDArray[np.int64]]:
    """Indices per split, ascending; the same seed gives the same split everywhere.

    Of every class about ``val_fraction`` is held out: at least one picture where it has two or
    more, and never all of them.
    """
    import numpy as np

    array = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(array), dtype=bool)
    for label in np.unique(array):
        members = rng.permutation(np.flatnonzero(array == label))
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        held_out[members[:count]] = True
    return {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out), "all": np.arange(len(array))}


def match_classes(
    own: Sequence[str], wanted: Sequence[str] | None, *, origin: str
) -> tuple[tuple[str, ...], list[int]]:
    """The class names to use, and for each of a source's own classes its index among them.

    Args:
        own: class names of the source.
        wanted: class names of a trained model; the source's own where None.
        origin: what an error calls the source.

    Raises:
        UserError: a class that the model does not know; or, without ``wanted``, fewer than two classes.
    """
    if wanted is None:
        if len(own) < 2:
            raise UserError(f"{origin} has a single class ({own[0]}); a classifier needs two or more")
        return tuple(own), list(range(len(own)))
    unknown = [name for name in own if name not in set(wanted)]
    if unknown:
        raise UserError(
            f"{origin}: the model does not know the class {some_names(unknown)}; "
            f"it knows {some_names(wanted)}"
        )
    return tuple(wanted), [list(wanted).index(name) for name in own]


def some_names(names: Iterable[str], *, most: int = 5) -> str:
    """The names with commas, the first few where they are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
