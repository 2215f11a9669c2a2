"""A folder of class folders, as torchvision's ImageFolder and timm read it.

timm's own reader names an image's class by the innermost folder, follows link loops and drops
empty classes without a word; here the class is the folder below the root, whatever lies deeper.
`archive` applies the same rules to what a zip or tar archive holds.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from conformer_vision.errors import UserError, one_line, some_names

from .base import ImageSource, match_classes
from .images import find_images, is_image_name, natural_key, open_image
from .splits import Split, Splitting

VAL_NAMES = ("val", "validation", "valid", "test")
"""Names of a folder or split of validation images; the first that is there is taken."""


class FolderSource(ImageSource):
    """Image files with the class of the folder they lie in."""

    def __init__(self, classes: Sequence[str], paths: Sequence[str], labels: Sequence[int]) -> None:
        super().__init__(classes, labels)
        self._paths = tuple(paths)

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        return open_image(self.file(index))

    def file(self, index: int) -> Path:
        """The image's path."""
        return Path(self._paths[index])

    def name(self, index: int) -> str:
        """The image's path."""
        return self._paths[index]


class Tree(ABC):
    """Folders and image files below a root, on disk or in an archive, all named by paths.

    Attributes:
        root: path of the root.
    """

    root: str

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Names, not paths, of the folders in a folder, in natural order; hidden ones are left out."""

    @abstractmethod
    def images(self, folder: str) -> list[str]:
        """Paths of the images in and below a folder, in natural order; hidden ones are left out."""

    @abstractmethod
    def has_loose_images(self, folder: str) -> bool:
        """Whether a folder itself, not one below it, holds an image."""


@dataclass(frozen=True)
class Labelled:
    """Images by their paths, with labels.

    Attributes:
        classes: class names.
        paths: one path per image.
        labels: one index into ``classes`` per image.
    """

    classes: Sequence[str]
    paths: list[str]
    labels: list[int]

    def select(self, rows: Iterable[int]) -> Labelled:
        """The images of these numbers."""
        pairs = [(self.paths[i], self.labels[i]) for i in rows]
        return Labelled(self.classes, [path for path, _ in pairs], [label for _, label in pairs])


def open_folder(
    root: Path, *, split: Split, splitting: Splitting, classes: Sequence[str] | None
) -> FolderSource:
    """Reads ``root/CLASS/**/image`` or ``root/{train,val}/CLASS/**/image``.

    The rules are those of `read_tree`; arguments and errors are those of `open_images`.
    """
    found = read_tree(_DiskTree(root), split=split, splitting=splitting, classes=classes)
    return FolderSource(found.classes, found.paths, found.labels)


def read_tree(tree: Tree, *, split: Split, splitting: Splitting, classes: Sequence[str] | None) -> Labelled:
    """Images ``CLASS/**/image`` or ``{train,val}/CLASS/**/image`` of one split.

    The root holds splits where both ``train`` and one of ``val``, ``validation``, ``valid``,
    ``test`` are there, or one of them and no other folder with images; else it holds classes.
    A ``train`` without the other, and a root of classes, is split by seed. Folds cut ``train``.

    Raises:
        UserError: as `open_images`.
    """
    parts = _split_folders(tree)
    if splitting.folds is not None and "train" in parts:
        parts.pop("val", None)
    if len(parts) == 2 and classes is None:
        _check_same_classes(tree, parts)
    found: list[Labelled] = []
    if "val" not in parts:
        everything = _scan(tree, parts.get("train", tree.root))
        found.append(everything.select(splitting.rows(everything.labels, split, origin=one_line(tree.root))))
    else:
        wanted = ("train", "val") if split == "all" else (split,)
        if "train" not in parts and (split == "train" or splitting.folds is not None):
            raise UserError(
                f"{tree.root} holds {os.path.basename(parts['val'])} but no train; "
                f"put the training images into {os.path.join(tree.root, 'train')}"
            )
        found.extend(_scan(tree, parts[part]) for part in wanted if part in parts)
    own = sorted({name for labelled in found for name in labelled.classes}, key=natural_key)
    names, index = match_classes(own, classes, origin=one_line(tree.root))
    number = dict(zip(own, index, strict=True))
    return Labelled(
        names,
        [path for part in found for path in part.paths],
        [number[part.classes[label]] for part in found for label in part.labels],
    )


def _scan(tree: Tree, root: str) -> Labelled:
    classes = tree.folders(root)
    if not classes:
        found = "images but no class folders" if tree.has_loose_images(root) else "no class folders"
        raise UserError(
            f"{one_line(root)} holds {found}; put the images of each class into a folder of its own, "
            f"as {one_line(os.path.join(root, 'cat', '1.jpg'))}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = tree.images(os.path.join(root, name))
        if not images:
            raise UserError(
                f"class folder {one_line(os.path.join(root, name))} holds no images; add some or remove it"
            )
        paths += images
        labels += [label] * len(images)
    return Labelled(classes, paths, labels)


def _split_folders(tree: Tree) -> dict[Split, str]:
    """The folders of the splits, ``train`` and ``val``, where the root holds splits; else nothing."""
    folders = tree.folders(tree.root)
    parts: dict[Split, str] = {}
    if "train" in folders:
        parts["train"] = os.path.join(tree.root, "train")
    val = next((name for name in VAL_NAMES if name in folders), None)
    if val is not None:
        parts["val"] = os.path.join(tree.root, val)
    others = [name for name in folders if name != "train" and name not in VAL_NAMES]
    if len(parts) == 1 and any(tree.images(os.path.join(tree.root, name)) for name in others):
        return {}
    return parts


def _check_same_classes(tree: Tree, parts: dict[Split, str]) -> None:
    train, val = (tree.folders(parts[part]) for part in ("train", "val"))
    differences = [
        f"only in {os.path.basename(folder)}: {some_names(names)}"
        for folder, names in (
            (parts["train"], [name for name in train if name not in val]),
            (parts["val"], [name for name in val if name not in train]),
        )
        if names
    ]
    if train and val and differences:
        raise UserError(f"the classes below {one_line(tree.root)} differ; {'; '.join(differences)}")


class _DiskTree(Tree):
    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def folders(self, folder: str) -> list[str]:
        with _listing(folder) as entries:
            return sorted(
                (e.name for e in entries if not e.name.startswith(".") and e.is_dir()), key=natural_key
            )

    def images(self, folder: str) -> list[str]:
        return [str(path) for path in find_images(folder)]

    def has_loose_images(self, folder: str) -> bool:
        with _listing(folder) as entries:
            return any(is_image_name(entry.name) for entry in entries)


def _listing(root: str) -> os._ScandirIterator[str]:
    try:
        return os.scandir(root)
    except OSError as error:
        raise UserError(f"cannot read the folder {root}: {error.strerror or error}") from error
