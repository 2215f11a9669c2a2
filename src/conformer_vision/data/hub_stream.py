"""Streams of ``datasets``: sets of the Hugging Face hub, local folders it can load, and tar shards."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from conformer_vision.errors import UserError, reason_of, some_names

from .arrow import choose_splits, find_columns, quiet_datasets
from .base import match_classes
from .images import BrokenImageError, open_image
from .splits import Request, Split
from .stream import Cut, ShardedStream, StreamedImage

if TYPE_CHECKING:
    import datasets

T = TypeVar("T")
_READ_AHEAD = 16  # rows taken from `datasets` at a time, where rows are stored in tables


class Row(NamedTuple):
    """A row before its image is decoded; see `stream.Record`.

    Attributes:
        encoded: the file's bytes, its path or address, or what is wrong.
    """

    name: str
    label: int
    encoded: bytes | str | BrokenImageError
    damage: bool = False

    def decoded(self) -> StreamedImage:
        """The image; nothing is raised."""
        encoded = self.encoded
        if isinstance(encoded, BrokenImageError):
            return StreamedImage(self.name, encoded, self.label)
        try:
            data = encoded if isinstance(encoded, bytes) else _read(encoded, self.name)
            return StreamedImage(self.name, open_image(data, name=self.name), self.label)
        except BrokenImageError as error:
            return StreamedImage(self.name, error, self.label)


@dataclass(frozen=True)
class ShardSet:
    """Shards of one split.

    Attributes:
        rows: a column of images, ``Image(decode=False)`` or as they are stored, and one of labels.
        origin: what a message calls them.
        columns: the two columns.
        paths: the shard's tar files, where they are; images are then called by their own path.
        names: what a message calls each tar file.
        lengths: images of each shard, where they are known.
    """

    rows: datasets.IterableDataset
    origin: str
    columns: tuple[str, str]
    paths: Sequence[str] = ()
    names: Sequence[str] = ()
    lengths: Sequence[int] | None = None

    def read(self, shard: int) -> Iterator[tuple[Any, Any]]:
        """Images and labels of a shard, as they are stored."""
        rows = self.rows.shard(num_shards=self.rows.num_shards, index=shard)
        # `iter` takes the shard as it is; `__iter__` would share it among the workers of a DataLoader.
        for batch in rows.iter(1 if self.paths else _READ_AHEAD):
            yield from zip(*(batch[column] for column in self.columns), strict=True)

    def shortage(self, shard: int, rows: int) -> str | None:
        """What is wrong with a shard that ends after a number of rows; tarfile takes damage for the end."""
        if self.lengths is not None and rows != self.lengths[shard]:
            return f"holds {rows} images in place of {self.lengths[shard]}"
        if self.paths and self.paths[shard].lower().endswith(".tar") and os.path.isfile(self.paths[shard]):
            with open(self.paths[shard], "rb") as file:
                if file.seek(0, os.SEEK_END) < 512 or file.seek(-512, os.SEEK_END) % 512:
                    return "is cut short"
                if file.read().strip(b"\0"):  # a whole tar ends in zeros
                    return "is cut short"
        return None

    def where(self, shard: int) -> str:
        """What a message calls a shard."""
        if self.names:
            return self.names[shard]
        return self.origin if self.rows.num_shards == 1 else f"{self.origin} shard {shard}"


class HubStream(ShardedStream[Row]):
    """Rows of iterable datasets of ``datasets``.

    Args:
        sets: the datasets, one after the other.
        classes: class names.
        labels: tells the index of a stored label.
        cut: as in `ShardedStream`, over the shards of all sets.
        length: images of the split, where it is known without the shards' lengths.
        mirrorable: as in `ImageStream`.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        *,
        classes: Sequence[str],
        labels: Labels,
        cut: Cut,
        length: int | None = None,
        mirrorable: bool = True,
    ) -> None:
        lengths = [count for one in sets for count in one.lengths or ()]
        super().__init__(classes, cut=cut, lengths=lengths if all(one.lengths for one in sets) else None)
        if length is not None:
            self.length = length
        self.mirrorable = mirrorable
        self._sets = tuple(sets)
        self._labels = labels

    def _records(self, shard: int) -> Iterator[Row]:
        number = 0
        while shard >= self._sets[number].rows.num_shards:
            shard -= self._sets[number].rows.num_shards
            number += 1
        one = self._sets[number]
        where = one.where(shard)
        row = 0
        try:
            for image, label in one.read(shard):
                path = image.get("path") if isinstance(image, Mapping) else None
                name = f"{where} row {row}" if not (one.names and path) else f"{where}/{path}"
                yield self._row(name, image, label)
                row += 1
        except Exception as error:  # a file that is damaged or gone: pyarrow's, fsspec's, the server's error
            yield _broken(where, f"cannot be read from row {row} on ({reason_of(error)})", damage=True)
            return
        problem = one.shortage(shard, row)
        if problem is not None:
            yield _broken(where, problem, damage=True)

    def _row(self, name: str, image: Any, label: Any) -> Row:
        try:
            number = self._labels.find(label)
        except LookupError as error:
            return _broken(name, str(error.args[0]))
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image, None)
        found: bytes | str | None = path if data is None else data
        if found is None:
            return _broken(name, "it holds no image (null)")
        return Row(name, number, found)


