"""One parquet file in the Hugging Face image layout: its columns, its labels, the names of its classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, reason_of, some_names

from .images import natural_key
from .table import IMAGE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMN, missing_column

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file whose schema has been checked.

    Attributes:
        image: name of the column of images; of the layout's names the first that is there.
        label: name of the column of labels, likewise.
        class_names: names that the label column declares (``ClassLabel``), or None.
        has_splits: whether there is a column of strings that says which split a row belongs to.
    """

    path: Path
    rows: int
    image: str
    label: str
    class_names: tuple[str, ...] | None
    has_splits: bool

    @classmethod
    def read(cls, path: Path) -> ParquetFile:
        """Reads the schema.

        Raises:
            UserError: not a parquet file, a column missing or of another type.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read as parquet ({reason_of(error)}); give a parquet file or class folders"
            ) from error
        image = _find_column(schema, IMAGE_COLUMNS, path=path, holds="images")
        label = _find_column(schema, LABEL_COLUMNS, path=path, holds="labels")
        _check_types(schema, image, label, path=path)
        return cls(
            path,
            rows,
            image,
            label,
            class_names=_declared_names(schema, label, path=path),
            has_splits=SPLIT_COLUMN in schema.names and _is_text(schema.field(SPLIT_COLUMN).type),
        )

    @cached_property
    def labels(self) -> NDArray[Any]:
        """The label column, integers or strings.

        Raises:
            UserError: a row without a label, or with a negative one.
        """
        return label_values(self._column(self.label), name=self.label, where=self._where)

    @cached_property
    def splits(self) -> list[str]:
        """The words of the column ``split``; empty ones where it is null."""
        return [word or "" for word in self._column(SPLIT_COLUMN).to_pylist()]

    def _column(self, name: str) -> pa.ChunkedArray:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(self.path, columns=[name]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.path} cannot be read as parquet ({reason_of(error)})") from error

    def class_numbers(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Every row's class as an index into the source's ``classes``.

        Raises:
            UserError: a label that is not among them; the line names file and row.
        """
        return class_numbers(self.labels, classes, declared=self.class_names is not None, where=self._where)

    def _where(self, row: int) -> str:
        return f"{self.path} row {row}"


def label_values(column: pa.ChunkedArray, *, name: str, where: Callable[[int], str]) -> NDArray[Any]:
    """A column of labels as an array of integers or strings.

    Args:
        column: integers, strings, or a dictionary of strings.
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
    values: NDArray[Any] = np.asarray(column)
    if values.dtype == object:
        values = values.astype(str)
    elif values.size and values.min() < 0:
        row = int(np.flatnonzero(values < 0)[0])
        raise UserError(f"{where(row)}: label {values[row]} is negative, so it names no class")
    return values


def class_numbers(
    labels: NDArray[Any], classes: Sequence[str], *, declared: bool, where: Callable[[int], str]
) -> NDArray[np.int64]:
    """Every row's class as an index into ``classes``.

    Args:
        labels: one per row, as `label_values` gives them.
        classes: the set's class names.
        declared: whether labels are indices into them already; else they are names.
        where: what an error calls a row.

    Raises:
        UserError: a label that is not among them.
    """
    import numpy as np

    if declared:
        beyond = np.flatnonzero(labels >= len(classes))
        if beyond.size:
            row = int(beyond[0])
            raise UserError(
                f"{where(row)}: label {labels[row]} is out of range, "
                f"there are {len(classes)} classes (0 to {len(classes) - 1})"
            )
        return labels.astype(np.int64)
    number = {name: index for index, name in enumerate(classes)}
    values, inverse = np.unique(labels, return_inverse=True)
    numbers = np.array([number.get(str(value), -1) for value in values], dtype=np.int64)[inverse]
    unknown = np.flatnonzero(numbers < 0)
    if unknown.size:
        row = int(unknown[0])
        raise UserError(
            f"{where(row)}: label {str(labels[row])!r} does not occur in the training part; "
            f"its classes are {some_names(classes)}"
        )
    return numbers


def class_names(files: Sequence[ParquetFile], *, training: Sequence[ParquetFile]) -> list[str]:
    """The classes that all files share: the declared ones, else the labels of the ``training`` files.

    Raises:
        UserError: two files declare different classes.
    """
    first = files[0]
    for other in files:
        if other.class_names != first.class_names:
            raise UserError(f"{first.path} and {other.path} declare different classes; they must be the same")
    if first.class_names is not None:
        return list(first.class_names)
    return sorted({str(value) for file in training for value in set(file.labels.tolist())}, key=natural_key)


def _find_column(schema: pa.Schema, wanted: Sequence[str], *, path: Path, holds: str) -> str:
    for name in wanted:
        if name in schema.names:
            return name
    raise missing_column(wanted, schema.names, path=path, holds=holds)


def _check_types(schema: pa.Schema, image: str, label: str, *, path: Path) -> None:
    from pyarrow import types

    stored = schema.field(image).type
    fields = {stored.field(i).name: stored.field(i).type for i in range(stored.num_fields)}
    usable = (
        _is_bytes(fields.get("bytes")) or _is_text(fields.get("path"))
        if types.is_struct(stored)
        else _is_bytes(stored) or _is_text(stored)
    )
    if not usable:
        raise UserError(
            f"{path}: column {image!r} holds {stored}; images must be stored as files' bytes or paths "
            "(binary, string, or a struct with the fields bytes and path)"
        )
    stored = schema.field(label).type
    value = stored.value_type if types.is_dictionary(stored) else stored
    if not (types.is_integer(value) or _is_text(value)):
        raise UserError(f"{path}: column {label!r} holds {stored}; labels must be integers or strings")


def _is_bytes(stored: pa.DataType | None) -> bool:
    from pyarrow import types

    return stored is not None and (types.is_binary(stored) or types.is_large_binary(stored))


def _is_text(stored: pa.DataType | None) -> bool:
    from pyarrow import types

    if stored is not None and types.is_dictionary(stored):
        stored = stored.value_type
    return stored is not None and (types.is_string(stored) or types.is_large_string(stored))


def _declared_names(schema: pa.Schema, label: str, *, path: Path) -> tuple[str, ...] | None:
    from datasets import ClassLabel, Features
    from pyarrow import types

    if not types.is_integer(schema.field(label).type):
        return None
    try:
        feature = Features.from_arrow_schema(schema)[label]
    except Exception as error:  # the metadata is JSON that anyone may have written
        raise UserError(f"{path}: its Hugging Face metadata cannot be read ({reason_of(error)})") from error
    return tuple(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
