"""Folders in litdata's format: chunks of samples, any of which can be read by its number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError

from ..base import some_names
from .base import Cut, Labels, Record, ShardedStream, StreamedImage, broken_record, one_line, require
from .classes import CLASSES_FILE, match_labels, names_of, read_info

if TYPE_CHECKING:
    from ..splits import Split, Splitting

_INDEX = "index.json"
_TRAIN_FOLDERS = ("train", "training")
_VAL_FOLDERS = ("val", "validation", "valid", "test")  # the first one that is there is taken
_IMAGE_KEYS = ("image", "img")
_LABEL_KEYS = ("label", "labels", "class", "cls")
_SERIALIZERS = frozenset(
    {"bool", "bytes", "float", "image", "int", "jpeg", "json", "pil", "str", "text"}
    | {"no_header_numpy", "no_header_tensor", "numpy", "tensor"}
)
"""Serializers of litdata that only read data; others unpickle it, or decode what is not an image."""


class _Stored:
    """For reading, in place of a serializer of litdata's: leaves an image's bytes as they are stored."""

    def deserialize(self, data: Any) -> bytes:
        return bytes(data)

    def can_serialize(self, data: Any) -> bool:
        return False

    def setup(self, metadata: Any) -> None:
        pass


class _StoredPixels(_Stored):
    """The same for pixels, which litdata's own serializer turns into an image later."""

    def deserialize(self, data: Any) -> Any:
        return partial(_encode_pixels, bytes(data))


@dataclass(frozen=True)
class LitdataFolder:
    """A folder whose index has been checked.

    Attributes:
        path: the folder.
        chunks: names of the chunks' files.
        lengths: images of each chunk.
        sizes: bytes of each chunk's file.
        image: key of the image in a sample.
        label: key of the label.
    """

    path: Path
    chunks: tuple[str, ...]
    lengths: tuple[int, ...]
    sizes: tuple[int, ...]
    image: str
    label: str

    @classmethod
    def check(cls, path: Path) -> LitdataFolder:
        """Reads the index.

        Raises:
            UserError: no index, one that is damaged, that names files elsewhere, or whose samples
                are read by running code.
        """
        index = path / _INDEX
        try:
            with open(index, encoding="utf-8") as file:
                content = json.load(file)
            config, chunks = content["config"], content["chunks"]
            formats = [str(name).partition(":")[0] for name in config["data_format"]]
            keys = _keys(config["data_spec"])
            files = tuple(str(chunk["filename"]) for chunk in chunks)
            lengths = tuple(int(chunk["chunk_size"]) for chunk in chunks)
            sizes = tuple(int(chunk["chunk_bytes"]) for chunk in chunks)
        except OSError as error:
            raise UserError(f"{index} cannot be read ({one_line(error)}); give a litdata folder") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{index} is not an index of litdata ({one_line(error)})") from error
        refused = [name for name in formats if name not in _SERIALIZERS]
        if refused or len(keys) != len(formats):
            raise UserError(
                f"{index}: its samples hold {some_names(refused or ['nested values'])}, which can run code "
                "or is no image; write them again with image as bytes and label as int or str"
            )
        if config.get("encryption") or config.get("item_loader", "PyTreeLoader") != "PyTreeLoader":
            raise UserError(f"{index}: encrypted samples, tokens and parquet are not read")
        if config.get("compression"):  # a whole block would be unpacked for every image drawn from it
            raise UserError(f"{index}: compressed chunks are not read; write them again without compression")
        odd = next((name for name in files if os.path.basename(name) != name or name in ("", "..")), None)
        if odd is not None or min(lengths, default=0) < 0:
            raise UserError(f"{index}: chunk {odd!r} is not a file of the folder")
        image, label = _key(keys, _IMAGE_KEYS, index), _key(keys, _LABEL_KEYS, index)
        return cls(path, files, lengths, sizes, image, label)

    def damage(self, chunk: int) -> str | None:
        """Why a chunk cannot be read, as far as its size tells; litdata would wait for it for minutes."""
        try:
            size = os.stat(self.path / self.chunks[chunk]).st_size
        except OSError as error:
            return f"the chunk cannot be read ({one_line(error)})"
        if size < self.sizes[chunk]:
            return f"the chunk is truncated, it has {size} of {self.sizes[chunk]} bytes"
        return None

    def open(self) -> Callable[[int], Mapping[str, Any]]:
        """A function that reads a sample by its number in the folder; not to be shared by processes."""
        litdata = require("litdata")
        loader = require("litdata.streaming.item_loader").PyTreeLoader()
        # Chunks lie in the folder for good, so they may be mapped; else one is read as a whole for a sample.
        loader.set_mmap_allowed_chunks(set(range(len(self.chunks))))
        stored = _Stored()
        serializers = {"jpeg": stored, "image": stored, "pil": _StoredPixels()}
        dataset = litdata.StreamingDataset(
            str(self.path.resolve()),
            item_loader=loader,
            serializers=serializers,
            batch_decode=0,  # as samples are drawn, those around one are not wanted
        )

        def read(number: int) -> Mapping[str, Any]:
            try:
                sample: Mapping[str, Any] = dataset[number]
            except Exception:
                # litdata takes a chunk that it failed to open for open, and would go on with the one before.
                loader.close(0)
                raise
            return sample

        return read


