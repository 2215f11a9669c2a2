"""Tar shards in WebDataset's layout, local or from a web server."""

from __future__ import annotations

import glob
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, reason_of

from ..images import natural_key
from .base import Cut, Labels, Record, ShardedStream, broken_record, require
from .classes import CLASSES_FILE, SetInfo, match_labels, names_of, parse_classes, read_info
from .tar import DamagedShardError, TarShard, image_reader, is_remote, read_samples

if TYPE_CHECKING:
    from ..splits import Split, Splitting

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TRAIN_WORDS = {"train", "training"}
_VAL_WORDS = ({"val", "valid", "validation"}, {"test"})  # the first kind that is there is taken


class WebDatasetStream(ShardedStream):
    """Samples of tar shards.

    Args:
        shards: all shards of the set, in order.
        classes: class names.
        labels: tells the index of a stored label.
        cut: as in `ShardedStream`.
        info: what files beside the shards say.
    """

    def __init__(
        self, shards: Sequence[TarShard], *, classes: Sequence[str], labels: Labels, cut: Cut, info: SetInfo
    ) -> None:
        lengths = [info.lengths.get(str(Path(shard.path))) for shard in shards]
        known = [length for length in lengths if length is not None]
        super().__init__(classes, cut=cut, lengths=known if len(known) == len(shards) else None)
        self.mirrorable = info.mirrorable
        self._shards = tuple(shards)
        self._labels = labels

    def _records(self, shard: int) -> Iterator[Record]:
        place = self._shards[shard]
        try:
            for sample in read_samples(place):
                name = f"{place.name}/{sample.name}"
                if sample.image is None:
                    yield broken_record(name, "it has a label but no image")
                elif sample.label is None:
                    yield broken_record(name, sample.problem)
                else:
                    try:
                        label = self._labels.find(sample.label)
                    except LookupError as error:
                        yield broken_record(name, reason_of(error))
                    else:
                        yield Record(name, label, image_reader(sample.image))
        except DamagedShardError as error:
            yield broken_record(place.name, f"the shard cannot be read to its end ({error})", damage=True)