def _broken(name: str, problem: str, *, damage: bool = False) -> Row:
    """A row that stands for an image that is not there."""
    return Row(name, -1, BrokenImageError(f"{name}: {problem}"), damage)


class Labels:
    """The classes of a stream: from a stored label to the index that the model knows.

    Args:
        own: names of the set's classes, in the order of its numbers.
        index: for each of them its index among the classes in use.
    """

    def __init__(self, own: Sequence[str], index: Sequence[int]) -> None:
        self._index = list(index)
        self._numbers = dict(zip(own, self._index, strict=True))

    def find(self, stored: object) -> int:
        """The index of a stored label: a number or a name, or a mapping with ``label``.

        Raises:
            LookupError: there is no such class; the message says what is wrong with the label.
        """
        if isinstance(stored, Mapping):
            stored = stored.get("label")
        if stored is None:
            raise LookupError("it has no label (null)")
        if isinstance(stored, str):
            if stored.strip() not in self._numbers:
                raise LookupError(
                    f"label {stored[:100]!r} is none of the classes ({some_names(list(self._numbers))})"
                )
            return self._numbers[stored.strip()]
        if not isinstance(stored, int) or isinstance(stored, bool):
            raise LookupError(f"label {stored!r} is neither a number nor a name")
        if not 0 <= stored < len(self._index):
            raise LookupError(
                f"label {stored} is out of range, there are {len(self._index)} classes "
                f"(0 to {len(self._index) - 1})"
            )
        return self._index[stored]


def open_hub_stream(name: str, request: Request) -> HubStream:
    """Open a set of the hub, or a local folder that ``datasets`` can load, row by row.

    Splits and columns are found as by `hub.open_hub`. Class names are those of a ``ClassLabel``.

    Args:
        name: ``NAME`` or ``NAME:CONFIG``, on the hub or a local path.
        request: which images to open; its ``data_dir`` is the cache of ``datasets``.

    Raises:
        UserError: not found, no such column, labels without class names.
    """
    spec = f"hfids/{name}"
    found = _load(name, request)
    used, cut = used_splits(choose_splits(list(found), origin=spec), request, origin=spec)
    features = _features(found[used[0]], origin=spec)
    columns = find_columns(features, origin=spec)
    own = columns.class_names
    if own is None and request.classes is None:
        raise UserError(
            f"{spec}: the labels in column {columns.label!r} have no names; store them as ClassLabel, "
            "or give classes"
        )
    sets = [
        ShardSet(
            encoded(found[key], columns.image, columns.label, features),
            f"{spec} {key}",
            (columns.image, columns.label),
        )
        for key in used
    ]
    length = _length(found, used) if cut == "all" else None
    return build_stream(sets, cut, request, own=own, find=tuple, origin=spec, length=length)


