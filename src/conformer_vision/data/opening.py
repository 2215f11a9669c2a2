"""One way to open labelled images, whatever form they come in."""

from __future__ import annotations

import difflib
import glob
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, option, words
from conformer_vision.extras import naming_extras

from .base import ImageSource, OneHotSource
from .find import PARQUET_SUFFIXES, find_parquet, is_photo_name
from .images import BrokenImageError, open_image
from .splits import Request, Split, Splitting
from .stream import ImageStream, OneHotStream

if TYPE_CHECKING:
    from torch.utils.data import Dataset

DIGITS = "digits"
_OBJECT = "dataset/"  # what config.yaml records of a Python object

_NAMED = {
    "hfds": "hub.open_hub",
    "hfids": "hub_stream.open_hub_stream",
    "torch": "named.open_named",
    "wds": "webdataset.open_webdataset",
}
"""What opens ``PREFIX/NAME``; called with NAME and a `Request`."""


_TARS = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2", ".txz", ".tbz2")

_PACKED = "packed file that is not read"
_OTHERS = (
    ("video", "give images: ffmpeg -i VIDEO FOLDER/CLASS/%05d.jpg", "mp4 m4v mov avi mkv webm wmv mpg flv"),
    (_PACKED, "unpack it and give the folder", "7z rar gz bz2 xz zst lz4 iso"),
    ("spreadsheet", "save it as CSV", "xls xlsx xlsm ods numbers"),
    ("text file", "give a CSV file with the columns path and label", "txt md json jsonl yaml yml xml html"),
    ("document", "give images", "pdf doc docx ppt pptx odt ps eps svg"),
    ("file of arrays", "give images", "npy npz h5 hdf5 mat pkl pickle lmdb tfrecord arrow feather db sqlite"),
    ("model", "give the images that it is for", "pt pth ckpt safetensors onnx pt2 bin"),
)
"""Files that are no set of images: what they are, the remedy, and their suffixes."""

_MARKS = (
    ("video", rb".{4}ftyp(?!avif|avis|hei|hev|mif1|msf1)|\x1aE\xdf\xa3|RIFF.{4}AVI|\0\0\x01[\xb3\xba]|FLV"),
    (_PACKED, rb"7z\xbc\xaf|Rar!\x1a|\x28\xb5\x2f\xfd"),
    ("document", rb"%PDF|%!PS"),
    ("file of arrays", rb"\x89HDF|\x93NUMPY|ARROW1"),
)
"""How such files begin."""


def _other_kind(path: Path) -> str | None:
    """Return what a file is that is no set of images, by its beginning or else by its suffix."""
    is_tar = _ends(path, *_TARS)
    head = _head(path)
    for kind, mark in _MARKS:
        if re.match(mark, head, re.DOTALL) and (kind == _PACKED or not is_tar):  # a tar begins with a name
            return kind
    suffix = path.suffix.lower().removeprefix(".")
    return next((kind for kind, _, suffixes in _OTHERS if suffix in suffixes.split() and not is_tar), None)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _ends(path: Path, *suffixes: str) -> bool:
    return path.name.lower().endswith(suffixes)


def _is_archive(path: Path) -> bool:
    if not path.is_file() or _other_kind(path) is not None:
        return False
    return _ends(path, ".zip", *_TARS) or zipfile.is_zipfile(path)


def _is_table(path: Path) -> bool:
    return path.is_file() and _ends(path, ".csv", ".tsv")


