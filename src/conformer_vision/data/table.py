"""A table of images: a CSV or TSV file with a column of paths, one of labels and perhaps one of splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError

from .base import match_classes
from .csv_file import read_csv
from .folder import FileSource
from .images import natural_key
from .labels import class_numbers
from .names import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_COLUMN,
    find_column,
    find_splits,
    is_split_name,
    split_words,
)
from .splits import Request, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def open_table(path: Path, request: Request) -> FileSource:
    """Read a CSV or TSV file with a header.

    Columns are found by `names.IMAGE_COLUMNS`, `names.LABEL_COLUMNS` and `names.SPLIT_COLUMN`. Paths are
    relative to the table's folder. Labels are class names, numbers too. With a column ``split`` the
    set is cut as `split_parts` says; else by seed. Errors are those of `open_images`.
    """
    import numpy as np

    table = _read(path)
    parts = split_parts(table.splits, where=table.where)
    used = np.full(len(table.labels), not parts)
    for rows in parts.values():
        used[rows] = True
    words = np.array(table.labels)
    own = sorted({str(word) for word in words[parts.get("train", used)]}, key=natural_key)
    labels = class_numbers(words, own, declared=False, where=table.where, used=used)
    names, index = match_classes(own, request.classes, origin=str(path))
    rows = request.splitting.rows(labels, request.split, origin=str(path), parts=parts)
    return FileSource(
        names,
        [os.path.join(path.parent, table.images[row]) for row in rows],
        [index[label] for label in labels[rows]],
        places=[table.where(row) for row in rows],
    )


def split_parts(words: Sequence[str], *, where: Callable[[int], str]) -> dict[Split, NDArray[np.int64]]:
    """Rows of the training and of the validation split, from a word for each row.

    The words are those of `names.SPLIT_NAMES`; rows of a split that is not taken are left alone.

    Args:
        words: a word per row; empty for a set without a split of its own.
        where: what an error calls a row.

    Raises:
        UserError: any other word.
    """
    import numpy as np

    cleaned = np.array([word.strip().lower() for word in words], dtype=object)
    values, first = np.unique(cleaned, return_index=True)
    for value, row in zip(values, first, strict=True):
        if not is_split_name(value):
            raise UserError(f"{where(int(row))}: split {value[:100]!r}; it must be one of {split_words()}")
    return {part: np.flatnonzero(cleaned == word) for part, word in find_splits(values).items()}


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
    header, rows = read_csv(path)
    columns = [name for name in header if name.strip()]
    image = header.index(find_column(columns, IMAGE_COLUMNS, origin=str(path), holds="images"))
    label = header.index(find_column(columns, LABEL_COLUMNS, origin=str(path), holds="labels"))
    names = [name.strip().lower() for name in header]
    split = names.index(SPLIT_COLUMN) if SPLIT_COLUMN in names else None
    table = _Table(path)
    for line, cells in rows:
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
