"""A folder of class folders, as torchvision's ImageFolder and timm read it.

timm's own reader names an image's class by the innermost folder, follows link loops and drops
empty classes without a word; here the class is the folder below the root, whatever lies deeper.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from conformer_vision.errors import UserError, one_line, some_names

from .base import ImageSource, match_classes
from .images import find_images, is_image_name, natural_key, open_image
from .names import find_splits, is_split_name
from .splits import Request, Split


class FileSource(ImageSource):
    """Image files.

    Args:
        classes: as in `ImageSource`.
        paths: one per image.
        labels: as in `ImageSource`.
        names: what messages call each image; its path where not given.
        places: where a table lists each image, for the error about a broken one.
    """

    def __init__(
        self,
        classes: Sequence[str],
        paths: Sequence[str],
        labels: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        places: Sequence[str] | None = None,
    ) -> None:
        super().__init__(classes, labels)
        self._paths = tuple(paths)
        self._names = self._paths if names is None else tuple(names)
        self._places = None if places is None else tuple(places)

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        place = "" if self._places is None else f" ({self._places[index]})"
        return open_image(self._paths[index], name=self._names[index] + place)

    def file(self, index: int) -> Path:
        """The image's path."""
        return Path(self._paths[index])

    def name(self, index: int) -> str:
        """The image's path, or the name that was given."""
        return self._names[index]


def open_folder(root: Path, request: Request, *, shown: Path | None = None) -> FileSource:
    """Read ``root/CLASS/**/image`` or ``root/{train,val}/CLASS/**/image``.

    The root holds splits where folders for both are there (`names.SPLIT_NAMES`), or one of them and
    no other folder with images; else it holds classes. A training folder without the other, and a
    root of classes, is split by seed. Folds cut the training images.

    Args:
        root: the folder.
        request: which images to open.
        shown: what names and messages call the root; itself where None.

    Raises:
        UserError: as `open_images`.
    """
    split, splitting = request.split, request.splitting
    tree = _Tree(str(root), str(shown or root))
    parts = _split_folders(tree)
    if splitting.folds is not None and "train" in parts:
        parts.pop("val", None)
    if len(parts) == 2 and request.classes is None:
        _check_same_classes(tree, parts)
    found: list[_Labelled] = []
    if "val" not in parts:
        everything = _scan(tree, parts.get("train", tree.root))
        rows = splitting.rows(everything.labels, split, origin=tree.show(tree.root))
        found.append(everything.select(rows.tolist()))
    else:
        wanted: tuple[Split, ...] = ("train", "val") if split == "all" else (split,)
        if "train" not in parts and (split == "train" or splitting.folds is not None):
            raise UserError(
                f"{tree.show(tree.root)} holds {os.path.basename(parts['val'])} but no train; "
                f"put the training images into {tree.show(os.path.join(tree.root, 'train'))}"
            )
        found.extend(_scan(tree, parts[part]) for part in wanted if part in parts)
    own = sorted({name for labelled in found for name in labelled.classes}, key=natural_key)
    names, index = match_classes(own, request.classes, origin=tree.show(tree.root))
    number = dict(zip(own, index, strict=True))
    paths = [path for labelled in found for path in labelled.paths]
    return FileSource(
        names,
        paths,
        [number[labelled.classes[label]] for labelled in found for label in labelled.labels],
        names=None if shown is None else [tree.renamed(path) for path in paths],
    )


@dataclass(frozen=True)
class _Labelled:
    """Images by their paths; a label is an index into ``classes``."""

    classes: Sequence[str]
    paths: list[str]
    labels: list[int]

    def select(self, rows: list[int]) -> _Labelled:
        return _Labelled(self.classes, [self.paths[i] for i in rows], [self.labels[i] for i in rows])


@dataclass(frozen=True)
class _Tree:
    """A folder, and what it is called."""

    root: str
    shown: str

    def renamed(self, path: str) -> str:
        return self.shown + path[len(self.root) :]

    def show(self, path: str) -> str:
        return one_line(self.renamed(path))

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, in natural order; hidden ones are left out."""
        with self._listing(folder) as entries:
            return sorted(
                (e.name for e in entries if not e.name.startswith(".") and e.is_dir()), key=natural_key
            )

    def images(self, folder: str) -> list[str]:
        """Paths of the images in and below a folder, in natural order; hidden ones are left out."""
        return [str(path) for path in find_images(folder)]

    def has_loose_images(self, folder: str) -> bool:
        """Whether a folder itself, not one below it, holds an image."""
        with self._listing(folder) as entries:
            return any(is_image_name(entry.name) for entry in entries)

    def _listing(self, folder: str) -> os._ScandirIterator[str]:
        try:
            return os.scandir(folder)
        except OSError as error:
            raise UserError(
                f"cannot read the folder {self.show(folder)}: {error.strerror or error}"
            ) from error


def _scan(tree: _Tree, root: str) -> _Labelled:
    classes = tree.folders(root)
    if not classes:
        found = "images but no class folders" if tree.has_loose_images(root) else "no class folders"
        raise UserError(
            f"{tree.show(root)} holds {found}; put the images of each class into a folder of its own, "
            f"as {tree.show(os.path.join(root, 'cat', '1.jpg'))}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = tree.images(os.path.join(root, name))
        if not images:
            raise UserError(
                f"class folder {tree.show(os.path.join(root, name))} holds no images; add some or remove it"
            )
        paths += images
        labels += [label] * len(images)
    return _Labelled(classes, paths, labels)


def _split_folders(tree: _Tree) -> dict[Split, str]:
    """Paths of the folders of the splits where the root holds splits; else nothing."""
    folders = tree.folders(tree.root)
    parts = {part: os.path.join(tree.root, name) for part, name in find_splits(folders).items()}
    others = [name for name in folders if not is_split_name(name)]
    if len(parts) == 1 and any(tree.images(os.path.join(tree.root, name)) for name in others):
        return {}
    return parts


def _check_same_classes(tree: _Tree, parts: dict[Split, str]) -> None:
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
        raise UserError(f"the classes below {tree.show(tree.root)} differ; {'; '.join(differences)}")
