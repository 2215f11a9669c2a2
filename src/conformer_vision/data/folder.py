"""A folder of class folders, as torchvision's ImageFolder and timm read it.

timm's own reader names an image's class by the innermost folder, follows link loops and drops
empty classes without a word; here the class is the folder below the root, whatever lies deeper.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from conformer_vision.errors import UserError, one_line, some_names
from conformer_vision.geometry import Need
from conformer_vision.runs import is_run_folder

from .base import ImageSource, Label, match_classes
from .find import is_photo_name, natural_key, scan_images, warn_of_passed_over
from .groups import Grouping, taken
from .images import open_image
from .names import find_splits, parse_split
from .splits import Request, Split

_logger = logging.getLogger(__name__)


class FileSource(ImageSource):
    """Image files.

    Args:
        classes: as in `ImageSource`.
        paths: one per image.
        labels: as in `ImageSource`.
        names: what messages call each image; its path where not given.
        places: where a table lists each image, for the error about a broken one.
        passed_over: as in `ImageSource`.
        multilabel: as in `ImageSource`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        paths: Sequence[str],
        labels: Sequence[Label],
        *,
        names: Sequence[str] | None = None,
        places: Sequence[str] | None = None,
        passed_over: Sequence[str] = (),
        multilabel: bool = False,
    ) -> None:
        super().__init__(classes, labels, multilabel=multilabel)
        self.passed_over = tuple(passed_over)
        self._paths = tuple(paths)
        self._names = self._paths if names is None else tuple(names)
        self._places = None if places is None else tuple(places)

    def image(self, index: int, need: Need | None = None) -> Image.Image:
        """The RGB image."""
        place = "" if self._places is None else f" ({self._places[index]})"
        return open_image(self._paths[index], name=self._names[index] + place, need=need)

    def file(self, index: int) -> Path:
        """The image's path."""
        return Path(self._paths[index])

    def name(self, index: int) -> str:
        """The image's path, or the name that was given."""
        return self._names[index]


def open_folder(root: Path, request: Request, *, shown: Path | None = None) -> FileSource:
    """Read ``root/CLASS/**/image`` or ``root/{train,val}/CLASS/**/image``.

    The root holds splits where the names of its folders say so (`names.find_splits`), and else classes; a
    folder that is alone in it is looked through. Classes without a validation split are cut as
    `Splitting` says. Folds cut the training images. Run folders are left out.

    Args:
        root: the folder.
        request: which images to open.
        shown: what names and messages call the root; itself where None.

    Raises:
        UserError: as `open_images`; also folders that may be splits as well as classes.
    """
    tree = _Tree(str(root), str(shown or root))
    split, splitting = request.split, request.splitting
    top = _inner(tree, tree.root, request.classes)
    areas = _split_folders(tree, top) or {"train": top}
    if "train" not in areas and (split == "train" or splitting.folds is not None):
        raise UserError(
            f"{tree.show(top)} holds {os.path.basename(areas['val'])} but no train; "
            f"put the training images into {tree.show(os.path.join(top, 'train'))}"
        )
    if splitting.folds is not None:
        areas.pop("val", None)
    areas = {part: _inner(tree, folder, request.classes) for part, folder in areas.items()}
    if len(areas) == 2 and request.classes is None:
        _check_same_classes(tree, areas)
    is_cut = "val" not in areas
    found = _Found(loose=[] if areas.get("train") == top else tree.loose(top))
    for part, folder in areas.items():
        if is_cut or split in (part, "all"):
            found.scan(tree, folder)
    found.warn(tree)
    own = sorted(set(found.classes), key=natural_key)
    names, index = match_classes(own, request.classes, origin=tree.show(tree.root))
    number = {name: place for place, name in enumerate(own)}
    labels = [number[name] for name in found.classes]
    rows: Sequence[int] = range(len(labels))
    groups = Grouping(tree.show(tree.root), lambda row: tree.show(found.paths[row]), path=found.path).groups(
        splitting.group, rows, count=len(rows)
    )
    if is_cut:
        rows = splitting.rows(
            labels,
            split,
            origin=tree.show(tree.root),
            classes=own,
            names=found.inside.__getitem__,
            groups=groups,
        ).tolist()
    paths = [found.paths[row] for row in rows]
    source = FileSource(
        names,
        paths,
        [index[labels[row]] for row in rows],
        names=None if shown is None else [tree.renamed(path) for path in paths],
        passed_over=[tree.renamed(path) for path in (*found.passed_over, *found.loose)],
    )
    source.is_cut, source.groups = is_cut, taken(groups, rows)
    return source


