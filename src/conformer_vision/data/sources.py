"""One way to open labelled images, whatever form they come in."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path

from .base import ImageSource, Split, Splitting

if TYPE_CHECKING:
    from .streams.base import ImageStream

DIGITS = "digits"
_STREAM_PREFIXES = ("hfids", "wds", "litdata")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".txz", ".tbz2")
_TABLE_SUFFIXES = (".csv", ".tsv")


def open_source(
    spec: str | Path,
    *,
    split: Split,
    val_fraction: float = 0.1,
    seed: int = 0,
    folds: int | None = None,
    fold: int = 0,
    classes: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
) -> ImageSource:
    """Opens one part of a set of labelled images.

    Args:
        spec: what holds the images. The names and prefixes below win over a file or folder that is
            called so; give that as ``./digits``.

            - a folder of class folders, or with ``train`` and ``val`` of class folders
              (`folder.open_folder`), or a zip or tar archive of one (`archive.open_archive`)
            - a parquet file, a folder of parquet files or a glob (`parquet.open_parquet`)
            - a CSV or TSV file of paths and labels (`table.open_table`)
            - a folder written by ``datasets``' ``save_to_disk``, or ``hfds/NAME`` for a set of the
              Hugging Face hub (`hub.open_saved`, `hub.open_hub`)
            - ``torch/NAME`` for a set of torchvision, as timm calls it (`named.open_named`)
            - the name ``digits``, scikit-learn's 1,797 handwritten digits
        split: ``train`` or ``val``, or ``all`` for both together.
        val_fraction: share of every class held out where the set has no split of its own; at
            least one image of a class that has two.
        seed: seed of that split.
        folds: number of stratified folds to cut the set, or its training part where it has a
            split of its own, into; the share is then not used.
        fold: the fold that is the validation part, from 0; the others are for training.
        classes: class names of a trained model; labels are matched to them by name.
        data_dir: where sets with a name are kept: the cache of ``datasets`` for ``hfds/``, the root
            for ``torch/``. Other forms do not look at it.

    Raises:
        UserError: nothing there, an unknown layout, an empty class, a single class, a label or a
            class that cannot be; the line names it. Or a set that can only be streamed.
    """
    if is_stream(spec):
        raise UserError(
            f"{spec} is a stream, whose images cannot be taken by number; give it to training or "
            "evaluation, or copy the images into class folders"
        )
    splitting = _splitting(split, val_fraction=val_fraction, seed=seed, folds=folds, fold=fold)
    name = None if isinstance(spec, Path) else spec
    if name == DIGITS:
        from .digits import DigitsSource

        return DigitsSource(split=split, splitting=splitting, classes=classes)
    if name is not None and (prefix := _prefix(name)) in ("hfds", "torch"):
        data_dir = None if data_dir is None else Path(data_dir).expanduser()
        name = name.partition("/")[2]
        if prefix == "hfds":
            from .hub import open_hub

            return open_hub(name, split=split, splitting=splitting, classes=classes, data_dir=data_dir)
        from .named import open_named

        return open_named(name, split=split, splitting=splitting, classes=classes, data_dir=data_dir)
    return _open_path(_local_path(spec), split=split, splitting=splitting, classes=classes)


def open_data(
    spec: str | Path,
    *,
    split: Split,
    val_fraction: float = 0.1,
    seed: int = 0,
    folds: int | None = None,
    fold: int = 0,
    classes: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
) -> ImageSource | ImageStream:
    """Opens one part of a set, a stream of images among them; else as `open_source`.

    Streams are ``hfids/NAME``, ``wds/...``, ``litdata/...`` and a folder in litdata's format; see
    `streams.open_stream`.

    Raises:
        UserError: as `open_source`.
    """
    if not is_stream(spec):
        return open_source(
            spec,
            split=split,
            val_fraction=val_fraction,
            seed=seed,
            folds=folds,
            fold=fold,
            classes=classes,
            data_dir=data_dir,
        )
    splitting = _splitting(split, val_fraction=val_fraction, seed=seed, folds=folds, fold=fold)
    from .streams import open_stream

    return open_stream(spec, split=split, splitting=splitting, classes=classes, data_dir=data_dir)


def is_stream(spec: str | Path) -> bool:
    """Whether the images of the set come one after the other: a stream's prefix, or litdata's folder."""
    if not isinstance(spec, Path) and _prefix(spec) in _STREAM_PREFIXES:
        return True
    index = _local_path(spec) / "index.json"
    if not os.path.isfile(index):
        return False
    try:  # a folder of class folders may hold some other index.json
        with open(index, "rb") as file:
            return b'"chunks"' in file.read(1 << 16)
    except OSError:
        return False


def _splitting(split: Split, *, val_fraction: float, seed: int, folds: int | None, fold: int) -> Splitting:
    if split not in ("train", "val", "all"):
        raise UserError(f"split {split!r}: must be train, val or all")
    return Splitting(val_fraction, seed, folds, fold)


def _local_path(spec: str | Path) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError:  # "~name" of a user that does not exist is a name like any other
        return Path(spec)


def _prefix(spec: str) -> str:
    prefix, slash, _ = spec.partition("/")
    return prefix.lower() if slash else ""


def _open_path(
    path: Path, *, split: Split, splitting: Splitting, classes: Sequence[str] | None
) -> ImageSource:
    if not os.path.lexists(path) and not glob.has_magic(str(path)):
        raise UserError(f"{path} does not exist{_suggestion(path)}")

    from .folder import open_folder
    from .parquet import is_parquet, open_parquet

    if path.is_file() and path.name.lower().endswith(_ARCHIVE_SUFFIXES):
        from .archive import open_archive

        return open_archive(path, split=split, splitting=splitting, classes=classes)
    if path.is_file() and path.name.lower().endswith(_TABLE_SUFFIXES):
        from .table import open_table

        return open_table(path, split=split, splitting=splitting, classes=classes)
    if is_saved_dataset(path):
        from .hub import open_saved

        return open_saved(path, split=split, splitting=splitting, classes=classes)
    if is_parquet(path):
        return open_parquet(path, split=split, splitting=splitting, classes=classes)
    return open_folder(path, split=split, splitting=splitting, classes=classes)


def is_saved_dataset(path: Path) -> bool:
    """Whether ``datasets``' ``save_to_disk`` wrote the folder: a set, or several splits of one."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def write_examples(source: ImageSource, folder: str | Path, *, count: int, seed: int = 0) -> list[Path]:
    """Writes images drawn at random as PNG files ``CLASS_NUMBER.png``, in the order of their numbers.

    Args:
        source: where to draw from.
        folder: made where it is missing.
        count: images to write.
        seed: seed of the draw.

    Raises:
        UserError: more images than the source has, or a folder that cannot be written.
    """
    import numpy as np

    if not 0 < count <= len(source):
        raise UserError(f"count {count}: must be from 1 to the {len(source)} images of the source")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    paths = []
    for index in sorted(np.random.default_rng(seed).permutation(len(source))[:count].tolist()):
        image, label = source[index]
        name = re.sub(r"[^\w.-]+", "_", source.classes[label])
        paths.append(folder / f"{name}_{index:05d}.png")
        with atomic_path(paths[-1]) as temporary:
            image.save(temporary)
    return paths


def _suggestion(path: Path) -> str:
    try:
        beside = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except OSError:
        beside = []
    near = difflib.get_close_matches(path.name, [*beside, DIGITS], n=1)
    if not near:
        return "; give a folder or archive of class folders, a table, parquet files, or a name such as digits"
    return f"; did you mean {path.parent / near[0] if near[0] in beside else near[0]}?"
