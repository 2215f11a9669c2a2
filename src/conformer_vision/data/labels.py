"""From the labels that a set stores to indices into its classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from conformer_vision.errors import UserError, some_names

from .base import Label
from .find import natural_key

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class StoredLabels(NamedTuple):
    """Labels as a set stores them."""

    values: NDArray[Any]
    """(P,), integers or strings."""
    rows: NDArray[np.int64]
    """(P,), the row of each label, ascending; every row once where it has one label."""
    length: int
    """Number of rows."""
    several: bool
    """Whether a row may have several labels, or none."""

    @classmethod
    def single(cls, values: NDArray[Any]) -> StoredLabels:
        """One label per row."""
        import numpy as np

        return cls(values, np.arange(len(values)), len(values), False)

    @classmethod
    def lists(cls, values: NDArray[Any], lengths: Sequence[int] | NDArray[np.int64]) -> StoredLabels:
        """As many labels for each row as the lengths say."""
        import numpy as np

        return cls(values, np.repeat(np.arange(len(lengths)), lengths), len(lengths), True)

    @classmethod
    def joined(cls, parts: Sequence[StoredLabels]) -> StoredLabels:
        """Labels of several files, one after the other."""
        import numpy as np

        starts = np.cumsum([0, *(part.length for part in parts)])
        return cls(
            np.concatenate([part.values for part in parts if len(part.values)] or [parts[0].values]),
            np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=False)]),
            int(starts[-1]),
            parts[0].several,
        )

    @property
    def has_several(self) -> bool:
        """Whether a row has several labels."""
        return bool((self.rows[1:] == self.rows[:-1]).any())

    @property
    def flags(self) -> int | None:
        """How many values the list of every row holds, where all are 0 or 1; else None."""
        import numpy as np

        lengths = np.bincount(self.rows, minlength=self.length)
        if not self.several or lengths.min() < 2 or lengths.min() < lengths.max():
            return None
        return int(lengths[0]) if {*map(str, np.unique(self.values))} <= {"0", "1"} else None

    def names(self, used: NDArray[np.bool_]) -> list[str]:
        """The class names that occur in some rows, sorted."""
        import numpy as np

        found = np.unique(self.values[used[self.rows]]).tolist()
        return sorted({str(value) for value in found}, key=natural_key)

    def numbers(
        self,
        classes: Sequence[str],
        *,
        declared: bool,
        where: Callable[[int], str],
        used: NDArray[np.bool_],
    ) -> Sequence[Label] | NDArray[np.int64]:
        """The class of every row as an index into ``classes``, or its classes; -1 or none for one not used.

        Args:
            classes: the set's class names.
            declared: whether labels are indices into them already; else they are names.
            where: what an error calls a row.
            used: whether a row belongs to a split that is used.

        Raises:
            UserError: a label of a used row that is not among the classes.
        """
        import numpy as np

        used = used[self.rows]
        if declared:
            numbers = np.where((self.values < len(classes)) & used, self.values, -1).astype(np.int64)
        else:
            number = {name: index for index, name in enumerate(classes)}
            values, inverse = np.unique(self.values, return_inverse=True)
            known = np.array([number.get(str(value), -1) for value in values], dtype=np.int64)
            numbers = np.where(used, known[inverse] if len(values) else -1, -1)
        wrong = np.flatnonzero((numbers < 0) & used)
        if wrong.size:
            value, row = self.values[wrong[0]], where(int(self.rows[wrong[0]]))
            if declared:
                raise UserError(
                    f"{row}: label {value} is out of range, "
                    f"there are {len(classes)} classes (0 to {len(classes) - 1})"
                )
            raise UserError(
                f"{row}: label {str(value)[:100]!r} does not occur in the training split; "
                f"its classes are {some_names(classes)}"
            )
        if not self.several:
            return numbers
        kept = numbers[used].tolist()
        ends = np.searchsorted(self.rows[used], np.arange(self.length + 1)).tolist()
        return [tuple(sorted({*kept[start:end]})) for start, end in pairwise(ends)]


def stored_labels(column: pa.ChunkedArray, *, name: str, where: Callable[[int], str]) -> StoredLabels:
    """A column of labels as an array of integers or strings.

    Args:
        column: integers or strings, dictionaries of them, or lists of them.
        name: the column's name.
        where: what an error calls a row.

    Raises:
        UserError: a row without a label, or with a negative one.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    several = is_list(column.type)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null())[0])
        remedy = "store an empty list if it is of no class, or " if several else ""
        raise UserError(f"{where(row)} has no label (column {name!r} is null); {remedy}remove the row")
    lengths = np.ones(len(column), np.int64)
    if several:
        lengths = np.asarray(pc.list_value_length(column), np.int64)
        column = pc.list_flatten(column)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    if column.null_count:
        row = int(rows[np.flatnonzero(column.is_null())[0]])
        raise UserError(f"{where(row)}: its list of labels (column {name!r}) holds null; remove that")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values: NDArray[Any] = np.asarray(column if column.num_chunks else column.to_pylist())
    if values.dtype == object or not values.size:
        values = values.astype(str)
    elif values.dtype.kind in "iu" and values.min() < 0:
        place = int(np.flatnonzero(values < 0)[0])
        raise UserError(f"{where(int(rows[place]))}: label {values[place]} is negative, so it names no class")
    return StoredLabels(values, rows, len(lengths), several)


def is_list(stored: pa.DataType) -> bool:
    """Whether a column holds a list in every row."""
    import pyarrow as pa

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(stored) for is_kind in kinds)


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
