"""A table of images: a CSV or TSV file with a column of paths, one of labels and perhaps one of splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, some_names

from .base import match_classes
from .csv_file import read_csv
from .find import natural_key
from .folder import FileSource
from .groups import Grouping, taken
from .labels import class_numbers
from .names import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SplitName,
    find_column,
    find_splits,
    find_words,
    parse_split,
    split_words,
)
from .splits import Request, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def open_table(path: Path, request: Request) -> FileSource:
    """Read a CSV or TSV file with a header.

    Columns are found by `names.IMAGE_COLUMNS`, `names.LABEL_COLUMNS` and `names.SPLIT_COLUMNS`. Paths are
    relative to the table's folder. Labels are class names, numbers too. With a column of splits the
    set is divided as `split_parts` says; else it is cut as `Splitting` says. Errors are those of
    `open_images`.
    """
    import numpy as np

    table = _read(path)
    parts = split_parts(table.splits or (), origin=str(path), where=table.where)
    used = np.full(len(table.labels), not parts)
    for rows in parts.values():
        used[rows] = True
    words = np.array(table.labels, dtype=object)
    own = sorted({*words[parts.get("train", used)]}, key=natural_key)
    labels = class_numbers(words, own, declared=False, where=table.where, used=used)
    names, index = match_classes(own, request.classes, origin=str(path))
    grouping = Grouping(str(path), table.where, table.columns, table.values, table.inner_path)
    groups = grouping.groups(request.splitting.group, np.flatnonzero(used).tolist(), count=len(table.labels))
    rows = request.splitting.rows(
        labels,
        request.split,
        origin=str(path),
        classes=own,
        names=table.name,
        parts=parts,
        groups=groups,
    )
    source = FileSource(
        names,
        [_resolve(path.parent, table.images[row]) for row in rows],
        [index[label] for label in labels[rows]],
        places=[table.where(row) for row in rows],
    )
    source.is_cut, source.groups = request.splitting.cuts(parts), taken(groups, rows)
    return source


def split_parts(
    words: Sequence[str], *, origin: str, where: Callable[[int], str]
) -> dict[Split, NDArray[np.int64]]:
    """Return the rows of the training and of the validation split, from a word for each row.

    The words are those of `names.parse_split`; rows of a test split beside a validation split are left alone.

    Args:
        words: a word per row, without spaces around it; empty for a set without a split of its own.
        origin: what an error calls the set.
        where: what an error calls a row.

    Raises:
        UserError: any other word, or several for one split.
    """
    import numpy as np

    values, first, place = np.unique(np.array(words, dtype=object), return_index=True, return_inverse=True)
    splits: dict[SplitName, str] = {}
    meaning: list[SplitName] = []
    for value, row in zip(values, first, strict=True):
        if (split := parse_split(value)) is None:
            raise UserError(f"{where(int(row))}: split {value[:100]!r}; it must be one of {split_words()}")
        splits.setdefault(split, value)  # "train" and "Training" are one
        meaning.append(split)
    found = find_splits(splits.values(), origin=origin)
    left = [value for split, value in splits.items() if value not in found.values() and split.kind != "test"]
    if left:
        raise UserError(
            f"{origin}: it is unclear to which split {some_names(left)} belong; write train or val"
        )
    names = np.array([splits[split] for split in meaning], dtype=object)[place]
    return {part: np.flatnonzero(names == name) for part, name in found.items()}


def _resolve(folder: Path, cell: str) -> str:
    """Return the path of an image; spaces around it and backslashes belong to it if a file is so called."""
    path = os.path.join(folder, cell)
    plain = cell.strip().replace("\\", "/")
    if plain == cell or os.path.lexists(path):
        return path
    other = os.path.join(folder, plain)
    return other if os.path.isfile(other) else path


@dataclass
class _Table:
    """Columns of a table, without its header and empty lines."""

    path: Path
    images: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: Sequence[str] | None = None
    lines: list[int] = field(default_factory=list)
    header: Sequence[str] = ()
    cells: Sequence[Sequence[str]] = ()

    @property
    def columns(self) -> list[str]:
        return [name for name in self.header if name.strip()]

    def values(self, column: str) -> list[str]:
        place = self.header.index(column)
        return [cells[place].strip() for cells in self.cells]

    def inner_path(self, row: int) -> str:
        return self.name(row).replace("\\", "/")

    def name(self, row: int) -> str:
        return self.images[row].strip()

    def where(self, row: int) -> str:
        return f"{self.path} line {self.lines[row]}"


def _read(path: Path) -> _Table:
    header, rows = read_csv(path)
    listed = list(rows)
    table = _Table(path, header=header, cells=[cells for _, cells in listed])
    image = header.index(find_column(table.columns, IMAGE_COLUMNS, origin=str(path), holds="images"))
    label = header.index(find_column(table.columns, LABEL_COLUMNS, origin=str(path), holds="labels"))
    for line, cells in listed:
        if not cells[image].strip() or "\0" in cells[image]:
            raise UserError(f"{path} line {line} has no path of an image (column {header[image]!r})")
        if not cells[label].strip():
            raise UserError(f"{path} line {line} has no label (column {header[label]!r} is empty)")
        table.images.append(cells[image])
        table.labels.append(cells[label].strip())
        table.lines.append(line)
    if not table.lines:
        raise UserError(f"{path} holds no rows, only the names of columns")
    others = [name for name in table.columns if name not in (header[image], header[label])]
    table.splits = find_words(others, table.values, origin=str(path))
    return table
