"""Python objects: a ``torch.utils.data.Dataset`` of (image, label) with ``classes``."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from conformer_vision.errors import UserError, one_line, reason_of
from conformer_vision.geometry import Need

from .base import ImageSource, Label, match_classes
from .groups import Grouping, taken
from .images import BrokenImageError, as_rgb
from .item_labels import holds_several, item_label
from .labels import relabelled
from .splits import Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)


class DatasetSource(ImageSource):
    """Items of datasets, which may be read in other processes.

    Args:
        parts: what messages call each dataset, and the dataset, which gives (image, label).
        numbers: the label that the datasets give each of their items, one dataset after the other; tuples as
            in `ImageSource` where there may be several.
        rows: the items, counted over all datasets.
        classes: as in `ImageSource`.
        labels: as in `ImageSource`.
        mirrorable: as in `ImageSource`.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        numbers: Sequence[Label] | NDArray[np.int64],
        *,
        rows: NDArray[np.int64],
        classes: Sequence[str],
        labels: Iterable[Label],
        mirrorable: bool = True,
    ) -> None:
        several = holds_several(numbers[0])
        super().__init__(classes, labels, multilabel=several)
        self.mirrorable = mirrorable
        self._parts = tuple(parts.items())
        self._starts = list(accumulate((len(dataset) for dataset in parts.values()), initial=0))
        self._numbers = tuple(numbers) if several else tuple(map(int, numbers))
        self._places = [_places(dataset.classes) for dataset in parts.values()]
        self._rows = tuple(map(int, rows))

    def image(self, index: int, need: Need | None = None) -> Image.Image:
        """The RGB image; the dataset has decoded it in full.

        Raises:
            BrokenImageError: the dataset raises an error.
            UserError: the item is not an image and its label, or the label is not the one that
                ``targets`` holds.
        """
        part, row = self._place(index)
        image, stored = _item(self._parts[part][1], row, self.name(index))
        label = item_label(stored, self._places[part], self.name(index), several=self.multilabel)
        listed = self._numbers[self._rows[index]]
        if label != listed:
            raise UserError(
                f"{self.name(index)} has the label {label}, but {listed} in the dataset's list "
                "of labels (targets); make them the same"
            )
        return image

    def name(self, index: int) -> str:
        """``dataset/CLASS row N`` or the like, N counted in its dataset."""
        part, row = self._place(index)
        return f"{self._parts[part][0]} row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self._starts, self._rows[index]) - 1
        return part, self._rows[index] - self._starts[part]


def describe(dataset: object) -> str:
    """What messages and config.yaml call a dataset: ``dataset/`` and the name of its class."""
    return f"dataset/{type(dataset).__name__}"


def open_dataset(dataset: Any, request: Request) -> DatasetSource:
    """Open a dataset whose items are (image, label).

    An image is of PIL, an 8-bit array (H, W) or (H, W, C), or a tensor (C, H, W) of 8 bits or of
    floats from 0 to 1; C is 1 or 3. It is taken before normalisation and is not turned by its EXIF
    orientation. A label is an index into ``dataset.classes``, or a class name. With several labels per image
    it is a list or tuple of them, or a tensor or array of 0 and 1 for each class. Labels are taken from
    ``dataset.targets`` (or ``labels``) where it is there; else every item is read once.

    Args:
        dataset: any object with ``classes``, ``len`` and items by number.
        request: which images to open; the dataset is cut as `Splitting` says, by the files' paths where
            ``dataset.samples`` lists them, else by the items' numbers.

    Raises:
        UserError: no ``classes``, no length, or items of another form.
    """
    origin = describe(dataset)
    own = _class_names(dataset, origin)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(f"{origin} has no length or no items by number; give a map-style dataset")
    if not len(dataset):
        raise UserError(f"{origin} holds no images")
    numbers = _labels(dataset, own, origin)
    names, index = match_classes(own, request.classes, origin=origin)
    files = _listed(dataset, _files)
    group = request.splitting.group
    listed = None if group is None else _listed(dataset, partial(_attribute, group))
    grouping = Grouping(
        origin,
        lambda row: f"{origin} row {row}",
        [] if listed is None or group is None else [group],
        lambda name: listed,
        None if files is None else lambda row: files[row].replace("\\", "/"),
    )
    if group is not None and listed is None and files is None:
        raise UserError(
            f"group {group!r}: {origin} has neither a list of that name, one value per item, nor paths "
            f"(samples); set dataset.{group if group.isidentifier() else 'patient'} = [...]"
        )
    groups = grouping.groups(group, range(len(numbers)), count=len(numbers))
    rows = request.splitting.rows(
        numbers,
        request.split,
        origin=origin,
        classes=own,
        names=str if files is None else files.__getitem__,
        groups=groups,
    )
    labels = relabelled(numbers, rows, index)
    source = DatasetSource({origin: dataset}, numbers, rows=rows, classes=names, labels=labels)
    source.is_cut, source.groups = True, taken(groups, rows.tolist())
    return source


