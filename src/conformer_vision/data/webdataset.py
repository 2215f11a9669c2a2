"""Tar shards in WebDataset's layout, local or from a web server."""

from __future__ import annotations

import glob
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import IO, Any

from conformer_vision.errors import UserError, reason_of, some_names

from .find import is_photo_name, natural_key
from .images import IMAGE_EXTENSIONS
from .names import group_files, parse_split
from .shard_info import CLASSES_FILE, SetInfo, parse_classes, read_info
from .sharded import Row, Shard, ShardStream, open_shards, plain_label
from .splits import Request, Split

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LABELS = (".cls", ".json", ".txt")  # the first that holds one gives the label
_LONGEST_LABEL = 1 << 20  # bytes; what is longer is no label
_TIMEOUT = 60  # seconds


def open_webdataset(pattern: str, request: Request) -> ShardStream:
    """Open tar shards of files ``KEY.jpg`` (or another image) and ``KEY.cls``, ``.json`` or ``.txt``.

    KEY may hold dots. ``.cls`` holds the number or the name of a class, ``.json`` one of them under
    ``label``, ``.txt`` a name; of several, the first of these counts. A list in ``.json``, or as JSON in
    ``.cls``, holds the labels of an image that may have several. What a sample lacks is
    reported with it. Class names come from ``classes.txt`` (one per line), ``_info.json`` or
    ``dataset_info.json`` beside the shards; where there are none, local shards are read once for their
    labels, and classes are the names that occur, sorted, or ``0`` to the largest number. ``_info.json``
    in timm's layout also gives the number of images.

    Args:
        pattern: a folder of shards, or with ``train`` and ``val`` of shards; a path or http(s)
            address with braces (``shard-{000..009}.tar``); a local glob. Words in the shards' names
            tell the splits apart (`names.group_files`).
        request: which images to open; relative paths start from its ``data_dir``. A group of its splitting
            is a field of the ``.json``, or an expression on KEY.

    Raises:
        UserError: no shards, shards that cannot be read, or no class names for shards of a web server.
    """
    origin = f"wds/{pattern}"
    remote = is_remote(pattern)
    if not remote and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", pattern)):
        raise UserError(f"{origin}: {scheme[0]} is not read; give a local path or an http(s) address")
    paths = _remote_shards(pattern) if remote else _local_shards(pattern, request.data_dir)
    groups: dict[Split, list[str]] = group_files(paths, origin=origin) or {"all": paths}
    info = _remote_info(paths[0]) if remote else _local_info(paths)
    if remote and info.classes is None and request.classes is None:
        raise UserError(
            f"{origin}: no {CLASSES_FILE} beside the shards; put one there, with a class name per line"
        )
    shown = _names(paths)
    given = request.splitting.group
    group = given if given is not None and re.fullmatch(r"\w+", given) else None  # a field of the .json
    shards = {
        part: [_Tar(path, shown[path], info.lengths.get(path), group) for path in files]
        for part, files in groups.items()
    }
    multilabel, *_ = [_check_first(mine[0], origin) for mine in shards.values()]
    own = info.classes or request.classes or _names_in(next(iter(shards.values())), origin)
    return open_shards(
        shards,
        request,
        own=own,
        origin=origin,
        mirrorable=info.mirrorable,
        columns=() if group is None else (group,),
        multilabel=multilabel,
    )


