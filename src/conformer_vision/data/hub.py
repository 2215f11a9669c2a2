"""Sets of Hugging Face's ``datasets``: of the hub, of a local folder it can read, or saved to disk."""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from conformer_vision.errors import UserError, reason_of, some_names

from .base import ImageSource, match_classes
from .folder import VAL_NAMES
from .images import BrokenImageError, natural_key, open_image
from .parquet import quiet_datasets
from .parquet_file import class_numbers, label_values
from .splits import Split, Splitting
from .table import IMAGE_COLUMNS, LABEL_COLUMNS

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray


class HubSource(ImageSource):
    """Rows of sets that ``datasets`` has opened; they stay in its memory-mapped Arrow files.

    Args:
        images: sets of one column, ``Image(decode=False)``.
        origins: what messages call each of them.
        rows: the row of each image, counted over all sets.
        classes: as in `ImageSource`.
        labels: as in `ImageSource`.
    """

    def __init__(
        self,
        images: Sequence[datasets.Dataset],
        origins: Sequence[str],
        *,
        rows: NDArray[np.int64],
        classes: Sequence[str],
        labels: NDArray[np.int64],
    ) -> None:
        super().__init__(classes, labels)
        self._images = tuple(images)
        self._origins = tuple(origins)
        self._starts = list(accumulate((len(part) for part in images), initial=0))
        self._rows = rows

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        file, name = self.file(index), self.name(index)
        return open_image(file, name=name if isinstance(file, bytes) else f"{file} ({name})")

    def file(self, index: int) -> Path | bytes:
        """The image's bytes in the row, or else the path there."""
        part, row = self._place(index)
        (stored,) = self._images[part][row].values()
        data, path = (None, None) if stored is None else (stored.get("bytes"), stored.get("path"))
        if data is not None:
            return bytes(data)
        if path is None:
            raise BrokenImageError(f"{self.name(index)}: cannot be read as an image (the row has none)")
        return Path(path)

    def name(self, index: int) -> str:
        """``ORIGIN row N``, N counted in its split from 0."""
        part, row = self._place(index)
        return f"{self._origins[part]} row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self._rows[index])
        part = bisect_right(self._starts, row) - 1
        return part, row - self._starts[part]


def open_saved(path: Path, *, split: Split, splitting: Splitting, classes: Sequence[str] | None) -> HubSource:
    """Reads a folder that ``datasets``' ``save_to_disk`` wrote: one set, or several splits of it.

    Splits and columns are found as by `open_hub`. Arguments and errors are those of `open_images`.
    """
    import datasets

    try:
        with quiet_datasets():
            found = datasets.load_from_disk(str(path))
    except Exception as error:  # its files are JSON and Arrow that anyone may have written
        raise UserError(f"{path} cannot be read as a set saved by datasets ({reason_of(error)})") from error
    return _open(found, str(path), split=split, splitting=splitting, classes=classes)


