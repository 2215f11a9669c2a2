"""Exclusion lists: CSV files with the columns ``image`` and ``reason``.

``image`` is the image's name as the source and its messages give it (``ImageSource.name``).
``reason`` is for people and may be missing. Names are compared as absolute paths without ``.``,
``..`` and doubled slashes, and links are not resolved, so it does not matter whether the data was
given by a relative or an absolute path. A relative name counts from the working folder;
`write_exclusions` writes absolute ones. Rows of named sets (``digits row 5``, ``torch/mnist train
row 5``) are not paths and are compared as they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from conformer_vision.errors import UserError, some_names, words

from .base import ImageSource, SubsetSource, classes_of
from .csv_file import read_csv, write_csv

_COLUMNS = ("image", "reason")
_NAMED_ROW = re.compile(r"(digits|hfds/.*|torch/.*|dataset/.*) row [0-9]+", re.DOTALL)


class ExcludedSource(SubsetSource):
    """A source without some of its images.

    Attributes:
        unmatched: excluded names that no image of the source has. A list names images of both splits of a
            set, so a name is wrong only if it is unmatched in both.
    """

    def __init__(self, source: ImageSource, rows: Sequence[int], *, unmatched: frozenset[str]) -> None:
        super().__init__(source, rows)
        self.unmatched = unmatched


def exclude(source: ImageSource, names: Iterable[str], *, every_class: bool = True) -> ExcludedSource:
    """Leave images out of a source by name; its classes stay as they are.

    Args:
        source: the images.
        names: names as ``source.name`` returns them; see above for how they are compared.
        every_class: refuse to leave out the last image of a class; False for validation images.

    Raises:
        UserError: the source, or with ``every_class`` a class, would be left without images.
    """
    wanted = {normal_name(name) for name in names}
    called = [normal_name(source.name(row)) for row in range(len(source))] if wanted else []
    kept = [row for row, name in enumerate(called) if name not in wanted] if wanted else range(len(source))
    if len(source) and not kept:
        raise UserError(f"all {len(source)} images are excluded; shorten the exclusion list")
    lost = sorted(_classes_in(source, range(len(source))) - _classes_in(source, kept))
    if lost and every_class:
        raise UserError(
            f"every image of the class {some_names(source.classes[label] for label in lost)} "
            "is excluded; keep some, or remove the class from the data"
        )
    return ExcludedSource(source, kept, unmatched=frozenset(wanted.difference(called)))


def _classes_in(source: ImageSource, rows: Iterable[int]) -> set[int]:
    return {each for row in rows for each in classes_of(source.labels[row])}


def exclude_listed(
    train: ImageSource, val: ImageSource, path: str | Path
) -> tuple[ExcludedSource, ExcludedSource]:
    """Leave the images of a list out of both splits of a set.

    Raises:
        UserError: as `read_exclusions` and `exclude`, or a name that neither split has.
    """
    names = read_exclusions(path)
    kept_train, kept_val = exclude(train, names), exclude(val, names, every_class=False)
    if unknown := kept_train.unmatched & kept_val.unmatched:
        raise UserError(
            f"{path} names images that the data does not have: {some_names(sorted(unknown), most=3)}; "
            f"write the list anew with {words('conformer-vision check --fix', 'check(data, fix=list)')}"
        )
    return kept_train, kept_val


def normal_name(name: str) -> str:
    """Return a name as it is compared: an absolute path, or the row of a named set."""
    return name if _NAMED_ROW.fullmatch(name) else os.path.abspath(name)


def read_exclusions(path: str | Path) -> frozenset[str]:
    """Read the names of an exclusion list, as `normal_name` returns them.

    Raises:
        UserError: a file that cannot be read as CSV, has no column ``image``, or a row without a name.
    """
    path = Path(path)
    header, rows = read_csv(path, errors="surrogateescape")  # file names need not be UTF-8
    columns = [name.strip().lower() for name in header]
    if "image" not in columns:
        raise UserError(
            f"{path} is not an exclusion list: its first line must be {','.join(_COLUMNS)}, "
            f"not {some_names([','.join(header)])}"
        )
    place = columns.index("image")
    names = set()
    for line, cells in rows:
        if not cells[place] or "\0" in cells[place]:
            raise UserError(f"{path} line {line} names no image")
        names.add(normal_name(cells[place]))
    return frozenset(names)


def write_exclusions(path: str | Path, entries: Iterable[tuple[str, str]]) -> None:
    """Write a list that `read_exclusions` reads.

    Args:
        path: file to write.
        entries: name and reason of each image; paths are written as absolute ones.

    Raises:
        UserError: the file cannot be written.
    """
    rows = ((normal_name(name), " ".join(reason.split())) for name, reason in entries)
    write_csv(path, _COLUMNS, rows)
