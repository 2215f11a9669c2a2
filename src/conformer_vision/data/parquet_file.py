"""One parquet file in the Hugging Face image layout: its columns, its labels, the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError

from .base import some_names
from .images import natural_key

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class ParquetFile:
    """A parquet file whose schema has been checked.

    Attributes:
        image: name of the column of pictures; of the layout's names the first that is there.
        label: name of the column of labels, likewise.
        class_names: names that the label column declares (``ClassLabel``), or None.
    """

    path: Path
    rows: int
    image: str
    label: str
    class_names: tuple[str, ...] | None

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
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
            raise UserError(
                f"{path} cannot be read as parquet ({reason}); give a parquet file or class folders"
            ) from error
        image = _find_column(schema, _IMAGE_COLUMNS, path=path, holds="pictures")
        label = _find_column(schema, _LABEL_COLUMNS, path=path, holds="labels")
        _check_types(schema, image, label, path=path)
        return cls(path, rows, image, label, _declared_names(schema, label, path=path))

    @cached_property
    def labels(self) -> NDArray[Any]:
        """The label column, integers or strings.

        Raises:
            UserError: a row without a label, or with a negative one.
        """
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.read_table(self.path, columns=[self.label]).column(0)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.path} cannot be read as parquet ({' '.join(str(error).split())})"
            ) from error
        if column.null_count:
            row = int(np.flatnonzero(column.is_null())[0])
            raise UserError(
                f"{self.path} row {row} has no label (column {self.label!r} is null); remove the row"
            )
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        values: NDArray[Any] = np.asarray(column)
        if values.dtype == object:
            values = values.astype(str)
        elif values.size and values.min() < 0:
            row = int(np.flatnonzero(values < 0)[0])
            raise UserError(f"{self.path} row {row}: label {values[row]} is negative, so it names no class")
        return values

    def class_numbers(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Every row's class as an index into the source's ``classes``.

        Raises:
            UserError: a label that is not among them; the line names file and row.
        """
        import numpy as np

        if self.class_names is not None:
            beyond = np.flatnonzero(self.labels >= len(classes))
            if beyond.size:
                row = int(beyond[0])
                raise UserError(
                    f"{self.path} row {row}: label {self.labels[row]} is out of range, "
                    f"there are {len(classes)} classes (0 to {len(classes) - 1})"
                )
            return self.labels.astype(np.int64)
        number = {name: index for index, name in enumerate(classes)}
        values, inverse = np.unique(self.labels, return_inverse=True)
        numbers = np.array([number.get(str(value), -1) for value in values], dtype=np.int64)[inverse]
        unknown = np.flatnonzero(numbers < 0)
        if unknown.size:
            row = int(unknown[0])
            raise UserError(
                f"{self.path} row {row}: label {str(self.labels[row])!r} does not occur "
                "in the training part; "
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
    raise UserError(
        f"{path} has no column of {holds}; it needs one named {' or '.join(wanted)}, "
        f"it has {some_names(schema.names, most=20)}"
    )


def _check_types(schema: pa.Schema, image: str, label: str, *, path: Path) -> None:
    from pyarrow import types

    stored = schema.field(image).type
    encoded = stored
    if types.is_struct(stored):
        encoded = next(
            (stored.field(i).type for i in range(stored.num_fields) if stored.field(i).name == "bytes"),
            stored,
        )
    if not (types.is_binary(encoded) or types.is_large_binary(encoded)):
        raise UserError(
            f"{path}: column {image!r} holds {stored}; pictures must be stored as files' bytes "
            "(binary, or a struct with the field bytes)"
        )
    stored = schema.field(label).type
    value = stored.value_type if types.is_dictionary(stored) else stored
    if not (types.is_integer(value) or types.is_string(value) or types.is_large_string(value)):
        raise UserError(f"{path}: column {label!r} holds {stored}; labels must be integers or strings")


def _declared_names(schema: pa.Schema, label: str, *, path: Path) -> tuple[str, ...] | None:
    from datasets import ClassLabel, Features
    from pyarrow import types

    if not types.is_integer(schema.field(label).type):
        return None
    try:
        feature = Features.from_arrow_schema(schema)[label]
    except Exception as error:  # the metadata is JSON that anyone may have written
        raise UserError(
            f"{path}: its Hugging Face metadata cannot be read ({' '.join(str(error).split())})"
        ) from error
    return tuple(feature.names) if isinstance(feature, ClassLabel) and feature.names else None
