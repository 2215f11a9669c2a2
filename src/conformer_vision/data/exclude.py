"""Lists of images to leave out: a CSV file with the columns ``image`` and ``reason``.

``image`` is the image's name as the source and its messages give it (``ImageSource.name``). Names are
compared as absolute paths without ``.``, ``..`` and doubled slashes, links not resolved, so it does not
matter whether the data was given by a relative or an absolute path. A relative name counts from the
working folder; `write_exclusions` writes absolute ones. Rows of named sets (``digits row 5``,
``torch/mnist train row 5``) are not paths and are compared as they are.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from conformer_vision.errors import UserError, some_names
from conformer_vision.files import atomic_path

from .base import ImageSource, SubsetSource

_COLUMNS = ("image", "reason")
_NAMED_ROW = re.compile(r"(digits|hfds/.*|torch/.*) row [0-9]+", re.DOTALL)


class ExcludedSource(SubsetSource):
    """A source without some of its images.

    Attributes:
        unmatched: the names to leave out, in normal form, that no image of the source has. A list
            for a whole set names images of both its splits, so a name is wrong where it is
            unmatched in each of them.
    """

    def __init__(self, source: ImageSource, rows: list[int], *, unmatched: frozenset[str]) -> None:
        super().__init__(source, rows)
        self.unmatched = unmatched


def exclude(source: ImageSource, names: Iterable[str], *, every_class: bool = True) -> ExcludedSource:
    """The source without the images of these names; its classes stay as they are.

    Args:
        source: the images.
        names: names as ``source.name`` gives them; see above for how they are compared.
        every_class: refuse to leave out the last image of a class. False where a class may do
            without, as in validation.

    Raises:
        UserError: no image would be left, of the source or of a class.
    """
    wanted = {normal_name(name) for name in names}
    found = set()
    rows = []
    for row in range(len(source) if wanted else 0):
        name = normal_name(source.name(row))
        if name in wanted:
            found.add(name)
        else:
            rows.append(row)
    if not wanted:
        rows = list(range(len(source)))
    if found and not rows:
        raise UserError(f"all {len(source)} images are to be left out; shorten the list of exclusions")
    if found and every_class:
        labels = np.asarray(source.labels)
        lost = sorted(set(labels.tolist()) - set(labels[rows].tolist()))
        if lost:
            raise UserError(
                f"every image of the class {some_names(source.classes[label] for label in lost)} "
                "is to be left out; keep some, or take the class out of the data"
            )
    return ExcludedSource(source, rows, unmatched=frozenset(wanted - found))


def normal_name(name: str) -> str:
    """The form in which names are compared: an absolute path, or the row of a set with a name."""
    return name if _NAMED_ROW.fullmatch(name) else os.path.abspath(name)


def read_exclusions(path: str | Path) -> frozenset[str]:
    """Read the names in a list, in the form in which they are compared.

    Raises:
        UserError: the file cannot be read, is not CSV, has no column ``image``, or lacks a name.
    """
    path = Path(path)
    try:
        # File names need not be UTF-8: other bytes are read the way Python reads them in a path.
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"cannot read the list of exclusions {path}: {error.strerror or error}") from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    names = set()
    try:
        if "image" not in (rows.fieldnames or ()):
            raise UserError(f"{path}: the first line must be {','.join(_COLUMNS)}, as check --fix writes it")
        for row in rows:
            if not row["image"]:
                raise UserError(f"{path} line {rows.line_num}: the column image is empty; name an image")
            names.add(normal_name(row["image"]))
    except csv.Error as error:
        raise UserError(f"{path} line {rows.reader.line_num}: not valid CSV ({error})") from error
    return frozenset(names)


def write_exclusions(path: str | Path, entries: Iterable[tuple[str, str]]) -> None:
    """Write a list that `read_exclusions` reads.

    Args:
        path: file to write.
        entries: name and reason of each image; relative paths are made absolute.

    Raises:
        UserError: the file cannot be written.
    """
    # CSV's own line end, \r\n: with another one Python 3.11 does not quote a \r inside a name.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows((normal_name(name), " ".join(reason.split())) for name, reason in entries)
