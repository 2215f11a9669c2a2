"""From the labels that a set stores to indices into its classes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, some_names

from .base import Label

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


def label_values(column: pa.ChunkedArray, *, name: str, where: Callable[[int], str]) -> NDArray[Any]:
    """A column of labels as an array of integers or strings.

    Args:
        column: integers or strings, dictionaries of them too.
        name: the column's name.
        where: what an error calls a row.

    Raises:
        UserError: a row without a label, or with a negative one.
    """
    import numpy as np
    import pyarrow as pa

    if column.null_count:
        row = int(np.flatnonzero(column.is_null())[0])
        raise UserError(f"{where(row)} has no label (column {name!r} is null); remove the row")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: NDArray[Any] = np.asarray(column if column.num_chunks else column.to_pylist())
    if values.dtype == object:
        values = values.astype(str)
    elif values.size and values.dtype.kind in "iu" and values.min() < 0:
        row = int(np.flatnonzero(values < 0)[0])
        raise UserError(f"{where(row)}: label {values[row]} is negative, so it names no class")
    return values


def class_numbers(
    labels: NDArray[Any],
    classes: Sequence[str],
    *,
    declared: bool,
    where: Callable[[int], str],
    used: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The class of every row as an index into ``classes``; -1 for a row that is not used.

    Args:
        labels: one per row, as `label_values` gives them.
        classes: the set's class names.
        declared: whether labels are indices into them already; else they are names.
        where: what an error calls a row.
        used: whether a row belongs to a split that is used.

    Raises:
        UserError: a label of a used row that is not among the classes.
    """
    import numpy as np

    if declared:
        numbers = np.where((labels < len(classes)) & used, labels, -1).astype(np.int64)
    else:
        number = {name: index for index, name in enumerate(classes)}
        values, inverse = np.unique(labels, return_inverse=True)
        known = np.array([number.get(str(value), -1) for value in values], dtype=np.int64)
        numbers = np.where(used, known[inverse] if len(values) else -1, -1)
    wrong = np.flatnonzero((numbers < 0) & used)
    if not wrong.size:
        return numbers
    row = int(wrong[0])
    if declared:
        raise UserError(
            f"{where(row)}: label {labels[row]} is out of range, "
            f"there are {len(classes)} classes (0 to {len(classes) - 1})"
        )
    raise UserError(
        f"{where(row)}: label {str(labels[row])[:100]!r} does not occur in the training split; "
        f"its classes are {some_names(classes)}"
    )


def relabelled(
    labels: Sequence[Label] | NDArray[np.int64], rows: NDArray[np.int64], index: Sequence[int]
) -> list[Label]:
    """The labels of some rows as indices into other classes.

    Args:
        labels: of all rows.
        rows: those to take.
        index: the other index of each class, as `base.match_classes` returns it.
    """
    return [
        tuple(sorted({index[each] for each in label})) if isinstance(label, tuple) else index[label]
        for label in (labels[row] for row in rows.tolist())
    ]


def holds_several(stored: Any) -> bool:
    """Whether the label of a Python item is of the kind that may name several classes."""
    if isinstance(stored, list | tuple | set | frozenset):
        return True
    return getattr(stored, "ndim", 0) == 1 and len(stored) != 1  # a tensor of one number is a number


def item_label(stored: Any, places: Mapping[Any, int], name: str, *, several: bool) -> Label:
    """The class of a Python item as an index, or its classes.

    Args:
        stored: a class name or an index; or with several, a list or the like of them, or a tensor or array of
            0 and 1 for each class.
        places: the classes' indices by name.
        name: what an error calls the item.
        several: whether items have several labels.

    Raises:
        UserError: anything else.
    """
    if holds_several(stored) != several:
        kinds = ("several labels", "a single one")
        this, others = kinds if not several else kinds[::-1]
        raise UserError(
            f"{name}: label {_shown(stored)} is {this}, but the first item has {others}; give all of one kind"
        )
    if not several:
        return _number(stored, places, name)
    if not hasattr(stored, "ndim"):
        for each in stored:
            if isinstance(each, bool | float):
                raise UserError(
                    f"{name}: the list of labels holds {each}, which is neither a class name nor a number; "
                    "give a tensor or array for 0 and 1 of each class"
                )
        return tuple(sorted({_number(each, places, name) for each in stored}))
    values = stored.tolist()
    if len(values) != len(places):
        raise UserError(
            f"{name}: the label is a {type(stored).__name__} of {len(values)} values, but there are "
            f"{len(places)} classes; give 0 or 1 for each, or a list of class names or numbers"
        )
    if wrong := [value for value in values if value not in (0, 1)]:
        raise UserError(f"{name}: the label holds {_shown(wrong[0])}; it must be 0 or 1 for each class")
    return tuple(place for place, value in enumerate(values) if value)


def _number(stored: Any, places: Mapping[Any, int], name: str) -> int:
    if isinstance(stored, str) and stored in places:
        return places[stored]
    with suppress(TypeError):  # no number either
        if 0 <= (number := operator.index(stored)) < len(places):
            return number
    raise UserError(
        f"{name}: label {_shown(stored)} is neither a class name nor a number from 0 to {len(places) - 1}"
    )


def _shown(stored: Any) -> str:
    return repr(str(stored)[:100])
