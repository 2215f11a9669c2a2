"""From the labels that a set stores to indices into its classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, some_names

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
