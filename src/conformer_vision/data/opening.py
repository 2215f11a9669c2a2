"""One way to open labelled images, whatever form they come in."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError
from conformer_vision.extras import naming_extras

from .base import ImageSource
from .splits import Request, Split, Splitting

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .stream import ImageStream

DIGITS = "digits"
_OBJECT = "dataset/"  # what config.yaml records of a Python object

_NAMED = {
    "hfds": "hub.open_hub",
    "hfids": "hub_stream.open_hub_stream",
    "torch": "named.open_named",
    "wds": "webdataset.open_webdataset",
}
"""What opens ``PREFIX/NAME``; called with NAME and a `Request`."""


_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".txz", ".tbz2")
_TABLES = (".csv", ".tsv")


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_ARCHIVES)


def _is_table(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_TABLES)


def _is_saved(path: Path) -> bool:
    """Whether ``datasets``' ``save_to_disk`` wrote the folder: a set, or several splits of one."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _is_parquet(path: Path) -> bool:
    """Whether the path is a file, a glob, or a folder with parquet files in it or in its ``data/``."""
    if path.is_dir():
        return any(any(folder.glob("[!.]*.parquet")) for folder in (path, path / "data"))
    return path.is_file() or glob.has_magic(str(path))


_FORMS: tuple[tuple[Callable[[Path], bool], str], ...] = (
    (_is_archive, "archive.open_archive"),
    (_is_table, "table.open_table"),
    (_is_saved, "hub.open_saved"),
    (_is_parquet, "parquet.open_parquet"),
    (lambda path: True, "folder.open_folder"),
)
"""What a path may be: the first test that holds says what opens it; called with the path and a `Request`."""


def open_images(
    spec: str | Path | Dataset[Any],
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
            - a CSV or TSV file of paths and labels (`table.open_table`)
            - a parquet file, a folder of parquet files or a glob (`parquet.open_parquet`)
            - a folder written by ``datasets``' ``save_to_disk``, or ``hfds/NAME`` for a set of the
              Hugging Face hub (`hub.open_saved`, `hub.open_hub`)
            - ``torch/NAME`` for a set of torchvision, as timm calls it (`named.open_named`)
            - the name ``digits``, scikit-learn's 1,797 handwritten digits
            - ``hfids/NAME`` for a stream of the hub, ``wds/PATTERN`` for tar shards
              (`hub_stream.open_hub_stream`, `webdataset.open_webdataset`)
            - a ``torch.utils.data.Dataset`` of (image, label) with ``classes``
              (`objects.open_dataset`)
        split: ``train`` or ``val``, or ``all`` for both together.
        splitting: how to cut a set without a validation split of its own.
        classes: class names of a trained model; labels are matched to them by name.
        data_dir: the cache of ``datasets`` for ``hfds/`` and ``hfids/``, the root for ``torch/``, the folder
            that relative paths of ``wds/`` start from. Other forms ignore it.

    Raises:
        UserError: nothing there, an unknown layout, an empty class, a single class, or an invalid
            label or class; the line names it.
    """
    folder = None if data_dir is None else Path(data_dir).expanduser()
    request = Request(split, splitting, classes, folder)
    if not isinstance(spec, (str, Path)):
        return _call("objects.open_dataset", spec, request)
    if isinstance(spec, str):
        if spec == DIGITS:
            return _call("digits.open_digits", DIGITS, request)
        prefix, slash, name = spec.partition("/")
        if slash and prefix.lower() in _NAMED:
            if not name:
                raise UserError(f"{spec} names nothing; give what to read after the slash")
            return _call(_NAMED[prefix.lower()], name, request)
        if spec.startswith(_OBJECT) and not os.path.lexists(spec):
            raise UserError(f"{spec} was a Python object, which no file records; pass the data again")
    path = _local_path(spec)
    if not os.path.lexists(path) and not glob.has_magic(str(path)):
        raise UserError(f"{path} does not exist{_suggestion(path)}")
    return _call(next(opener for holds, opener in _FORMS if holds(path)), path, request)


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


def absolute_spec(spec: str, data_dir: str | None = None) -> str:
    """Return a spec that means the same in any working folder: local paths in it become absolute.

    Args:
        spec: as in `open_images`.
        data_dir: as in `open_images`; relative paths of ``wds/`` start from it.
    """
    prefix, slash, name = spec.partition("/")
    if slash and prefix.lower() in _NAMED:
        path, config = name, ""
        if prefix.lower() in ("hfds", "hfids"):
            path, colon, config = name.partition(":")
            config = colon + config
        shards = prefix.lower() == "wds" and data_dir is None and "://" not in name
        local = bool(path) and (shards or (prefix.lower() != "wds" and os.path.isdir(_local_path(path))))
        return f"{prefix}/{os.path.abspath(_local_path(path))}{config}" if local else spec
    if spec == DIGITS or (spec.startswith(_OBJECT) and not os.path.lexists(spec)):
        return spec
    return os.path.abspath(_local_path(spec))


def describe(spec: str | Path | Dataset[Any]) -> str:
    """What to call a spec in messages and config.yaml.

    A Python object becomes ``dataset/CLASS``, and `open_images` then asks for the object.
    """
    if isinstance(spec, (str, Path)):
        return str(spec)
    from .objects import describe as describe_object

    return describe_object(spec)


def _call(opener: str, what: object, request: Request) -> ImageSource | ImageStream:
    module, _, name = opener.partition(".")
    with naming_extras():
        opened: ImageSource | ImageStream
        opened = getattr(import_module(f"{__package__}.{module}"), name)(what, request)
        return opened


def _local_path(spec: str | Path) -> Path:
    try:
        return Path(spec).expanduser()
    except RuntimeError:  # "~name" of a user that does not exist is a name like any other
        return Path(spec)


def _suggestion(path: Path) -> str:
    try:
        beside = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except OSError:
        beside = []
    near = difflib.get_close_matches(path.name, [*beside, DIGITS], n=1)
    if not near:
        return "; give a folder or archive of class folders, a table, parquet files, or a name such as digits"
    return f"; did you mean {path.parent / near[0] if near[0] in beside else near[0]}?"