def open_webdataset(
    pattern: str,
    *,
    split: Split,
    splitting: Splitting,
    classes: Sequence[str] | None,
    data_dir: Path | None = None,
) -> WebDatasetStream:
    """Opens tar shards of files ``KEY.jpg`` (or another image) and ``KEY.cls``, ``.json`` or ``.txt``.

    ``.cls`` holds a class's number or name, ``.json`` either one under ``label``, ``.txt`` a name.
    Class names come from ``classes.txt`` (one per line), ``_info.json`` or ``dataset_info.json``
    beside the shards; where there are none, all labels of local shards are read once, and classes
    are the names that occur, sorted, or ``0`` to the largest number. ``_info.json`` in timm's layout
    also gives the number of images.

    Args:
        pattern: a folder of shards, or with ``train`` and ``val`` of shards; a path or http(s)
            address with braces (``shard-{000..009}.tar``); a local glob. Words in the shards' names
            tell train and val apart, as they do for parquet.
        split: as in `open_stream`.
        splitting: as in `open_stream`.
        classes: as in `open_stream`.
        data_dir: where a relative path starts.

    Raises:
        UserError: no shards, an address that would run a command, no class names for shards of a
            web server.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", pattern)
    if scheme is not None and not is_remote(pattern):
        what = "runs commands, so it is refused" if scheme[1].lower() == "pipe" else "is not read"
        raise UserError(f"wds/{pattern}: {scheme[1]}: {what}; give a local path or http(s) address")
    shards = _remote_shards(pattern) if is_remote(pattern) else _local_shards(pattern, data_dir)
    by_split = _by_split(shards)
    if by_split:
        used = by_split["train"] + by_split["val"] if split == "all" else by_split[split]
        shards = by_split["train"]  # whose labels name the classes
        cut = Cut("all", splitting, shards=len(used))
    else:
        used = shards
        cut = Cut(split, splitting, shards=len(used))
    info = _remote_info(shards[0].path) if is_remote(pattern) else _local_info(used)
    if info.classes is None and classes is None and is_remote(pattern):
        raise UserError(
            f"wds/{pattern}: no {CLASSES_FILE} beside the shards; put one there, with a class name per line"
        )
    names, labels = match_labels(
        info.classes, classes, find=lambda: _names_in(shards), origin=f"wds/{pattern}"
    )
    return WebDatasetStream(used, classes=names, labels=labels, cut=cut, info=info)


def _local_shards(pattern: str, data_dir: Path | None) -> list[TarShard]:
    root = os.path.expanduser(pattern)
    if data_dir is not None:
        root = os.path.join(data_dir, root)
    if os.path.isdir(root):
        found = [path for folder in (root, *_split_folders(root)) for path in _tars(folder)]
        if not found:
            raise UserError(f"wds/{pattern}: the folder holds no shards ({', '.join(_SUFFIXES)})")
        return [TarShard(path, os.path.relpath(path, root)) for path in found]
    paths = []
    for name in [root] if os.path.isfile(root) else _braces(root):
        matches = sorted(glob.glob(name, recursive=True), key=natural_key) if glob.has_magic(name) else []
        if os.path.isfile(name):
            matches = [name]
        if not matches:
            raise UserError(f"wds/{pattern}: no file {name}; give a folder of tar shards or a pattern")
        paths += matches
    return _named(paths)


def _remote_shards(pattern: str) -> list[TarShard]:
    paths = _braces(pattern)
    for path in paths:
        if not path.partition("?")[0].lower().endswith(_SUFFIXES):
            raise UserError(f"wds/{path}: not the address of a tar shard ({', '.join(_SUFFIXES)})")
    return _named(paths)


def _named(paths: Sequence[str]) -> list[TarShard]:
    """Shards called by their file's name, with the folder's where two files have the same."""
    ends = [path.partition("?")[0] if is_remote(path) else path for path in paths]
    unique = len({os.path.basename(end) for end in ends}) == len(ends)
    depth = 1 if unique else 2
    return [TarShard(path, "/".join(Path(end).parts[-depth:])) for path, end in zip(paths, ends, strict=True)]


def _braces(pattern: str) -> list[str]:
    braceexpand = require("braceexpand")
    try:
        return list(braceexpand.braceexpand(pattern))
    except braceexpand.UnbalancedBracesError as error:
        raise UserError(f"wds/{pattern}: its braces do not match ({reason_of(error)})") from error


def _split_folders(root: str) -> list[str]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    words = _TRAIN_WORDS.union(*_VAL_WORDS)
    return [os.path.join(root, name) for name in sorted(names) if name.lower() in words]


def _tars(folder: str) -> list[str]:
    names = [name for name in os.listdir(folder) if name.lower().endswith(_SUFFIXES) and name[0] != "."]
    return [os.path.join(folder, name) for name in sorted(names, key=natural_key)]


def _by_split(shards: Sequence[TarShard]) -> dict[Split, list[TarShard]]:
    """Shards for training and validation by the words in their names; nothing where one kind is missing."""
    words = [set(re.split("[^a-z]+", "/".join(Path(shard.path).parts[-2:]).lower())) for shard in shards]
    train = [shard for shard, has in zip(shards, words, strict=True) if has & _TRAIN_WORDS]
    for kind in _VAL_WORDS:
        val = [s for s, has in zip(shards, words, strict=True) if has & kind and not has & _TRAIN_WORDS]
        if train and val:
            return {"train": train, "val": val}
    return {}


def _local_info(shards: Sequence[TarShard]) -> SetInfo:
    folders = list(dict.fromkeys(Path(shard.path).parent for shard in shards))
    # "train/" and "val/" may share what lies beside them.
    shared = [f.parent for f in folders if f.name.lower() in _TRAIN_WORDS.union(*_VAL_WORDS)]
    return read_info(list(dict.fromkeys([*folders, *shared])))


def _remote_info(address: str) -> SetInfo:
    place = address.partition("?")[0].rpartition("/")[0] + "/" + CLASSES_FILE
    try:
        with urllib.request.urlopen(place, timeout=60) as answer:
            text = answer.read(1 << 24).decode("utf-8-sig")
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return SetInfo()
        raise UserError(f"{place} cannot be read ({reason_of(error)})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read ({reason_of(error)})") from error
    return SetInfo(parse_classes(text, origin=place))


def _names_in(shards: Sequence[TarShard]) -> list[str]:
    """Class names by a pass over all labels."""
    stored: set[int | str] = set()
    for shard in shards:
        try:
            stored.update(
                sample.label for sample in read_samples(shard, images=False) if sample.label is not None
            )
        except DamagedShardError:
            continue  # reading the images says so, at its place
    try:
        return names_of(stored)
    except ValueError as error:
        raise UserError(f"{shards[0].path}: {error}; put a {CLASSES_FILE} beside the shards") from error