class LitdataStream(ShardedStream):
    """Samples of litdata folders; a chunk is a shard.

    Shuffled are the chunks, and the images of each, all of them: an image is read when its turn
    comes, and what is left out at the beginning is not.

    Args:
        folders: one after the other.
        classes: class names.
        labels: tells the index of a stored label.
        cut: as in `ShardedStream`, over the chunks of all folders.
        mirrorable: as in `ImageStream`.
    """

    def __init__(
        self,
        folders: Sequence[LitdataFolder],
        *,
        classes: Sequence[str],
        labels: Labels,
        cut: Cut,
        mirrorable: bool,
    ) -> None:
        lengths = [length for folder in folders for length in folder.lengths]
        super().__init__(classes, cut=cut, lengths=lengths)
        self.mirrorable = mirrorable
        self._folders = tuple(folders)
        self._labels = labels
        # (folder, chunk in it, number of the chunk's first sample) for every shard
        self._chunks = [
            (folder, chunk, sum(folder.lengths[:chunk]))
            for folder in folders
            for chunk in range(len(folder.chunks))
        ]

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """See `ImageStream.read`."""
        shards, dealt = self._share(seed, part, parts, start)
        records = chain.from_iterable(self._ordered(shards, dealt, seed=seed, start=start))
        return (record.decoded() for record in records)

    def _ordered(
        self, shards: Sequence[int], dealt: slice, *, seed: int | None, start: int
    ) -> Iterator[Iterator[Record]]:
        import numpy as np

        # Opened here, not in `__init__`: a process must not use what another one has opened.
        opened: dict[Path, Callable[[int], Mapping[str, Any]]] = {}
        for shard in shards:
            places = self._places(shard)[dealt]
            if seed is not None:
                # By the seed and the shard alone: parts that share it deal out what is stored, then shuffle.
                places = np.random.default_rng((seed, shard, dealt.start)).permutation(places).tolist()
            if start < len(places):
                yield self._read(shard, places[start:], opened)
            start = max(start - len(places), 0)

    def _places(self, shard: int) -> list[int]:
        """Numbers, in their chunk, of the images that belong to the split."""
        folder, chunk, _ = self._chunks[shard]
        places = range(folder.lengths[chunk])
        if self._cut.split == "all" or self._cut.whole_shards:
            return list(places)
        return [place for place, keep in zip(places, self._cut.keeps(shard), strict=False) if keep]

    def _records(self, shard: int) -> Iterator[Record]:
        folder, chunk, _ = self._chunks[shard]
        return self._read(shard, range(folder.lengths[chunk]), {})

    def _read(
        self, shard: int, places: Sequence[int], opened: dict[Path, Callable[[int], Mapping[str, Any]]]
    ) -> Iterator[Record]:
        folder, chunk, first = self._chunks[shard]
        problem = folder.damage(chunk)
        if problem is not None:
            yield from (broken_record(f"{folder.chunks[chunk]}/{place}", problem) for place in places)
            return
        if folder.path not in opened:
            opened[folder.path] = folder.open()
        sample = opened[folder.path]
        for place in places:
            yield self._record(folder, f"{folder.chunks[chunk]}/{place}", partial(sample, first + place))

    def _record(self, folder: LitdataFolder, name: str, read: Callable[[], Mapping[str, Any]]) -> Record:
        try:
            sample = read()
            stored, label = sample[folder.image], sample[folder.label]
        except Exception as error:  # a damaged chunk: struct's, numpy's, mmap's errors
            return broken_record(name, f"the chunk cannot be read ({one_line(error)})")
        try:
            number = self._labels.find(label)
        except LookupError as error:
            return broken_record(name, one_line(error))
        if isinstance(stored, (bytes, bytearray, memoryview)):
            return Record(name, number, bytes(stored))
        if isinstance(stored, str):
            return Record(name, number, folder.path / stored)
        if callable(stored):
            return Record(name, number, stored)
        return broken_record(name, f"its image is {type(stored).__name__}, not the bytes of an image file")


