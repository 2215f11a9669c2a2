"""Sets of the Hugging Face hub, and local folders that ``datasets`` can load, as streams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, reason_of, some_names

from .base import Cut, Labels, Record, ShardedStream, broken_record, require
from .classes import match_labels

if TYPE_CHECKING:
    import datasets

    from ..splits import Split, Splitting

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("validation", "val", "valid", "test")  # the first one that is there is taken
_READ_AHEAD = 16  # rows taken from `datasets` at a time


class HubStream(ShardedStream):
    """Rows of an iterable dataset of ``datasets``.

    Args:
        parts: the datasets and what a message calls each, one after the other.
        classes: class names.
        labels: tells the index of a stored label.
        columns: the columns of images and labels.
        cut: as in `ShardedStream`, over the shards of all parts.
        length: images, where it is known and nothing is cut.
    """

    def __init__(
        self,
        parts: Sequence[tuple[str, datasets.IterableDataset]],
        *,
        classes: Sequence[str],
        labels: Labels,
        columns: tuple[str, str],
        cut: Cut,
        length: int | None,
    ) -> None:
        super().__init__(classes, cut=cut)
        self.length = length
        self._parts = tuple(parts)
        self._labels = labels
        self._columns = columns

    def _records(self, shard: int) -> Iterator[Record]:
        number = 0
        while shard >= self._parts[number][1].num_shards:
            shard -= self._parts[number][1].num_shards
            number += 1
        origin, part = self._parts[number]
        shards = part.num_shards
        where = origin if shards == 1 else f"{origin} shard {shard}"
        row = 0
        try:
            # `iter` takes the shard as it is; `__iter__` would share it among the workers of a DataLoader.
            for batch in part.shard(num_shards=shards, index=shard).iter(_READ_AHEAD):
                for image, label in zip(*(batch[column] for column in self._columns), strict=True):
                    yield self._record(f"{where} row {row}", image, label)
                    row += 1
        except Exception as error:  # a file that is damaged or gone: pyarrow's, fsspec's, the server's error
            yield broken_record(
                f"{where} row {row}",
                f"the rows from here on cannot be read ({reason_of(error)})",
                damage=True,
            )

    def _record(self, name: str, image: Any, label: Any) -> Record:
        try:
            number = self._labels.find(label)
        except LookupError as error:
            problem = "it has no label (null)" if label is None else reason_of(error)
            return broken_record(name, problem)
        encoded, path = image, None
        if isinstance(image, Mapping):
            encoded, path = image.get("bytes"), image.get("path")
        if isinstance(encoded, bytes):
            return Record(name, number, encoded)
        if isinstance(path, str) and encoded is None:
            return Record(name, number, partial(_read_path, path))
        return broken_record(name, "it holds no image (null)")


def open_hub_stream(
    name: str,
    *,
    split: Split,
    splitting: Splitting,
    classes: Sequence[str] | None,
    data_dir: Path | None = None,
) -> HubStream:
    """Opens a set with a column of images (``image`` or ``img``) and one of labels (``label``, ...).

    ``train`` is the training part, and ``validation``, ``val``, ``valid`` or else ``test`` the
    validation part. A set with a single split is cut. Class names are those of a ``ClassLabel``.

    Args:
        name: ``NAME`` or ``NAME:CONFIG``, on the hub or a local path.
        split: as in `open_stream`.
        splitting: as in `open_stream`.
        classes: as in `open_stream`.
        data_dir: the cache of ``datasets``.

    Raises:
        UserError: not found, no such column, labels without class names.
    """
    spec = f"hfids/{name}"
    found = _load(name, data_dir)
    by_split = _by_split(found)
    if by_split:
        used = [by_split["train"], by_split["val"]] if split == "all" else [by_split[split]]
    elif len(found) == 1:
        used = list(found)
    else:
        raise UserError(f"{spec} has the splits {some_names(found)}, of which none is called train")
    first = by_split.get("train", used[0])
    features = _features(found[first], origin=spec)
    columns = (
        _column(features, _IMAGE_COLUMNS, origin=spec, holds="images"),
        _column(features, _LABEL_COLUMNS, origin=spec, holds="labels"),
    )
    own = _class_names(features[columns[1]])
    if own is None and classes is None:
        raise UserError(
            f"{spec}: the labels in column {columns[1]!r} have no names; store them as ClassLabel, "
            "or give classes"
        )
    names, labels = match_labels(own, classes, find=tuple, origin=spec)
    parts = [(f"{spec} {key}", _encoded(found[key], columns, features)) for key in used]
    cut = Cut("all" if by_split else split, splitting, shards=sum(part.num_shards for _, part in parts))
    length = _length(found, used) if cut.split == "all" else None
    return HubStream(parts, classes=names, labels=labels, columns=columns, cut=cut, length=length)


def _load(name: str, data_dir: Path | None) -> dict[str, datasets.IterableDataset]:
    import datasets

    path, colon, config = name.rpartition(":")
    # A colon in a path, as in "C:/images", is not that of a configuration.
    if not colon or re.search(r"[/\\]", config) or len(path) < 2:
        path, config = name, ""
    try:
        found = datasets.load_dataset(
            str(Path(path).expanduser()) if path.startswith("~") else path,
            config or None,
            streaming=True,
            cache_dir=None if data_dir is None else str(data_dir),
        )
    except Exception as error:  # the hub's, fsspec's, the builder's
        raise UserError(f"hfids/{name} cannot be opened ({reason_of(error)})") from error
    return dict(found) if isinstance(found, dict) else {str(found.split or "all"): found}


def _by_split(found: Mapping[str, object]) -> dict[Split, str]:
    train = next((name for name in _TRAIN_NAMES if name in found), None)
    val = next((name for name in _VAL_NAMES if name in found), None)
    return {"train": train, "val": val} if train is not None and val is not None else {}


def _features(part: datasets.IterableDataset, *, origin: str) -> Mapping[str, Any]:
    features = part.features
    if features is None:  # told by the first rows
        try:
            features = part._resolve_features().features
        except Exception as error:
            raise UserError(f"{origin}: its first rows cannot be read ({reason_of(error)})") from error
    return features or {}


def _column(features: Mapping[str, Any], wanted: Sequence[str], *, origin: str, holds: str) -> str:
    for name in wanted:
        if name in features:
            return name
    raise UserError(
        f"{origin} has no column of {holds}; it needs one named {' or '.join(wanted)}, "
        f"it has {some_names(features, most=20)}"
    )


def _class_names(feature: Any) -> Sequence[str] | None:
    import datasets

    return feature.names if isinstance(feature, datasets.ClassLabel) and feature.names else None


def _encoded(
    part: datasets.IterableDataset, columns: tuple[str, str], features: Mapping[str, Any]
) -> datasets.IterableDataset:
    """The two columns, the images as they are stored."""
    import datasets

    part = part.select_columns(list(columns))
    if isinstance(features[columns[0]], datasets.Image):
        part = part.cast_column(columns[0], datasets.Image(decode=False))
    return part


def _length(found: Mapping[str, datasets.IterableDataset], used: Sequence[str]) -> int | None:
    total = 0
    for name in used:
        infos = found[name].info.splits or {}
        count = getattr(infos.get(name), "num_examples", None)
        if not count:
            return None
        total += count
    return total


def _read_path(path: str) -> bytes:
    """The bytes of an image that is stored beside its row, where fsspec finds it."""
    with require("fsspec").open(path, "rb") as file:
        data: bytes = file.read()
    return data
