"""A table of images: a CSV or TSV file with a column of paths, one of labels and perhaps one of splits.

The names of the columns and what a split may be called hold for parquet files too.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from conformer_vision.errors import UserError, some_names

from .base import ImageSource, match_classes
from .folder import VAL_NAMES
from .images import natural_key, open_image
from .splits import Split, Splitting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_COLUMNS = ("image", "img", "path", "file", "file_name", "filename", "filepath")
"""Names of a column of images; the first that is there is taken."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
"""Names of a column of labels, likewise."""

SPLIT_COLUMN = "split"
"""Name of the column that says which part an image belongs to."""


class TableSource(ImageSource):
    """Image files that a table lists.

    Args:
        classes: as in `ImageSource`.
        table: the table's path.
        paths: the images' paths.
        lines: the line of the table that each comes from, from 1.
        labels: as in `ImageSource`.
    """

    def __init__(
        self,
        classes: Sequence[str],
        table: Path,
        *,
        paths: Sequence[str],
        lines: Sequence[int],
        labels: Sequence[int],
    ) -> None:
        super().__init__(classes, labels)
        self._table = table
        self._paths = tuple(paths)
        self._lines = tuple(lines)

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        path = self._paths[index]
        return open_image(path, name=f"{path} ({self._table} line {self._lines[index]})")

    def file(self, index: int) -> Path:
        """The image's path."""
        return Path(self._paths[index])

    def name(self, index: int) -> str:
        """The image's path."""
        return self._paths[index]


def open_table(
    path: Path, *, split: Split, splitting: Splitting, classes: Sequence[str] | None
) -> TableSource:
    """Reads a CSV or TSV file with a header.

    Columns are found by `IMAGE_COLUMNS`, `LABEL_COLUMNS` and `SPLIT_COLUMN`, whatever their case.
    Paths count from the table's folder. Labels are the names of classes, numbers too. Where there
    is a column ``split``, its words part the set as `split_parts` says; else it is split by seed.
    Arguments and errors are those of `open_images`.
    """
    import numpy as np

    table = _read(path)
    parts = split_parts(table.splits, where=table.where)
    used = np.concatenate(list(parts.values())) if parts else np.arange(len(table.labels))
    training = [table.labels[row] for row in parts.get("train", used)]
    own = sorted(set(training), key=natural_key)
    number = {name: index for index, name in enumerate(own)}
    for row in used:
        if table.labels[row] not in number:
            raise UserError(
                f"{table.where(row)}: label {table.labels[row][:100]!r} does not occur in the training part; "
                f"its classes are {some_names(own)}"
            )
    labels = np.array([number.get(name, -1) for name in table.labels])
    names, index = match_classes(own, classes, origin=str(path))
    rows = splitting.rows(labels, split, origin=str(path), parts=parts)
    return TableSource(
        names,
        path,
        paths=[os.path.join(path.parent, table.images[row]) for row in rows],
        lines=[table.lines[row] for row in rows],
        labels=[index[label] for label in labels[rows]],
    )


def split_parts(words: Sequence[str], *, where: Callable[[int], str]) -> dict[Split, NDArray[np.int64]]:
    """Rows of the training and of the validation part, by a word for each row.

    ``train``, and the first of ``val``, ``validation``, ``valid``, ``test`` that occurs, whatever their
    case; rows of the others are left alone.

    Args:
        words: a word per row; none at all for a set without a split of its own.
        where: what an error calls a row.

    Raises:
        UserError: another word.
    """
    import numpy as np

    cleaned = np.array([word.strip().lower() for word in words], dtype=object)
    values, first = np.unique(cleaned, return_index=True)
    there = [str(value) for value in values]
    known = ("train", *VAL_NAMES)
    for value, row in zip(there, first, strict=True):
        if value not in known:
            raise UserError(f"{where(int(row))}: split {value[:100]!r}; it must be one of {', '.join(known)}")
    parts: dict[Split, NDArray[np.int64]] = {}
    if "train" in there:
        parts["train"] = np.flatnonzero(cleaned == "train")
    val = next((name for name in VAL_NAMES if name in there), None)
    if val is not None:
        parts["val"] = np.flatnonzero(cleaned == val)
    return parts


def missing_column(wanted: Sequence[str], there: Sequence[str], *, path: Path, holds: str) -> UserError:
    """The error for a file without a column of images or labels."""
    return UserError(
        f"{path} has no column of {holds}; it needs one named {' or '.join(wanted)}, "
        f"it has {some_names(there, most=20)}"
    )


@dataclass
class _Table:
    """Columns of a table, without its header and empty lines."""

    path: Path
    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def where(self, row: int) -> str:
        return f"{self.path} line {self.lines[row]}"


def _read(path: Path) -> _Table:
    lines = _lines(path)
    _, header = next(lines, (1, []))
    names = [name.strip().lower() for name in header]
    if not any(names):
        raise UserError(f"{path} is empty; its first line must name the columns, as path,label")
    image = _find(names, IMAGE_COLUMNS, path=path, holds="images")
    label = _find(names, LABEL_COLUMNS, path=path, holds="labels")
    split = names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None
    table = _Table(path)
    for line, cells in lines:
        if any(cell.strip() for cell in cells[len(names) :]):
            raise UserError(
                f"{path} line {line} has {len(cells)} cells, but the header {len(names)}; "
                "put values with a separator in them into double quotes"
            )
        cells += [""] * (len(names) - len(cells))
        if not cells[image].strip() or "\0" in cells[image]:
            raise UserError(f"{path} line {line} has no path of an image (column {header[image]!r})")
        if not cells[label].strip():
            raise UserError(f"{path} line {line} has no label (column {header[label]!r} is empty)")
        table.images.append(cells[image])
        table.labels.append(cells[label].strip())
        table.lines.append(line)
        if split is not None:
            table.splits.append(cells[split])
    if not table.lines:
        raise UserError(f"{path} holds no rows, only the names of columns")
    return table


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Cells of the lines that are not empty, with the number of the line that each ends on."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; save the table as UTF-8") from error
    # Spreadsheets of many countries write ";" into files called .csv.
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=text.split("\n", 1)[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):  # spreadsheets leave lines of separators at the end
                yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} cannot be read as a table ({error})") from error


def _find(names: Sequence[str], wanted: Sequence[str], *, path: Path, holds: str) -> int:
    name = next((name for name in wanted if name in names), None)
    if name is None:
        raise missing_column(wanted, [name for name in names if name], path=path, holds=holds)
    if names.count(name) > 1:
        raise UserError(f"{path} has {names.count(name)} columns named {name}; rename all but one")
    return names.index(name)