def open_litdata(
    spec: str,
    *,
    split: Split,
    splitting: Splitting,
    classes: Sequence[str] | None,
    data_dir: Path | None = None,
) -> LitdataStream:
    """Opens a folder that ``litdata.optimize`` wrote, or one with such folders ``train`` and ``val``.

    A sample is a dict with ``image``, the bytes or path of an image file or a PIL image, and
    ``label``, a number or a class name. Names come from ``classes.txt`` in the folder; where there
    is none, all labels are read once. Pickled samples are refused.

    Args:
        spec: the folder.
        split: as in `open_stream`.
        splitting: as in `open_stream`.
        classes: as in `open_stream`.
        data_dir: where a relative path starts.

    Raises:
        UserError: no such folder, an index that cannot be, samples that would run code.
    """
    path = Path(spec).expanduser()
    path = path if data_dir is None else data_dir / path
    by_split = {} if (path / _INDEX).is_file() else _by_split(path)
    if not by_split and not (path / _INDEX).is_file():
        raise UserError(f"{spec} holds no {_INDEX}; give a folder that litdata wrote")
    parts = by_split or {split: path}
    checked = {key: LitdataFolder.check(folder) for key, folder in parts.items()}
    used = list(checked.values()) if split == "all" else [checked[split]]
    first = checked.get("train", used[0])
    cut = Cut("all" if by_split else split, splitting, shards=sum(len(f.chunks) for f in used))
    info = read_info(list(dict.fromkeys([first.path, path])))
    require("litdata")
    names, labels = match_labels(info.classes, classes, find=lambda: _names_in(first), origin=str(spec))
    return LitdataStream(used, classes=names, labels=labels, cut=cut, mirrorable=info.mirrorable)


def _by_split(path: Path) -> dict[Split, Path]:
    def first(names: Sequence[str]) -> Path | None:
        return next((path / name for name in names if (path / name / _INDEX).is_file()), None)

    train, val = first(_TRAIN_FOLDERS), first(_VAL_FOLDERS)
    return {"train": train, "val": val} if train is not None and val is not None else {}


def _keys(spec: str) -> list[str]:
    """Keys of the samples, from their description as a tree.

    Raises:
        ValueError: not a dict of values. Other trees name functions, which litdata imports.
    """
    tree = json.loads(spec)[1]
    if tree["type"] != "builtins.dict" or any(leaf["type"] is not None for leaf in tree["children_spec"]):
        raise ValueError("its samples are not dicts of image and label")
    keys = json.loads(tree["context"])
    return [str(key) for key in keys]


def _key(keys: Sequence[str], wanted: Sequence[str], index: Path) -> str:
    for key in wanted:
        if key in keys:
            return key
    raise UserError(f"{index}: its samples have no {wanted[0]}, they have {some_names(keys)}")


def _names_in(folder: LitdataFolder) -> list[str]:
    """Class names by a pass over all labels."""
    read = folder.open()
    stored: set[int | str] = set()
    for number in range(sum(folder.lengths)):
        try:
            label = read(number)[folder.label]
        except Exception:  # reading the images says what is damaged, and where
            continue
        if isinstance(label, (int, str)):
            stored.add(label)
    try:
        return names_of(stored)
    except ValueError as error:
        raise UserError(f"{folder.path}: {error}; put a {CLASSES_FILE} into the folder") from error


def _encode_pixels(data: bytes) -> bytes:
    """An image file of the pixels that litdata's serializer stored; TIFF has all kinds of pixels."""
    image = require("litdata.streaming.serializers").PILSerializer.deserialize(data)
    buffer = BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()
