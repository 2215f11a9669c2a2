"""Sets of torchvision by the names that timm gives them: ``torch/cifar10``, ``torch/mnist``, ...

timm opens them; here they become sources with class names, splits and messages like all others.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.environment import package_cache
from conformer_vision.errors import UserError, nearest, reason_of

from .base import ImageSource, match_classes
from .folder import FileSource, open_folder
from .groups import Grouping, taken
from .objects import DatasetSource
from .splits import Request, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIXELS = ("cifar10", "cifar100", "fashion_mnist", "kmnist", "mnist", "qmnist")  # sets kept as arrays
_FILES = ("imagenet", "inat", "inaturalist", "places365")  # sets of image files
_FOLDERS = ("folder", "image_folder")
_CHARACTERS = ("kmnist", "mnist", "qmnist")  # mirrored, a character is none or another


def open_named(name: str, request: Request) -> ImageSource:
    """Open a set of torchvision.

    Validation images are the set's test or validation part. What is not in ``data_dir`` is
    downloaded there, as far as torchvision can do so; it checks the files it unpickles by their MD5.

    Args:
        name: as timm has it, whatever its case: ``cifar10``, ``cifar100``, ``mnist``, ``fashion_mnist``,
            ``kmnist``, ``qmnist``, ``places365``, ``inaturalist`` (2021), ``imagenet``; or
            ``image_folder`` for the class folders in ``data_dir``.
        request: which images to open. Its ``data_dir`` is where the set's files are; ``torch`` in this
            package's cache folder where None. Its folds cut the training images; its share is not used.

    Raises:
        UserError: an unknown name, a file that is not the published one, no network.
    """
    import numpy as np

    split, splitting, data_dir = request.split, request.splitting, request.data_dir
    key = name.lower()
    known = (*_PIXELS, *_FILES, *_FOLDERS)
    if key not in known:
        raise UserError(
            f"torch/{name} is not a set of torchvision that timm knows"
            f"{nearest(key, list(known)) or '; it knows ' + ', '.join(sorted(known))}"
        )
    if key in _FOLDERS:
        if data_dir is None:
            raise UserError(f"torch/{name} needs data_dir, the folder of class folders")
        return open_folder(data_dir, request)
    root = data_dir or package_cache("torch")
    wanted: tuple[Split, ...] = ("train", "val") if split == "all" else (split,)
    if splitting.folds is not None:
        wanted = ("train",)
    called: Callable[[int], str] = str
    parts = {part: _create(key, root, part) for part in wanted}
    if key in _FILES:
        classes, paths, labels = _files(key, list(parts.values()))
        called = [os.path.basename(path) for path in paths].__getitem__
    else:
        classes = [str(name) for name in next(iter(parts.values())).classes]
        labels = np.concatenate([_labels(key, root, data) for data in parts.values()])
    names, index = match_classes(classes, request.classes, origin=f"torch/{key}")
    rows = np.arange(len(labels))
    # Class and file, as the rest depends on where the set is.
    path = (lambda row: "/".join(Path(paths[row]).parts[-2:])) if key in _FILES else None
    groups = Grouping(f"torch/{key}", lambda row: f"torch/{key} row {row}", path=path).groups(
        splitting.group, rows.tolist(), count=len(rows)
    )
    if splitting.folds is not None:
        rows = splitting.rows(
            labels, split, origin=f"torch/{key}", classes=classes, names=called, groups=groups
        )
    picked = np.asarray(index)[labels[rows]]
    if key in _FILES:
        source: ImageSource = FileSource(names, [paths[row] for row in rows], picked.tolist())
    else:
        source = DatasetSource(
            {f"torch/{key} {'train' if part == 'train' else 'test'}": data for part, data in parts.items()},
            labels,
            rows=rows,
            classes=names,
            labels=picked,
            mirrorable=key not in _CHARACTERS,
        )
    source.is_cut, source.groups = splitting.folds is not None, taken(groups, rows.tolist())
    return source


def _files(key: str, parts: Sequence[Any]) -> tuple[list[str], list[str], NDArray[np.int64]]:
    """Class names, paths and labels of sets of image files."""
    import numpy as np

    if key in ("inat", "inaturalist"):
        classes = [str(name) for name in parts[0].all_categories]
        found = [
            (os.path.join(data.root, classes[label], file), label)
            for data in parts
            for label, file in data.index
        ]
    else:  # a class of ImageNet has several names
        classes = [", ".join(name) if isinstance(name, tuple) else str(name) for name in parts[0].classes]
        found = [(str(path), label) for data in parts for path, label in data.imgs]
    return classes, [path for path, _ in found], np.array([label for _, label in found], np.int64)


def _labels(key: str, root: Path, data: Any) -> NDArray[np.int64]:
    """The labels of a set that is kept as an array."""
    import numpy as np

    labels = np.asarray(data.targets, np.int64)
    if labels.ndim == 2:  # QMNIST keeps more than the digit about each image
        labels = labels[:, 0]
    if len(data.data) != len(labels) or not 0 <= labels.min(initial=0) <= labels.max(initial=-1) < len(
        data.classes
    ):
        raise UserError(f"torch/{key}: its files in {root} do not belong together; delete them")
    return labels


def _create(key: str, root: Path, part: Split) -> Any:
    """torchvision's dataset; its files are downloaded where they are missing."""
    from timm.data import create_dataset

    _check_published(key, root)
    error: Exception = UserError("nothing was tried")
    for download in (False, True):
        try:
            with redirect_stdout(sys.stderr):  # torchvision prints what it downloads
                return create_dataset(
                    f"torch/{key}",
                    root=str(root),
                    split="train" if part == "train" else "validation",
                    download=download,
                )
        except (RuntimeError, OSError) as missing:  # so says torchvision of files that are not there
            error = missing
        except (ValueError, TypeError, KeyError, EOFError, AssertionError, pickle.UnpicklingError) as damage:
            raise UserError(f"torch/{key}: its files in {root} are damaged; delete them") from damage
    raise UserError(
        f"torch/{key} can neither be read from {root} nor downloaded ({reason_of(error)}); put its files "
        "there, or give data_dir"
    ) from error


def _check_published(key: str, root: Path) -> None:
    """Refuses pickles that are not those that were published, before anything opens them."""
    if key not in ("cifar10", "cifar100"):
        return
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import check_integrity

    kind = CIFAR10 if key == "cifar10" else CIFAR100
    meta = kind.meta["filename"], kind.meta["md5"]
    for name, md5 in (*kind.train_list, *kind.test_list, meta):
        path = root / kind.base_folder / name
        if os.path.lexists(path) and not (md5 and check_integrity(str(path), md5)):
            raise UserError(f"{path} is not the file that was published (its MD5 differs); delete it")