def _class_names(dataset: Any, origin: str) -> list[str]:
    classes = getattr(dataset, "classes", None)
    if classes is None:
        raise UserError(
            f"{origin} has no attribute classes; set it to the list of class names, as in "
            "dataset.classes = [...]"
        )
    # A class of torchvision's ImageNet has several names.
    names = [", ".join(name) if isinstance(name, tuple) else name for name in classes]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise UserError(f"{origin}: classes must be a list of different names")
    return names


def _labels(dataset: Any, classes: Sequence[str], origin: str) -> list[Label]:
    """Return the class of every item, or its classes."""
    stored = _listed(dataset, _targets)
    if stored is None or len(stored) != len(dataset):
        _logger.warning(
            "%s has no list of its labels (targets); all %d items are read for them", origin, len(dataset)
        )
        stored = [_item(dataset, row, f"{origin} row {row}")[1] for row in range(len(dataset))]
    several = holds_several(stored[0])
    places = _places(classes)
    return [
        item_label(each, places, f"{origin} row {row}", several=several) for row, each in enumerate(stored)
    ]


def _places(classes: Sequence[Any]) -> dict[Any, int]:
    return {name: place for place, name in enumerate(classes)}


def _listed(dataset: Any, read: Callable[[Any], list[_T] | None]) -> list[_T] | None:
    """Read what a dataset lists of its items, also through ``torch.utils.data.Subset``."""
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is None or indices is None:
        return read(dataset)
    found = _listed(inner, read)
    return None if found is None else [found[index] for index in indices]


def _targets(dataset: Any) -> list[Any] | None:
    """Return the labels as torchvision's datasets list them."""
    stored = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if stored is None or not hasattr(stored, "__len__"):
        return None
    change = getattr(dataset, "target_transform", None)
    return [label if change is None else change(label) for label in stored]


def _attribute(name: str, dataset: Any) -> list[str | None] | None:
    """Return what a dataset lists under a name, one value per item, as text."""
    stored: Any = getattr(dataset, name, None) if name.isidentifier() else None
    if isinstance(stored, str | bytes) or not hasattr(stored, "__len__") or len(stored) != len(dataset):
        return None
    return [None if value is None else str(value) for value in stored]


def _files(dataset: Any) -> list[str] | None:
    """Return the files of the items as torchvision's folders list them."""
    listed = getattr(dataset, "samples", getattr(dataset, "imgs", None))
    if not isinstance(listed, (list, tuple)) or len(listed) != len(dataset):
        return None
    paths = [item[0] for item in listed if isinstance(item, tuple) and isinstance(item[0], str)]
    if len(paths) < len(listed):
        return None
    root = str(getattr(dataset, "root", ""))
    return [os.path.relpath(path, root).replace(os.sep, "/") if root else path for path in paths]


def _item(dataset: Any, row: int, name: str) -> tuple[Image.Image, Any]:
    try:
        item = dataset[row]
    except Exception as error:  # whatever a decoder or the dataset's own code raises
        raise BrokenImageError(
            f"{name}: cannot be read ({type(error).__name__}: {one_line(reason_of(error))})"
        ) from error
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise UserError(f"{name} is a {type(item).__name__}, not a pair of image and label")
    image, label = item
    return as_rgb(image, name=name), label