@dataclass(frozen=True)
class _Tree:
    """A folder, and what it is called."""

    root: str
    shown: str

    def renamed(self, path: str) -> str:
        return path if self.shown == self.root else self.shown + path[len(self.root) :]

    def show(self, path: str) -> str:
        return one_line(self.renamed(path))

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, in natural order; hidden ones and run folders are left out."""
        with self._listing(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
        return sorted((n for n in names if not is_run_folder(os.path.join(folder, n))), key=natural_key)

    def loose(self, folder: str) -> list[str]:
        """Paths of the images in a folder itself, not below it, whether they are read or not."""
        with self._listing(folder) as entries:
            return sorted((e.path for e in entries if is_photo_name(e.name)), key=natural_key)

    def _listing(self, folder: str) -> os._ScandirIterator[str]:
        try:
            return os.scandir(folder)
        except OSError as error:
            raise UserError(
                f"cannot read the folder {self.show(folder)}: {error.strerror or error}"
            ) from error


@dataclass
class _Found:
    """Images of class folders, and what lies beside them."""

    paths: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    """The class of each image."""
    inside: list[str] = field(default_factory=list)
    """The path of each image in its class folder, with ``/`` between the parts."""
    passed_over: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    """Images outside the class folders."""
    runs: list[str] = field(default_factory=list)

    def path(self, row: int) -> str:
        """Return the path of an image in the folder of its split: ``CLASS/a/1.png``."""
        return f"{self.classes[row]}/{self.inside[row]}"

    def scan(self, tree: _Tree, root: str) -> None:
        """Add the images of the class folders in a folder."""
        loose, before = tree.loose(root), len(self.paths)
        self.loose += loose
        for name in tree.folders(root):
            folder = str(Path(root, name))
            images, passed_over, runs = (list(map(str, paths)) for paths in scan_images(folder))
            self.passed_over += passed_over
            self.runs += runs
            if not images and runs and not passed_over:
                continue  # a folder of runs
            if not images:
                kinds = sorted({os.path.splitext(path)[1].lower() or "no suffix" for path in passed_over})
                beside = f", only files of other kinds ({some_names(kinds)})" if kinds else ""
                raise UserError(
                    f"class folder {tree.show(folder)} holds no images{beside}; add some or remove it"
                )
            self.paths += images
            self.classes += [name] * len(images)
            self.inside += [path[len(folder) + 1 :].replace(os.sep, "/") for path in images]
        if len(self.paths) == before:
            found = "images but no class folders" if loose else "no class folders"
            raise UserError(
                f"{tree.show(root)} holds {found}; put the images of each class into a folder of its own, "
                f"as {tree.show(os.path.join(root, 'cat', '1.jpg'))}"
            )

    def warn(self, tree: _Tree) -> None:
        """Log what is left out."""
        passed_over, loose, runs = (
            [tree.renamed(path) for path in paths] for paths in (self.passed_over, self.loose, self.runs)
        )
        warn_of_passed_over(tree.shown, passed_over, loose=loose, runs=runs)


def _inner(tree: _Tree, folder: str, classes: Sequence[str] | None) -> str:
    """Return the folder that holds classes or splits, below folders that each hold nothing but one.

    Kaggle and archives put sets into folders of their own: ``set/set/cat``, ``seg_train/seg_train/cat``.
    """
    names = tree.folders(folder)
    if len(names) != 1 or tree.loose(folder) or names[0] in (classes or ()):
        return folder
    inner = os.path.join(folder, names[0])
    means_split = parse_split(names[0]) is not None and names[0] != os.path.basename(folder)
    if means_split or os.path.islink(inner):  # a link may lead in a circle
        return folder
    inner = _inner(tree, inner, classes)
    inside = tree.folders(inner)
    holds_sets = len(inside) > 1 or any(parse_split(name) is not None for name in inside)
    return inner if holds_sets and not tree.loose(inner) else folder


def _split_folders(tree: _Tree, root: str) -> dict[Split, str]:
    """Return the paths of the folders of the splits where the root holds splits; else nothing."""
    folders = tree.folders(root)
    found = find_splits(folders, origin=tree.show(root))
    parts = {part: os.path.join(root, name) for part, name in found.items()}
    beside = [name for name in folders if name not in found.values()]
    if len(parts) == 2:
        beside = [name for name in beside if parse_split(name) is None and _has_images(tree, root, name)]
        if beside:
            _logger.warning("%s: left alone, as no split: %s", tree.show(root), some_names(beside))
        return parts
    if parts and not any(_has_images(tree, root, name) for name in beside):
        return parts
    unclear = [name for name in folders if parse_split(name) is not None and _may_be_split(tree, root, name)]
    if unclear:
        others = [name for name in folders if name not in unclear]
        what = "is a split or a class" if len(unclear) == 1 else "are splits or classes"
        raise UserError(
            f"{tree.show(root)}: it is unclear whether {some_names(unclear)} {what}"
            f"{f' like {some_names(others)}' if others else ''}; call the splits train and val and keep them "
            "alone in a folder, or rename the class"
        )
    for name in folders:
        folder = os.path.join(root, name)
        inside = tree.folders(folder)
        if len(find_splits(inside, origin=tree.show(folder))) == 2:
            raise UserError(
                f"{tree.show(folder)} holds splits inside a class; put the splits first, as "
                f"{tree.show(os.path.join(root, 'train', name))}"
            )
    inner = {tuple(tree.folders(os.path.join(root, name))) for name in folders}
    if len(folders) > 1 and len(inner) == 1 and len(next(iter(inner))) > 1:
        _logger.warning(
            "%s: %s are taken for classes, though they hold the same folders (%s); if they are splits, "
            "call them train and val",
            tree.show(root),
            some_names(folders),
            some_names(next(iter(inner)), most=3),
        )
    return {}


def _may_be_split(tree: _Tree, root: str, name: str) -> bool:
    """Tell whether a folder could hold the class folders of a split."""
    folder = os.path.join(root, name)
    return len(tree.folders(folder)) > 1 and not tree.loose(folder)


def _has_images(tree: _Tree, root: str, name: str) -> bool:
    return bool(scan_images(os.path.join(root, name)).images)


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