class _Tar(Shard):
    """A tar, by its path or address."""

    def __init__(self, path: str, name: str, length: int | None, group: str | None = None) -> None:
        self.group = group
        self.path = path
        self.name = name
        self.length = length

    def read(self) -> Iterator[Row]:
        """Yield the samples."""
        from datasets import StreamingDownloadManager

        for key, files in group_samples(StreamingDownloadManager().iter_archive(self.path)):
            yield self._row(key, files)

    def shortage(self, rows: int) -> str | None:
        """Say what is wrong if the shard ended too early; tarfile takes damage for the end."""
        if self.length is None and self.path.lower().endswith(".tar") and os.path.isfile(self.path):
            with open(self.path, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(-min(size, 512), os.SEEK_END)
                if size < 512 or size % 512 or file.read().strip(b"\0"):  # a whole tar ends in zeros
                    return "is truncated"
        return super().shortage(rows)

    def _row(self, key: str, files: Mapping[str, tuple[str, bytes]]) -> Row:
        image = next((files[suffix] for suffix in files if suffix in IMAGE_EXTENSIONS), None)
        label = next((found for kind in _LABELS if (found := _label(kind, files)) is not None), None)
        problem = None
        if image is None:
            names = some_names([os.path.basename(name) for name, _ in files.values()])
            problem = f"it has no image of a format that is read, only {names}"
        elif label is None:
            problem = f"it has no label ({', '.join(_LABELS)})"
        name = next(iter(files.values()))[0] if image is None else image[0]
        group = None if self.group is None else _field(self.group, files)
        return Row(f"{self.name}/{name}", key, None if image is None else image[1], label, problem, group)


def _label(kind: str, files: Mapping[str, tuple[str, bytes]]) -> int | str | list[Any] | None:
    """Return the label that a file of that kind holds, or a list of them; None if there is none."""
    if kind not in files:
        return None
    text = files[kind][1].decode("utf-8-sig", "replace").strip()
    if kind == ".json" or (kind == ".cls" and text.startswith("[")):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        stored = found.get("label") if isinstance(found, Mapping) else found
        return stored if isinstance(stored, list) else plain_label(stored)
    if kind == ".cls" and re.fullmatch("[+-]?[0-9]{1,9}", text):
        return int(text)
    return text or None


def _field(name: str, files: Mapping[str, tuple[str, bytes]]) -> str | None:
    """Return the field of that name in the sample's .json, as text; None if it is not a single value."""
    try:
        found = json.loads(files[".json"][1].decode("utf-8-sig", "replace"))
    except (KeyError, ValueError, RecursionError):
        return None
    value = found.get(name) if isinstance(found, Mapping) else None
    return str(value) if isinstance(value, str | int | float) else None


def group_samples(
    members: Iterable[tuple[str, IO[bytes]]],
) -> Iterator[tuple[str, dict[str, tuple[str, bytes]]]]:
    """Group the files of a shard that stand together into samples.

    Files are of one sample if their names are equal up to the last dot. A file with more in its name, as
    ``KEY.mask.png`` beside ``KEY.jpg``, belongs to it too, unless it has a label of its own.

    Yields:
        The key, and name and content of each file by suffix in lower case; files that are neither images nor
        labels are left out.
    """
    key, stems = "", dict[str, dict[str, tuple[str, bytes]]]()
    for name, file in members:
        stem, suffix = os.path.splitext(name)
        suffix = suffix.lower()
        if not is_photo_name(os.path.basename(name)) and suffix not in _LABELS:
            continue
        if key.startswith(f"{stem}.") and not _is_whole(stems[key]):
            key = stem
        elif stems and (suffix in stems.get(stem, ()) or not f"{stem}.".startswith(f"{key}.")):
            yield key, _merged(key, stems)
            stems = {}
        key = key if stems else stem
        data = file.read(_LONGEST_LABEL if suffix in _LABELS else -1)
        stems.setdefault(stem, {})[suffix] = (name, data)
        if stem != key and _is_whole(stems[stem]):
            whole = stems.pop(stem)
            yield key, _merged(key, stems)
            key, stems = stem, {stem: whole}
    if stems:
        yield key, _merged(key, stems)


def _is_whole(files: Iterable[str]) -> bool:
    return any(suffix in _LABELS for suffix in files) and any(suffix in IMAGE_EXTENSIONS for suffix in files)


def _merged(key: str, stems: Mapping[str, Mapping[str, tuple[str, bytes]]]) -> dict[str, tuple[str, bytes]]:
    """Return the sample's files; those called exactly like it come first."""
    merged = dict(stems.get(key, {}))
    for files in stems.values():
        for suffix, file in files.items():
            merged.setdefault(suffix, file)
    return merged


def _check_first(shard: _Tar, origin: str) -> bool:
    """Refuse shards that cannot be read, or of another layout; return whether labels are lists."""
    try:
        rows = list(islice(shard.read(), 5))
    except Exception as error:  # tarfile's, fsspec's, the server's
        raise UserError(f"{origin}: {shard.name} cannot be read ({reason_of(error)})") from error
    if not rows:
        raise UserError(f"{origin}: {shard.name} cannot be read (it holds neither images nor labels)")
    if all(row.problem is not None for row in rows):
        raise UserError(
            f"{origin}: {rows[0].name}: {rows[0].problem}; nor are the first samples after it whole"
        )
    return any(isinstance(row.label, list) for row in rows)


def _names_in(shards: Sequence[_Tar], origin: str) -> list[str]:
    """Find the class names by a pass over all labels."""
    stored: set[int | str | None] = set()
    for shard in shards:
        with suppress(Exception):  # reading the images will name the damage
            for row in shard.read():
                labels = row.label if isinstance(row.label, list) else [row.label]
                stored.update(map(plain_label, labels))
    names = sorted(label for label in stored if isinstance(label, str))
    numbers = sorted(label for label in stored if isinstance(label, int))
    if not names and not numbers:
        raise UserError(f"{origin} holds no labels")
    if names and numbers:
        raise UserError(
            f"{origin}: some labels are names ({names[0]!r}), others numbers ({numbers[0]}); "
            f"put a {CLASSES_FILE} beside the shards"
        )
    if numbers and numbers[0] < 0:
        raise UserError(f"{origin}: label {numbers[0]} is negative, so it names no class")
    return names or [str(number) for number in range(numbers[-1] + 1)]


def is_remote(path: str) -> bool:
    """Whether the path is an http(s) address."""
    return path.lower().startswith(("http://", "https://"))


def _local_shards(pattern: str, data_dir: Path | None) -> list[str]:
    root = os.path.expanduser(pattern)
    if data_dir is not None:
        root = os.path.join(data_dir, root)
    if os.path.isdir(root):
        inner = [
            os.path.join(root, name) for name in sorted(os.listdir(root)) if parse_split(name) is not None
        ]
        found = [path for folder in (root, *filter(os.path.isdir, inner)) for path in _tars(folder)]
        if not found:
            raise UserError(f"wds/{pattern}: the folder holds no shards ({', '.join(_SUFFIXES)})")
        return found
    paths: list[str] = []
    for name in [root] if os.path.isfile(root) else expand_braces(root):
        matches = sorted(glob.glob(name, recursive=True), key=natural_key) if glob.has_magic(name) else []
        if os.path.isfile(name):
            matches = [name]
        if not matches:
            raise UserError(f"wds/{pattern}: no file {name}; give a folder of tar shards or a pattern")
        paths += matches
    return [os.path.abspath(path) for path in paths]


def _tars(folder: str) -> list[str]:
    names = [name for name in os.listdir(folder) if name.lower().endswith(_SUFFIXES) and name[0] != "."]
    paths = [os.path.abspath(os.path.join(folder, name)) for name in sorted(names, key=natural_key)]
    return [path for path in paths if os.path.isfile(path)]


def _remote_shards(pattern: str) -> list[str]:
    paths = expand_braces(pattern)
    for path in paths:
        if not path.partition("?")[0].lower().endswith(_SUFFIXES):
            raise UserError(f"wds/{path}: not the address of a tar shard ({', '.join(_SUFFIXES)})")
    return paths


def expand_braces(pattern: str) -> list[str]:
    """The names that ``{a,b}`` and ``{000..009}`` in a pattern stand for, in order."""
    pieces = re.split(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for place, piece in enumerate(pieces):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", piece)
        if place % 2 == 0:
            choices.append([piece])
        elif numbers:
            first, last = numbers.groups()
            choices.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in product(*choices)]


def _names(paths: Sequence[str]) -> dict[str, str]:
    """What messages call shards: the file's name, with the folder's where two files have the same."""
    ends = [path.partition("?")[0] if is_remote(path) else path for path in paths]
    unique = len({os.path.basename(end) for end in ends}) == len(ends)
    depth = 1 if unique else 2
    return {path: "/".join(Path(end).parts[-depth:]) for path, end in zip(paths, ends, strict=True)}


def _local_info(paths: Sequence[str]) -> SetInfo:
    folders = list(dict.fromkeys(Path(path).parent for path in paths))
    # The folders of splits may share what lies beside them.
    shared = [folder.parent for folder in folders if parse_split(folder.name) is not None]
    return read_info(list(dict.fromkeys([*folders, *shared])))


def _remote_info(address: str) -> SetInfo:
    place = address.partition("?")[0].rpartition("/")[0] + "/" + CLASSES_FILE
    try:
        with urllib.request.urlopen(place, timeout=_TIMEOUT) as answer:
            text = answer.read(1 << 24).decode("utf-8-sig")
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return SetInfo()
        raise UserError(f"{place} cannot be read ({reason_of(error)})") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{place} cannot be read ({reason_of(error)})") from error
    return SetInfo(parse_classes(text, origin=place))
