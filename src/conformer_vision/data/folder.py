"""A folder of class folders, as torchvision's ImageFolder and timm read it.

timm's own reader names a picture's class by the innermost folder, follows link loops and drops
empty classes without a word; here the class is the folder below the root, whatever lies deeper.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from conformer_vision.errors import UserError

from .base import ImageSource, Split, match_classes, some_names, stratified_split
from .images import find_images, is_image_name, natural_key, open_image

_VAL_NAMES = ("val", "validation", "valid", "test")  # the first that is there is taken


class FolderSource(ImageSource):
    """Picture files with the class of the folder they lie in."""

    def __init__(self, classes: Sequence[str], paths: Sequence[Path], labels: Sequence[int]) -> None:
        super().__init__(classes, labels)
        self._paths = tuple(paths)

    def image(self, index: int) -> Image.Image:
        """The RGB picture."""
        return open_image(self._paths[index])

    def name(self, index: int) -> str:
        """The picture's path."""
        return str(self._paths[index])


def open_folder(
    root: Path, *, split: Split, val_fraction: float, seed: int, classes: Sequence[str] | None
) -> FolderSource:
    """Reads ``root/CLASS/**/picture`` or ``root/{train,val}/CLASS/**/picture``.

    The root holds splits where both ``train`` and one of ``val``, ``validation``, ``valid``,
    ``test`` are there, or one of them and no other folder with pictures; else it holds classes.
    A ``train`` without the other, and a root of classes, is split by seed. Arguments and errors
    are those of `open_source`.
    """
    parts = _split_folders(root)
    if len(parts) == 2 and classes is None:
        _check_same_classes(root, parts)
    by_name: list[_Labelled] = []
    if "val" not in parts:
        everything = _scan(parts.get("train", root))
        by_name.append(
            everything.select(
                stratified_split(everything.labels, val_fraction=val_fraction, seed=seed)[split]
            )
        )
    else:
        wanted = ("train", "val") if split == "all" else (split,)
        if split == "train" and "train" not in parts:
            raise UserError(
                f"{root} holds {parts['val'].name} but no train; "
                f"put the training pictures into {root / 'train'}"
            )
        by_name.extend(_scan(parts[part]) for part in wanted if part in parts)
    own = sorted({name for labelled in by_name for name in labelled.classes}, key=natural_key)
    names, index = match_classes(own, classes, origin=str(root))
    number = dict(zip(own, index, strict=True))
    pairs = [
        (path, number[part.classes[label]])
        for part in by_name
        for path, label in zip(part.paths, part.labels, strict=True)
    ]
    return FolderSource(names, [path for path, _ in pairs], [label for _, label in pairs])


@dataclass(frozen=True)
class _Labelled:
    """Pictures of one folder of class folders."""

    classes: list[str]
    paths: list[Path]
    labels: list[int]

    def select(self, rows: Iterable[int]) -> _Labelled:
        pairs = [(self.paths[i], self.labels[i]) for i in rows]
        return _Labelled(self.classes, [path for path, _ in pairs], [label for _, label in pairs])


def _scan(root: Path) -> _Labelled:
    classes = _subfolders(root)
    if not classes:
        found = "pictures but no class folders" if _loose_pictures(root) else "no class folders"
        raise UserError(
            f"{root} holds {found}; put the pictures of each class into a folder of its own, "
            f"as {root / 'cat' / '1.jpg'}"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        pictures = find_images(root / name)
        if not pictures:
            raise UserError(f"class folder {root / name} holds no pictures; add some or remove it")
        paths += pictures
        labels += [label] * len(pictures)
    return _Labelled(classes, paths, labels)


def _split_folders(root: Path) -> dict[Split, Path]:
    """The folders of the splits, ``train`` and ``val``, where the root holds splits; else nothing."""
    folders = _subfolders(root)
    parts: dict[Split, Path] = {}
    if "train" in folders:
        parts["train"] = root / "train"
    val = next((name for name in _VAL_NAMES if name in folders), None)
    if val is not None:
        parts["val"] = root / val
    others = [name for name in folders if name != "train" and name not in _VAL_NAMES]
    if len(parts) == 1 and any(find_images(root / name) for name in others):
        return {}
    return parts


def _check_same_classes(root: Path, parts: dict[Split, Path]) -> None:
    train, val = (_subfolders(parts[part]) for part in ("train", "val"))
    differences = [
        f"only in {folder}: {some_names(names)}"
        for folder, names in (
            (parts["train"].name, [name for name in train if name not in val]),
            (parts["val"].name, [name for name in val if name not in train]),
        )
        if names
    ]
    if train and val and differences:
        raise UserError(f"the classes below {root} differ; {'; '.join(differences)}")


def _subfolders(root: Path) -> list[str]:
    with _listing(root) as entries:
        return sorted((e.name for e in entries if not e.name.startswith(".") and e.is_dir()), key=natural_key)


def _loose_pictures(root: Path) -> bool:
    with _listing(root) as entries:
        return any(is_image_name(entry.name) for entry in entries)


def _listing(root: Path) -> os._ScandirIterator[str]:
    try:
        return os.scandir(root)
    except OSError as error:
        raise UserError(f"cannot read the folder {root}: {error.strerror or error}") from error
