"""Find image files in folders, and say which files are passed over."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from conformer_vision.errors import UserError, one_line, some_names
from conformer_vision.runs import is_run_folder

from .images import IMAGE_EXTENSIONS
from .names import parse_split

_PHOTO_EXTENSIONS = frozenset(
    re.findall(
        r"\.\w+",
        ".3fr .ai .arw .cr2 .cr3 .dcm .dng .eps .erf .exr .hdr .heic .heics .heif .heifs .hif .jxl .jxr .kdc "
        ".mrw .nef .nrw .orf .pdf .pef .ps .raf .raw .rw2 .sr2 .srw .svg .wmf .x3f .xcf",
    )
)
"""Suffixes of other images."""

PARQUET_SUFFIXES = (".parquet", ".pq")

_OF_SYSTEMS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))

_logger = logging.getLogger(__name__)


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key that puts "img2" before "img10" and ignores case; equal only for equal names."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


class Found(NamedTuple):
    """What is in and below a folder."""

    images: list[Path]
    """In natural order."""
    passed_over: list[Path]
    """Files that are not images, or of no format that is read; those that systems leave are not listed."""
    runs: list[Path]
    """Run folders, whose files are not listed."""


def scan_images(folder: str | os.PathLike[str]) -> Found:
    """List the images in and below a folder, by suffix.

    Hidden files and folders, and run folders, are left out. Links to folders are followed, each folder once
    and none upwards, so a loop of links ends.

    Raises:
        UserError: a folder that cannot be read.
    """
    found = Found([], [], [])
    for one in walk_images(folder):
        for paths, more in zip(found, one, strict=True):
            paths += more
    for paths in found:
        paths.sort(key=lambda path: natural_key(str(path)))
    return found


def walk_images(folder: str | os.PathLike[str]) -> Iterator[Found]:
    """Yield what each folder in and below a folder holds, as `scan_images` finds it; its files in no order.

    A folder comes before those in it, which follow in natural order.

    Raises:
        UserError: a folder that cannot be read.
    """
    # A link up to a parent would bring in what lies beside the folder, so parents count as seen.
    seen = {str(path) for path in Path(os.path.realpath(folder)).parents}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if is_run_folder(parent):
            folders.clear()
            yield Found([], [], [Path(parent)])
            continue
        # In sorted order, so that of two ways to one folder every machine takes the same.
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        yield Found(
            [Path(parent, name) for name in files if is_image_name(name)],
            [Path(parent, name) for name in files if is_passed_over(name)],
            [],
        )


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images in and below a folder as `scan_images` does, and log a warning of what is passed over.

    Raises:
        UserError: a folder that cannot be read.
    """
    found = scan_images(folder)
    passed_over, runs = ([str(path) for path in paths] for paths in (found.passed_over, found.runs))
    warn_of_passed_over(str(folder), passed_over, runs=runs)
    return found.images


def warn_of_passed_over(
    folder: str, files: Sequence[str], *, runs: Sequence[str], loose: Sequence[str] = ()
) -> None:
    """Log what is passed over in a folder: how many, of what kinds, and the first few; once per process.

    Args:
        folder: what the messages call the folder.
        files: files that are no images, or of no format that is read.
        runs: run folders.
        loose: images outside the class folders.
    """
    if files:
        kinds = Counter(os.path.splitext(name)[1].lower() or "no suffix" for name in files)
        told = ", ".join(f"{kind} {count:,}" for kind, count in kinds.most_common(5))
        heic = "; for HEIC: pip install pillow-heif" if kinds.keys() & {".heic", ".heif", ".hif"} else ""
        _warn_once(folder, f"passed over # that are no images of a format that is read ({told}{heic})", files)
    if loose:
        _warn_once(folder, "passed over # in no class folder", loose, what="image")
    if runs:
        _warn_once(folder, "left out #", runs, what="run folder")


_said: set[tuple[str, str]] = set()


def warn_once(origin: str, text: str) -> None:
    """Log a warning about a set; once per process, as every split of a set is opened."""
    key = (os.path.abspath(origin), text)  # data may be given by other paths later
    if key not in _said:
        _said.add(key)
        _logger.warning("%s: %s", one_line(origin), text)


def _warn_once(folder: str, text: str, names: Sequence[str], *, what: str = "file") -> None:
    inside = [os.path.relpath(name, folder) for name in names[:4]] + list(names[4:])
    count = f"{len(names):,} {what}{'s' * (len(names) > 1)}"
    warn_once(folder, f"{text.replace('#', count)}: {some_names(inside, most=3)}")


def find_parquet(folder: Path) -> list[Path]:
    """List the parquet files in a folder, or in its ``data``, or in folders of theirs that mean splits."""
    for parent in (folder, folder / "data"):
        inner = [path for path in parent.glob("[!.]*") if parse_split(path.name) and path.is_dir()]
        for places in ([parent], inner):
            beside = [path for place in places for path in place.glob("[!.]*")]
            if found := [path for path in beside if path.suffix.lower() in PARQUET_SUFFIXES]:
                return sorted(found, key=lambda path: natural_key(str(path)))
    return []


def is_image_name(name: str) -> bool:
    """Tell whether a file name has the suffix of an image that is read, and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def is_passed_over(name: str) -> bool:
    """Tell whether a file is neither such an image, nor hidden, nor one that systems leave."""
    return not (is_image_name(name) or name.startswith(".") or name.lower() in _OF_SYSTEMS)


def is_photo_name(name: str) -> bool:
    """Tell whether a file name has the suffix of an image, whether it is read or not, and is not hidden."""
    return is_image_name(name) or (
        not name.startswith(".") and os.path.splitext(name)[1].lower() in _PHOTO_EXTENSIONS
    )


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error
