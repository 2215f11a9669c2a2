"""The names of a set's classes and the lengths of its shards, from files beside its shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conformer_vision.errors import UserError, reason_of

CLASSES_FILE = "classes.txt"
_INFO_FILES = ("_info.json", "info.json", "dataset_info.json")


@dataclass(frozen=True)
class SetInfo:
    """What files beside the shards say about a set.

    Attributes:
        classes: names of the classes, in the order of the labels' numbers; None where not said.
        lengths: images by the path of the shard.
        mirrorable: whether an image mirrored left to right is still of its class.
    """

    classes: tuple[str, ...] | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    mirrorable: bool = True


def read_info(folders: Sequence[Path]) -> SetInfo:
    """Read ``classes.txt`` (a name per line) and ``_info.json`` or ``dataset_info.json``.

    Args:
        folders: where to look; what the first one says wins.

    Raises:
        UserError: a file that cannot be read, or a class that is named twice.
    """
    classes: tuple[str, ...] | None = None
    lengths: dict[str, int] = {}
    mirrorable = True
    for folder in folders:
        if classes is None and (folder / CLASSES_FILE).is_file():
            path = folder / CLASSES_FILE
            classes = parse_classes(_read(path), origin=str(path))
        for path in (folder / name for name in _INFO_FILES):
            if not path.is_file():
                continue
            info = _parse_info(path)
            if classes is None and (names := _names(info)):
                classes = _checked(names, origin=str(path))
            for name, length in _lengths(info).items():
                lengths.setdefault(str(folder / name), length)
            mirrorable = mirrorable and info.get("mirrorable") is not False
    return SetInfo(classes, lengths, mirrorable)


def parse_classes(text: str, *, origin: str) -> tuple[str, ...]:
    """The names in the text of a ``classes.txt``.

    Raises:
        UserError: no name, or one that occurs twice.
    """
    return _checked([line.strip() for line in text.splitlines() if line.strip()], origin=origin)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from error


def _parse_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not JSON ({reason_of(error)})") from error
    return info if isinstance(info, dict) else {}


def _names(info: dict[str, Any]) -> list[Any] | None:
    """The class names where timm, ``examples/write_shards.py`` and ``datasets`` put them."""
    for key in ("classes", "class_names"):
        if isinstance(info.get(key), list):
            return list(info[key])
    features = info.get("features")
    for key in ("label", "labels", "cls", "fine_label"):
        feature = features.get(key) if isinstance(features, dict) else None
        if isinstance(feature, dict) and isinstance(feature.get("names"), list):
            return list(feature["names"])
    return None


def _lengths(info: dict[str, Any]) -> dict[str, int]:
    """timm's layout: ``splits`` of ``filenames`` and ``shard_lengths``."""
    splits = info.get("splits")
    found: dict[str, int] = {}
    for split in splits.values() if isinstance(splits, dict) else ():
        if not isinstance(split, dict):
            continue
        names, lengths = split.get("filenames"), split.get("shard_lengths")
        if isinstance(names, list) and isinstance(lengths, list) and len(names) == len(lengths):
            pairs = zip(names, lengths, strict=True)
            found.update((n, c) for n, c in pairs if isinstance(n, str) and isinstance(c, int) and c >= 0)
    return found


def _checked(names: Sequence[Any], *, origin: str) -> tuple[str, ...]:
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{origin} holds no list of class names; give one name per line")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{origin} names the class {name!r} twice")
        seen.add(name)
    return tuple(names)
