"""A table of images: a CSV or TSV file with a column of paths, one of labels and perhaps one of splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, option, some_names

from .base import match_classes
from .csv_file import read_csv
from .folder import FileSource
from .groups import Grouping, taken
from .label_columns import (
    are_flags,
    check_all_columns,
    check_found,
    flag_labels,
    label_columns,
    text_labels,
)
from .labels import relabelled
from .names import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SplitName,
    find_column,
    find_splits,
    find_words,
    is_column,
    parse_split,
    split_words,
)
from .splits import Request, Split, Splitting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_SHOWN = 20
"""Columns that an error suggests."""


def open_table(path: Path, request: Request) -> FileSource:
    """Read a CSV or TSV file with a header.

    Columns are found by `names.IMAGE_COLUMNS`, `names.LABEL_COLUMNS` and `names.SPLIT_COLUMNS`. Paths are
    relative to the table's folder. Labels are class names, numbers too; how several of them are found, see
    `label_columns.text_labels` and `label_columns.flag_labels`. With a column of splits the
    set is divided as `split_parts` says; else it is cut as `Splitting` says. Errors are those of
    `open_images`.
    """
    import numpy as np

    origin, splitting = str(path), request.splitting
    table = _read(path, splitting)
    parts = split_parts(table.splits or (), origin=origin, where=table.where)
    used, trained = which_rows(parts, len(table.images))
    labels = table.labels
    per_class = len(labels) > 1
    if per_class:
        stored, own = flag_labels(labels, origin=origin, where=table.where, used=used), list(labels)
    else:
        ((column, cells),) = labels.items()
        stored = text_labels(cells, splitting, column=column, where=table.where)
        own = stored.names(trained)
        if request.classes is None:
            check_found(own, stored, splitting, column=column, origin=origin)
    numbers = stored.numbers(own, declared=per_class, where=table.where, used=used)
    names, index = match_classes(own, request.classes, origin=origin)
    if per_class:
        check_all_columns(index, names, origin=origin)
    grouping = Grouping(origin, table.where, table.columns, table.values, table.inner_path)
    groups = grouping.groups(splitting.group, np.flatnonzero(used).tolist(), count=len(used))
    rows = splitting.rows(
        numbers,
        request.split,
        origin=origin,
        classes=own,
        names=table.name,
        parts=parts,
        groups=groups,
    )
    source = FileSource(
        names,
        [_resolve(path.parent, table.images[row]) for row in rows],
        relabelled(numbers, rows, index),
        places=[table.where(row) for row in rows],
        multilabel=stored.several,
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


def which_rows(
    parts: Mapping[Split, NDArray[np.int64]], count: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which rows are used, and of which labels tell the classes: all rows without splits."""
    import numpy as np

    used = np.full(count, not parts)
    for rows in parts.values():
        used[rows] = True
    trained = np.zeros_like(used)
    trained[parts.get("train", used)] = True
    return used, trained


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
    header: Sequence[str]
    rows: Sequence[tuple[int, Sequence[str]]]
    """Line and cells of each."""
    images: list[str] = field(default_factory=list)
    labels: dict[str, list[str]] = field(default_factory=dict)
    """The cells of each column of labels."""
    splits: Sequence[str] | None = None

    @property
    def columns(self) -> list[str]:
        return [name for name in self.header if name.strip()]

    def values(self, column: str) -> list[str]:
        place = self.header.index(column)
        return [cells[place].strip() for _, cells in self.rows]

    def inner_path(self, row: int) -> str:
        return self.name(row).replace("\\", "/")

    def name(self, row: int) -> str:
        return self.images[row].strip()

    def where(self, row: int) -> str:
        return f"{self.path} line {self.rows[row][0]}"


def _read(path: Path, splitting: Splitting) -> _Table:
    header, rows = read_csv(path)
    table = _Table(path, header=header, rows=list(rows))
    image = find_column(table.columns, IMAGE_COLUMNS, origin=str(path), holds="images")
    labels = label_columns(splitting, table.columns, origin=str(path))
    if labels is None:
        labels = (_column_of_labels(table, image),)
    elif image in labels:
        raise UserError(f"{option('label_column', splitting.label_column)}: {image!r} holds the images")
    place = header.index(image)
    for line, cells in table.rows:
        if not cells[place].strip() or "\0" in cells[place]:
            raise UserError(f"{path} line {line} has no path of an image (column {image!r})")
        table.images.append(cells[place])
    if not table.rows:
        raise UserError(f"{path} holds no rows, only the names of columns")
    table.labels = {column: table.values(column) for column in labels}
    others = [name for name in table.columns if name not in (image, *labels)]
    table.splits = find_words(others, table.values, origin=str(path))
    return table


def _column_of_labels(table: _Table, image: str) -> str:
    """Find the column of labels by its name; where there is none, say which columns may be classes."""
    try:
        return find_column(table.columns, LABEL_COLUMNS, origin=str(table.path), holds="labels")
    except UserError as error:
        flags = [name for name in table.columns if name != image and are_flags(table.values(name))]
        if len(flags) < 2 or any(is_column(name, LABEL_COLUMNS) for name in table.columns):
            raise
        shown = ",".join(flags if len(flags) <= _MOST_SHOWN else [*flags[:_MOST_SHOWN], "..."])
        raise UserError(
            f"{table.path} has no column of labels; if those of 0 and 1 are its classes, give "
            f"{option('label_column', shown)}"
        ) from error