def _is_saved(path: Path) -> bool:
    """Whether ``datasets``' ``save_to_disk`` wrote the folder: a set, or several splits of one."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _is_parquet(path: Path) -> bool:
    """Whether the path is a parquet file, a glob, or a folder of such files."""
    if path.is_dir():
        return bool(find_parquet(path))
    if path.is_file():
        return _ends(path, *PARQUET_SUFFIXES) or _head(path).startswith(b"PAR1")
    return glob.has_magic(str(path))


_FORMS: tuple[tuple[Callable[[Path], bool], str], ...] = (
    (_is_table, "table.open_table"),
    (_is_saved, "hub.open_saved"),
    (_is_parquet, "parquet.open_parquet"),
    (_is_archive, "archive.open_archive"),
    (Path.is_dir, "folder.open_folder"),
)
"""What a path may be: the first test that holds says what opens it; called with the path and a `Request`."""


def open_images(
    spec: str | Path | Dataset[Any],
    split: Split,
    splitting: Splitting = Splitting(),  # noqa: B008  # immutable
    *,
    classes: Sequence[str] | None = None,
    multilabel: bool | None = None,
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
        multilabel: whether a trained model may give an image several labels: images of one label are then
            images of several that have one. None takes the data as it is.
        data_dir: the cache of ``datasets`` for ``hfds/`` and ``hfids/``, the root for ``torch/``, the folder
            that relative paths of ``wds/`` start from. Other forms ignore it.

    Raises:
        UserError: nothing there, an unknown layout, an empty class, a single class, an invalid
            label or class, or several labels per image for a model of one; the line names it.
    """
    images = _open(spec, split, splitting, classes, data_dir)
    if images.multilabel and multilabel is False:
        raise UserError(
            f"{describe(spec)} has several labels per image, but the model gives each image one; "
            "train a model on data of this kind, or give data with one label per image"
        )
    if multilabel and not images.multilabel:
        return OneHotSource(images) if isinstance(images, ImageSource) else OneHotStream(images)
    return images


_WITH_COLUMNS = (
    "table.open_table",
    "parquet.open_parquet",
    "hub.open_saved",
    "hub.open_hub",
    "hub_stream.open_hub_stream",
)


def _open(
    spec: str | Path | Dataset[Any],
    split: Split,
    splitting: Splitting,
    classes: Sequence[str] | None,
    data_dir: str | Path | None,
) -> ImageSource | ImageStream:
    folder = None if data_dir is None else Path(data_dir).expanduser()
    request = Request(split, splitting, classes, folder)
    if not isinstance(spec, (str, Path)):
        return _call("objects.open_dataset", spec, request)
    if isinstance(spec, str):
        if not spec:
            raise UserError(f"{option('data')} is empty; give a folder, a file or the name of a set")
        if spec == DIGITS:
            return _call("digits.open_digits", DIGITS, request)
        prefix, slash, name = spec.partition("/")
        if slash and prefix.lower() in _NAMED:
            if not name:
                raise UserError(f"{spec} names nothing; give what to read after the slash")
            return _call(_NAMED[prefix.lower()], name, request)
        if spec.startswith(_OBJECT) and not os.path.lexists(spec):
            again = words("use it from Python", "pass the data again")
            raise UserError(f"{spec} was a Python object, which no file records; {again}")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(spec)):
        raise UserError(f"{spec} is not fetched; download it, or give tar shards as wds/{spec}")
    path = _local_path(spec)
    if not os.path.lexists(path) and not glob.has_magic(str(path)):
        raise UserError(f"{path} does not exist{_suggestion(path)}")
    try:
        opener = next((opener for holds, opener in _FORMS if holds(path)), None)
        if opener is None:
            raise UserError(f"{path} {_what_it_is(path)}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return _call(opener, path, request)


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


def _what_it_is(path: Path) -> str:
    """Say what a path is that is no set of images, and the remedy."""
    if not path.exists():
        return "is a link to nothing"
    if not path.is_file():
        return "is neither a file nor a folder"
    if (kind := _other_kind(path)) is not None:
        return f"is a {kind}; {next(remedy for other, remedy, _ in _OTHERS if other == kind)}"
    if is_photo_name(path.name) or _decodes(path):
        return "is a single image; give a folder of class folders, or predict the image"
    return "is of no form that is read; give a folder or archive of class folders, a table, or parquet files"


def _decodes(path: Path) -> bool:
    try:
        open_image(path)
    except BrokenImageError:
        return False
    return True


def _call(opener: str, what: Any, request: Request) -> ImageSource | ImageStream:
    if opener not in _WITH_COLUMNS:
        for option_name in ("label_column", "label_separator"):
            if (given := getattr(request.splitting, option_name)) is not None:
                raise UserError(
                    f"{option(option_name, given)}: {describe(what)} has no columns; leave it out, "
                    "or give it empty for other data than a run's"
                )
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
