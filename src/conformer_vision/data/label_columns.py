"""Labels in the columns of a table: one column, a list in each row, or a column per class."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, nearest, one_line, option, some_names

from .find import warn_once
from .labels import StoredLabels
from .names import same_column
from .splits import Splitting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLAGS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0, "": math.nan}
_SEPARATORS = "|;,"


def label_columns(splitting: Splitting, there: Collection[str], *, origin: str) -> tuple[str, ...] | None:
    """The columns that `Splitting.label_column` names; None if it names none.

    Raises:
        UserError: no such column, or one twice.
    """
    given = splitting.label_column
    if given is None:
        return None
    names = [given] if _column(given, there) else [name.strip() for name in next(csv.reader([given]), [])]
    found = [_column(name, there) or "" for name in names]
    if "" in found:
        name = names[found.index("")]
        hint = nearest(name, there) or f"; it has {some_names(there, most=20)}"
        raise UserError(f"{option('label_column', given)}: {origin} has no column {name!r}{hint}")
    if len({*found}) < len(found):
        twice = Counter(found).most_common(1)[0][0]
        raise UserError(f"{option('label_column', given)} names {twice!r} twice")
    if len(found) > 1 and splitting.label_separator is not None:
        separator = option("label_separator", splitting.label_separator)
        raise UserError(f"{separator} is for one column of labels, but label_column names {len(found)}")
    return tuple(found)


def _column(name: str, there: Collection[str]) -> str | None:
    if name in there:
        return name
    alike = [other for other in there if same_column(other, name)]
    return alike[0] if len(alike) == 1 else None


def text_labels(
    cells: Sequence[str], splitting: Splitting, *, column: str, where: Callable[[int], str]
) -> StoredLabels:
    """Labels from a column of texts.

    With `Splitting.label_separator` a row has the labels between the separators, or none where it is empty.
    Without it, rows that all hold a list, JSON's or Python's, have the labels in it, likewise Python's tuples
    and sets. Else a text is a label.

    Args:
        cells: one per row.
        splitting: see above.
        column: the column's name.
        where: what an error calls a row.

    Raises:
        UserError: a row without a label that needs one, or a list that holds something else than labels.
    """
    import numpy as np

    if (separator := splitting.label_separator) is not None:
        return _lists([split_text(cell, separator) for cell in cells])
    if _are_lists(cells):
        return _lists([_labels_in(cell, column, where(row)) for row, cell in enumerate(cells)])
    if "" in cells:
        line = f"{where(cells.index(''))} has no label (column {column!r} is empty)"
        if (joined := joined_by({*cells})) is not None:
            line += f"; if other rows have several, give {option('label_separator', joined)}"
        raise UserError(line)
    return StoredLabels.single(np.array(cells, dtype=object))


def split_text(text: str, separator: str) -> list[str]:
    """The labels between separators."""
    return [part for each in text.split(separator) if (part := each.strip())]


def _lists(parts: Sequence[Sequence[str]]) -> StoredLabels:
    import numpy as np

    values = np.array([value for mine in parts for value in mine], dtype=object)
    return StoredLabels.lists(values, [len(mine) for mine in parts])


def _are_lists(cells: Sequence[str]) -> bool:
    held = {*cells} - {""}
    if not held:
        return False
    if all((cell[0], cell[-1]) == ("[", "]") for cell in held):
        return True
    return all(re.match(r"[({]|set\(", cell) and isinstance(_from_python(cell), tuple | set) for cell in held)


def _labels_in(cell: str, column: str, row: str) -> list[str]:
    """The labels of a list, as texts."""
    if not cell:
        raise UserError(f"{row} has no label (column {column!r} is empty); write [] for an image of no class")
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        found = _from_python(cell)
    if found is None:
        raise UserError(
            f"{row}: label {one_line(cell[:100])} looks like a list (column {column!r}), but is neither "
            f'JSON\'s nor Python\'s; write ["cat", "dog"], or cat|dog with {option("label_separator", "|")}'
        )
    for value in found:
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise UserError(
                f"{row}: its list of labels (column {column!r}) holds {str(value)[:100]!r}, "
                "which is no name of a class"
            )
    return [str(value).strip() for value in found]


def _from_python(cell: str) -> Collection[Any] | None:
    """Read a list, tuple or set as pandas writes it; None for anything else."""
    if re.search(r"['\"]\s+['\"]", cell):  # numpy's "['a' 'b']", which Python would read as ['ab']
        return None
    try:
        found: Collection[Any] = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found


def flag_labels(
    columns: Mapping[str, Sequence[str]],
    *,
    origin: str,
    where: Callable[[int], str],
    used: NDArray[np.bool_],
) -> StoredLabels:
    """Labels from a column per class, which says 1 or 0, true or false, yes or no in each row.

    An empty cell means 0; how many there are is logged.

    Args:
        columns: the cells of each column, one per row.
        origin: what messages call the set.
        where: what an error calls a row.
        used: whether a row is used; the cells of others are not looked at.

    Returns:
        The labels as numbers of the columns.

    Raises:
        UserError: another value.
    """
    import numpy as np

    rows, values, empty = [], [], 0
    for number, (column, cells) in enumerate(columns.items()):
        texts, inverse = np.unique(np.array(cells, dtype=object), return_inverse=True)
        flags = np.array([flag(text) for text in texts])[inverse] if len(texts) else np.zeros(0)
        wrong = np.flatnonzero(used & ~np.isnan(flags) & (flags != 0) & (flags != 1))
        if wrong.size:
            raise UserError(f"{where(int(wrong[0]))}: {not_a_flag(cells[wrong[0]], column)}")
        empty += int((np.isnan(flags) & used).sum())
        mine = np.flatnonzero((flags == 1) & used)
        rows.append(mine)
        values.append(np.full(len(mine), number))
    if empty:
        warn_once(origin, f"{empty:,} empty cells in the columns of classes count as 0")
    found, labels = np.concatenate(rows), np.concatenate(values)
    order = np.argsort(found, kind="stable")
    return StoredLabels(labels[order], found[order], len(used), True)


def flag(text: str) -> float:
    """The value of a cell of a column per class: 1, 0, not-a-number for an empty one, or infinity."""
    plain = text.strip().casefold()
    if plain in _FLAGS:
        return _FLAGS[plain]
    try:
        return float(plain)
    except ValueError:
        return math.inf


def are_flags(cells: Sequence[str]) -> bool:
    """Whether a column says 1 or 0 in each row, and both or 1 at least once."""
    found = {flag(cell) for cell in {*cells}}
    return 1 in found and all(value in (0, 1) or math.isnan(value) for value in found)


def not_a_flag(text: str, column: str) -> str:
    """Say what is wrong with a cell of a column per class."""
    remedy = "write 1 or 0"
    if flag(text) == -1:
        remedy = "-1 often means uncertain: replace it by 1 or 0, or leave these rows out"
    shown = f"column {column!r} holds {text.strip()[:100]!r}"
    return f"{shown}, which does not say whether the image is of the class; {remedy}"


def check_found(
    classes: Collection[str], stored: StoredLabels, splitting: Splitting, *, column: str, origin: str
) -> None:
    """Look at the class names that a set turns out to have; log those that look like several, joined.

    Raises:
        UserError: `Splitting.label_separator` is given, but no row has several labels; or lists that hold 0
            or 1 for each class, whose names are unknown.
    """
    if (given := splitting.label_separator) is not None and not stored.has_several:
        raise UserError(
            f"{option('label_separator', given)} parts no label of {origin} (column {column!r}); correct it, "
            "or leave it out for one label per image"
        )
    if (values := stored.flags) is not None:
        raise UserError(
            f"{origin}: each list in column {column!r} holds {values} times 0 or 1, which names no class; "
            f"store the names, or a column per class for {option('label_column')}"
        )
    if not stored.several and (separator := joined_by(classes)) is not None:
        name = next(name for name in classes if separator in name)
        given = option("label_separator", separator)
        warn_once(origin, f"classes such as {name!r} look like several labels; if so, give {given}")


def joined_by(names: Collection[str]) -> str | None:
    """The separator that seems to join several class names into one: their parts come again and again."""
    for separator in _SEPARATORS:
        joined = [name for name in names if separator in name]
        parts = Counter(part.strip() for name in joined for part in {*name.split(separator)})
        again = [part for part, count in parts.items() if count > 1 or part in names]
        if joined and 2 * len(again) >= len(parts):
            return separator
    return None


def check_all_columns(index: Sequence[int], classes: Sequence[str], *, origin: str) -> None:
    """Refuse columns per class that lack a class of the model, as all images would count as not of it.

    Args:
        index: the place of each column among the model's classes.
        classes: the model's classes.
        origin: what an error calls the set.

    Raises:
        UserError: so.
    """
    if missing := [name for place, name in enumerate(classes) if place not in {*index}]:
        raise UserError(
            f"{origin}: {option('label_column')} names no column for the class {some_names(missing)}, "
            "which the model knows; name all"
        )