def open_hub(
    name: str,
    *,
    split: Split,
    splitting: Splitting,
    classes: Sequence[str] | None,
    data_dir: Path | None,
) -> HubSource:
    """Reads a set of the Hugging Face hub, or a local folder that ``datasets`` can read.

    Training images are those of the split ``train``, validation images those of the first of
    ``val``, ``validation``, ``valid``, ``test`` that is there. A set without one of the latter is split by
    seed. Images are the column of type ``Image``, labels a ``ClassLabel`` or a column of strings or
    integers; of several, the one named as `table.IMAGE_COLUMNS` or `table.LABEL_COLUMNS`. Code that
    a set brings along is never run.

    Args:
        name: ``NAME`` or ``NAME:CONFIG``; NAME as the hub has it, or a path with ``./`` or ``/`` in front.
        split: as in `open_images`.
        splitting: how to cut a set without validation images.
        classes: as in `open_images`.
        data_dir: cache to keep the set in; that of ``datasets`` where None.

    Raises:
        UserError: as `open_images`; also no such set, no network, no access.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    origin = f"hfds/{name}"
    path, _, config = name.partition(":")
    if not path:
        raise UserError(f"{origin} names no set; give hfds/NAME or hfds/NAME:CONFIG")
    options: dict[str, Any] = {}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:  # datasets < 4
        options["trust_remote_code"] = False
    is_local = Path(path).exists()
    try:
        with quiet_datasets(bars=not is_local):  # a download shows its progress
            found = datasets.load_dataset(
                path, config or None, cache_dir=None if data_dir is None else str(data_dir), **options
            )
    except DatasetNotFoundError as error:
        raise UserError(
            f"{origin}: there is no such set, or it needs an account with access (hf auth login), "
            f"or the hub is not reached ({reason_of(error)})"
        ) from error
    except ConnectionError as error:
        raise UserError(
            f"{origin} cannot be loaded, as the hub is not reached ({reason_of(error)}); connect to the "
            "network, or give a folder saved with save_to_disk"
        ) from error
    except Exception as error:  # the readers of all formats, the network and the hub raise what they like
        raise UserError(f"{origin} cannot be loaded ({reason_of(error)})") from error
    return _open(found, origin, split=split, splitting=splitting, classes=classes)


@dataclass(frozen=True)
class _Part:
    """One split of a set, with the columns it is read by."""

    origin: str
    data: datasets.Dataset
    image: str
    label: str
    class_names: tuple[str, ...] | None

    def where(self, row: int) -> str:
        return f"{self.origin} row {row}"

    def labels(self) -> NDArray[Any]:
        column = self.data.select_columns([self.label]).with_format("arrow")[:].column(0)
        return label_values(column, name=self.label, where=self.where)

    def images(self) -> datasets.Dataset:
        from datasets import Image as ImageFeature

        alone = self.data.select_columns([self.image]).with_format(None)
        return alone.cast_column(self.image, ImageFeature(decode=False))


def _open(
    found: Any, origin: str, *, split: Split, splitting: Splitting, classes: Sequence[str] | None
) -> HubSource:
    import numpy as np

    chosen = _choose_splits(found, origin)
    parts = [_part(data, name) for name, data in chosen.values()]
    for part in parts[1:]:
        if part.class_names != parts[0].class_names:
            raise UserError(
                f"{parts[0].origin} and {part.origin} declare different classes; they must be the same"
            )
    with quiet_datasets():
        values = [part.labels() for part in parts]
    if not sum(map(len, values)):
        raise UserError(f"{origin} holds no rows")
    declared = parts[0].class_names
    own = list(declared or sorted({str(value) for value in np.unique(values[0])}, key=natural_key))
    numbers = [
        class_numbers(value, own, declared=declared is not None, where=part.where)
        for value, part in zip(values, parts, strict=True)
    ]
    names, index = match_classes(own, classes, origin=origin)
    labels = np.concatenate(numbers)
    starts = list(accumulate(map(len, numbers), initial=0))
    row_parts = {
        kind: np.arange(start, start + len(number))
        for kind, start, number in zip(chosen, starts, numbers, strict=False)
    }
    whole = {} if list(row_parts) == ["all"] else row_parts
    rows = splitting.rows(labels, split, origin=origin, parts=whole)
    with quiet_datasets():
        images = [part.images() for part in parts]
    return HubSource(
        images,
        [part.origin for part in parts],
        rows=rows,
        classes=names,
        labels=np.asarray(index)[labels[rows]],
    )


def _choose_splits(found: Any, origin: str) -> dict[Split, tuple[str, datasets.Dataset]]:
    """The training and the validation split with their names, or the only one as ``all``."""
    from datasets import Dataset

    if isinstance(found, Dataset):
        return {"all": (origin, found)}
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{origin} holds no rows")
    chosen: dict[Split, tuple[str, Dataset]] = {}
    val = next((name for name in VAL_NAMES if name in found), None)
    if "train" in found:
        chosen["train"] = f"{origin} train", found["train"]
    if val is not None:
        chosen["val"] = f"{origin} {val}", found[val]
    if chosen:
        return chosen
    if len(found) > 1:
        raise UserError(
            f"{origin} has the splits {some_names(map(str, found))}, but neither train nor one of "
            f"{', '.join(VAL_NAMES)}"
        )
    ((name, data),) = found.items()
    return {"all": (f"{origin} {name}", data)}


def _part(data: datasets.Dataset, origin: str) -> _Part:
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    features = data.features
    images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    declared = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = [
        name
        for name, feature in features.items()
        if isinstance(feature, Value) and ("string" in feature.dtype or "int" in feature.dtype)
    ]
    image = _pick(images, IMAGE_COLUMNS) or (images[0] if len(images) == 1 else None)
    label = _pick([*declared, *plain], LABEL_COLUMNS) or (declared[0] if len(declared) == 1 else None)
    for column, wanted, holds in (
        (image, IMAGE_COLUMNS, "images (of type Image)"),
        (label, LABEL_COLUMNS, "labels (of type ClassLabel, string or integer)"),
    ):
        if column is None:
            raise UserError(
                f"{origin} has no column of {holds}, or several and none named {' or '.join(wanted)}; "
                f"it has {some_names(features, most=20)}"
            )
    assert image is not None and label is not None  # for mypy: checked above
    names = features[label].names if label in declared else None
    return _Part(origin, data, image, label, tuple(names) if names else None)


def _pick(there: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in there), None)