def used_splits(chosen: Mapping[Split, T], request: Request, *, origin: str) -> tuple[list[T], Split]:
    """Which splits of a set to read, and how to cut what they hold.

    Args:
        chosen: as `arrow.choose_splits` gives them.
        request: which images to open.
        origin: what an error calls the set.

    Raises:
        UserError: folds; or training images are asked for and there are none.
    """
    refuse_folds(request, origin=origin)
    if "val" not in chosen:
        return [chosen["train"] if "train" in chosen else chosen["all"]], request.split
    if request.split == "train" and "train" not in chosen:
        raise UserError(f"{origin} holds validation images but none for training; add some")
    wanted: tuple[Split, ...] = ("train", "val") if request.split == "all" else (request.split,)
    return [chosen[split] for split in wanted if split in chosen], "all"


def refuse_folds(request: Request, *, origin: str) -> None:
    """Streams have no folds.

    Raises:
        UserError: folds are asked for.
    """
    if request.splitting.folds is not None:
        raise UserError(f"{origin} is a stream, which cannot be cut into folds; give val_fraction")


def build_stream(
    sets: Sequence[ShardSet],
    cut: Split,
    request: Request,
    *,
    own: Sequence[str] | None,
    find: Callable[[], Sequence[str]],
    origin: str,
    length: int | None = None,
    mirrorable: bool = True,
) -> HubStream:
    """The stream of one split, its labels matched to the classes in use.

    Args:
        sets: shards to read.
        cut: how to cut them; ``all`` for no cut.
        request: which images to open.
        own: the set's class names, where it says them.
        find: finds the set's class names where neither it nor a model says them.
        origin: what an error calls the set.
        length: as in `HubStream`.
        mirrorable: as in `HubStream`.

    Raises:
        UserError: as `match_classes`.
    """
    if own is None:
        own = find() if request.classes is None else request.classes
    if not own:
        raise UserError(f"{origin} holds no images")
    names, index = match_classes(own, request.classes, origin=origin)
    shards = sum(one.rows.num_shards for one in sets)
    return HubStream(
        sets,
        classes=names,
        labels=Labels(own, index),
        cut=Cut(cut, request, shards=shards),
        length=length,
        mirrorable=mirrorable,
    )


def encoded(
    rows: datasets.IterableDataset, image: str, label: str, features: Mapping[str, Any]
) -> datasets.IterableDataset:
    """The two columns, the images as they are stored."""
    import datasets

    rows = rows.select_columns([image, label])
    if isinstance(features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows


def _load(name: str, request: Request) -> dict[str, datasets.IterableDataset]:
    import datasets

    path, colon, config = name.rpartition(":")
    # A colon in a path, as in "C:/images", is not that of a configuration.
    if not colon or re.search(r"[/\\]", config) or len(path) < 2:
        path, config = name, ""
    try:
        with quiet_datasets():
            found = datasets.load_dataset(
                str(Path(path).expanduser()) if path.startswith("~") else path,
                config or None,
                streaming=True,
                cache_dir=None if request.data_dir is None else str(request.data_dir),
            )
    except Exception as error:  # the hub's, fsspec's, the builder's
        raise UserError(f"hfids/{name} cannot be opened ({reason_of(error)})") from error
    if isinstance(found, Mapping):
        return {str(split): rows for split, rows in found.items()}
    return {str(found.split or "all"): found}


def _features(rows: datasets.IterableDataset, *, origin: str) -> Mapping[str, Any]:
    features = rows.features
    if features is None:  # told by the first rows
        try:
            features = rows._resolve_features().features
        except Exception as error:
            raise UserError(f"{origin}: its first rows cannot be read ({reason_of(error)})") from error
    return features or {}


def _length(found: Mapping[str, datasets.IterableDataset], used: Sequence[str]) -> int | None:
    total = 0
    for name in used:
        infos = found[name].info.splits or {}
        count = getattr(infos.get(name), "num_examples", None)
        if not count:
            return None
        total += count
    return total


def _read(path: str, name: str) -> bytes:
    """The bytes of an image that is stored beside its row, where fsspec finds it.

    Raises:
        BrokenImageError: there is none.
    """
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except Exception as error:  # the file system's, the server's
        raise BrokenImageError(f"{name}: {path} cannot be read ({reason_of(error)})") from error
    return data
