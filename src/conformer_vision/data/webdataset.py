"""Tar shards in WebDataset's layout, local or from a web server, read by ``datasets``' builder."""

from __future__ import annotations

import glob
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from conformer_vision.errors import UserError, reason_of

from .arrow import quiet_datasets
from .images import IMAGE_EXTENSIONS, natural_key
from .names import group_files, is_split_name
from .shard_info import CLASSES_FILE, SetInfo, parse_classes, read_info
from .sharded import Shard, ShardStream, keep_columns, open_shards, plain_label
from .splits import Request, Split

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LABELS = ("cls", "json", "txt")  # the first that is there gives the label
_TIMEOUT = 60  # seconds


def open_webdataset(pattern: str, request: Request) -> ShardStream:
    """Open tar shards of files ``KEY.jpg`` (or another image) and ``KEY.cls``, ``.json`` or ``.txt``.

    Every sample has the same files. ``.cls`` holds the number of a class, ``.json`` a number or a name
    under ``label``, ``.txt`` a name. Class names come from ``classes.txt`` (one per line), ``_info.json``
    or ``dataset_info.json`` beside the shards; where there are none, local shards are read once for
    their labels, and classes are the names that occur, sorted, or ``0`` to the largest number.
    ``_info.json`` in timm's layout also gives the number of images.

    Args:
        pattern: a folder of shards, or with ``train`` and ``val`` of shards; a path or http(s)
            address with braces (``shard-{000..009}.tar``); a local glob. Words in the shards' names
            tell the splits apart (`names.group_files`).
        request: which images to open; relative paths start from its ``data_dir``.

    Raises:
        UserError: no shards, shards that cannot be read, or no class names for shards of a web server.
    """
    origin = f"wds/{pattern}"
    remote = is_remote(pattern)
    if not remote and (scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", pattern)):
        raise UserError(f"{origin}: {scheme[0]} is not read; give a local path or an http(s) address")
    paths = _remote_shards(pattern) if remote else _local_shards(pattern, request.data_dir)
    groups: dict[Split, list[str]] = {**group_files(paths)} or {"all": paths}
    info = _remote_info(paths[0]) if remote else _local_info(paths)
    if remote and info.classes is None and request.classes is None:
        raise UserError(
            f"{origin}: no {CLASSES_FILE} beside the shards; put one there, with a class name per line"
        )
    shown = _names(paths)
    shards = {part: _load(groups[part], origin, shown, info) for part in groups}
    own = info.classes or request.classes or _names_in(next(iter(shards.values())), origin)
    return open_shards(shards, request, own=own, origin=origin, mirrorable=info.mirrorable)


def _load(paths: Sequence[str], origin: str, shown: dict[str, str], info: SetInfo) -> list[Shard]:
    import datasets

    try:
        with quiet_datasets():
            rows = datasets.load_dataset(
                "webdataset",
                data_files={"all": [path if is_remote(path) else glob.escape(path) for path in paths]},
                split="all",
                streaming=True,
            )
    except Exception as error:  # tarfile's, fsspec's, the server's
        raise UserError(f"{origin}: {shown[paths[0]]} cannot be read ({reason_of(error)})") from error
    columns = list(rows.features or ())
    suffixes = {suffix.removeprefix(".") for suffix in IMAGE_EXTENSIONS}
    image = next((name for name in columns if name.lower() in suffixes), None)
    label = next((name for name in _LABELS if name in columns), None)
    if image is None or label is None:
        missing = "image" if image is None else "label (a .cls, .json or .txt file)"
        raise UserError(f"{origin}: the first samples have no {missing}, only {', '.join(columns)}")
    rows = keep_columns(rows, image, label, rows.features)
    return [
        Shard(rows, number, (image, label), shown[path], tar=path, length=info.lengths.get(path))
        for number, path in enumerate(paths)
    ]


def _names_in(shards: Sequence[Shard], origin: str) -> list[str]:
    """Find the class names by a pass over all labels."""
    stored: set[int | str | None] = set()
    for shard in shards:
        with suppress(Exception):  # reading the images will name the damage
            stored.update(plain_label(label) for _, label in shard.read())
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
        inner = [os.path.join(root, name) for name in sorted(os.listdir(root)) if is_split_name(name)]
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
    shared = [folder.parent for folder in folders if is_split_name(folder.name)]
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
