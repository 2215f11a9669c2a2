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

from .base import ImageSource
from .splits import Split, Splitting

if TYPE_CHECKING:
    from .streams.base import ImageStream

DIGITS = "digits"
_STREAM_PREFIXES = ("hfids", "wds")
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".txz", ".tbz2")
_TABLE_SUFFIXES = (".csv", ".tsv")


def open_images(
    spec: str | Path,
    split: Split,
    splitting: Splitting = Splitting(),  # noqa: B008  # immutable
    *,
    classes: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
) -> ImageSource | ImageStream:
    """Open one split of a set of labelled images.

    Args:
        spec: what holds the images. The names and prefixes below win over a file or folder of the
            same name; write that as ``./digits``.

            - a folder of class folders, or with ``train`` and ``val`` of class folders
              (`folder.open_folder`), or a zip or tar archive of one (`archive.open_archive`)
            - a parquet file, a folder of parquet files or a glob (`parquet.open_parquet`)
            - a CSV or TSV file of paths and labels (`table.open_table`)
            - a folder written by ``datasets``' ``save_to_disk``, or ``hfds/NAME`` for a set of the
              Hugging Face hub (`hub.open_saved`, `hub.open_hub`)
            - ``torch/NAME`` for a set of torchvision, as timm calls it (`named.open_named`)
            - the name ``digits``, scikit-learn's 1,797 handwritten digits
            - ``hfids/NAME`` and ``wds/...`` for streams (`streams.open_stream`)
        split: ``train`` or ``val``, or ``all`` for both together.
        splitting: how to cut a set that has no validation images of its own.
        classes: class names of a trained model; labels are matched to them by name.
        data_dir: where named sets are kept: the cache of ``datasets`` for ``hfds/`` and ``hfids/``, the
            root for ``torch/``. Other forms ignore it.

    Raises:
        UserError: nothing there, an unknown layout, an empty class, a single class, or an invalid
            label or class; the line names it.
    """
    if split not in ("train", "val", "all"):
        raise UserError(f"split {split!r}: must be train, val or all")
    if is_stream(spec):
        from .streams import open_stream

        return open_stream(spec, split=split, splitting=splitting, classes=classes, data_dir=data_dir)
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


def require_source(images: ImageSource | ImageStream, *, name: object) -> ImageSource:
    """Narrow opened images to a source, for callers that take images by number.

    Args:
        images: what `open_images` returned.
        name: what an error calls them, such as the spec.

    Raises:
        UserError: the images are a stream.
    """
    if isinstance(images, ImageSource):
        return images
    raise UserError(
        f"{name} is a stream, whose images cannot be taken by number; give it to training or "
        "evaluation, or copy the images into class folders"
    )


def is_stream(spec: str | Path) -> bool:
    """Whether the images of the set come one after the other: whether it has a stream's prefix."""
    return not isinstance(spec, Path) and _prefix(spec) in _STREAM_PREFIXES


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
