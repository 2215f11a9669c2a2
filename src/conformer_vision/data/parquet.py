"""Parquet in the Hugging Face image layout: a column of images or of their paths, and one of labels.

The images stay in the memory-mapped Arrow file that ``datasets`` keeps in its cache, so a set
larger than memory works and worker processes share it. Rows are taken from the Arrow column
itself: ``datasets``' own access to a row costs a third of decoding a small JPEG.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from conformer_vision.errors import UserError, reason_of

from .base import ImageSource, match_classes
from .images import natural_key, open_image
from .parquet_file import ParquetFile, class_names
from .splits import Split, Splitting
from .table import split_parts

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

_TRAIN_WORDS = {"train", "training"}
_VAL_WORDS = ({"val", "valid", "validation"}, {"test"})  # the first kind that is there is taken


class ImageColumn:
    """A piece of a column of images: of files' bytes, of paths, or of a struct of both.

    Args:
        chunk: an Arrow array of binary, string, or struct with the fields ``bytes`` or ``path``.
    """

    def __init__(self, chunk: pa.Array) -> None:
        import pyarrow as pa
        from pyarrow import compute

        self._columns = [chunk]  # what holds a row's image, in the order of preference
        if pa.types.is_struct(chunk.type):
            fields = {field.name for field in chunk.type}
            self._columns = [
                compute.struct_field(chunk, name) for name in ("bytes", "path") if name in fields
            ]

    def image(self, row: int) -> bytes | str:
        """The row's bytes or path."""
        values = (column[row].as_py() for column in self._columns)
        stored: bytes | str = next((value for value in values if value is not None), b"")
        return stored

    def first_missing(self) -> int | None:
        """The first row that has neither; None where every row has one."""
        import numpy as np

        if not all(column.null_count for column in self._columns):
            return None
        missing = np.logical_and.reduce([np.asarray(column.is_null()) for column in self._columns])
        return int(np.argmax(missing)) if missing.any() else None


class ParquetSource(ImageSource):
    """Rows of parquet files.

    Args:
        files: the files that the images come from.
        images: their image columns, one after the other, as a dataset of one column.
        rows: the row of each image, counted over all files.
        classes: as in `ImageSource`.
        labels: as in `ImageSource`.

    Raises:
        UserError: a row without an image.
    """

    def __init__(
        self,
        files: Sequence[ParquetFile],
        images: datasets.Dataset,
        *,
        rows: NDArray[np.int64],
        classes: Sequence[str],
        labels: NDArray[np.int64],
    ) -> None:
        super().__init__(classes, labels)
        self._paths = [file.path for file in files]
        self._file_starts = list(accumulate((file.rows for file in files), initial=0))
        self._images = images
        self._rows = rows
        self._open_chunks()
        self._check_no_null()

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        file, name = self.file(index), self.name(index)
        return open_image(file, name=name if isinstance(file, bytes) else f"{file} ({name})")

    def file(self, index: int) -> Path | bytes:
        """The image's bytes in the row, or else the path there, which counts from the parquet file."""
        row = int(self._rows[index])
        chunk = bisect_right(self._chunk_starts, row) - 1
        stored = self._chunks[chunk].image(row - self._chunk_starts[chunk])
        if isinstance(stored, bytes):
            return stored
        return Path(os.path.join(self._paths[bisect_right(self._file_starts, row) - 1].parent, stored))

    def name(self, index: int) -> str:
        """``path row N``, N counted in its file from 0."""
        return self._row_name(int(self._rows[index]))

    def _row_name(self, row: int) -> str:
        file = bisect_right(self._file_starts, row) - 1
        return f"{self._paths[file]} row {row - self._file_starts[file]}"

    def _open_chunks(self) -> None:
        """The images as Arrow arrays, views of the memory-mapped file, and their first rows."""
        chunks = self._images.data.column(0).chunks
        self._chunks = [ImageColumn(chunk) for chunk in chunks]
        self._chunk_starts = list(accumulate((len(chunk) for chunk in chunks), initial=0))

    def _check_no_null(self) -> None:
        for start, chunk in zip(self._chunk_starts, self._chunks, strict=False):
            row = chunk.first_missing()
            if row is not None:
                raise UserError(
                    f"{self._row_name(start + row)} holds no image (its bytes are null); remove the row"
                )

    def __getstate__(self) -> dict[str, Any]:
        # The dataset is pickled by the path of its Arrow file; the chunks would be copied into it.
        return {name: value for name, value in vars(self).items() if name not in ("_chunks", "_chunk_starts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_chunks()


def is_parquet(spec: Path) -> bool:
    """Whether the path is a file, a glob, or a folder with parquet files in it or in its ``data/``."""
    return bool(_folder_files(spec)) if spec.is_dir() else spec.is_file() or glob.has_magic(str(spec))


def open_parquet(
    spec: Path, *, split: Split, splitting: Splitting, classes: Sequence[str] | None
) -> ParquetSource:
    """Reads a parquet file, a folder of them (or with them in ``data/``), or a glob.

    Files are told apart by a word in their names: ``train``, and ``val``, ``valid``,
    ``validation`` or, where there is none of these, ``test``. Where both kinds are there, other
    files are left alone; where not, a column ``split`` of strings parts the rows of all files as
    `table.split_parts` says, and without it they are split by seed. Class names are those
    of the column's ``ClassLabel``, else the labels that occur, sorted. Arguments and errors are
    those of `open_images`.
    """
    import numpy as np

    files = [ParquetFile.read(path) for path in _files(spec)]
    parts = _parts(files)
    if parts and splitting.folds is not None:  # the folds cut the training part
        files, parts = parts["train"], {}
    if parts:
        files = [file for part in parts.values() for file in part]
    if not sum(file.rows for file in files):
        raise UserError(f"{spec} holds no rows")
    own = class_names(files, training=parts.get("train", files))
    names, index = match_classes(own, classes, origin=str(spec))
    used = parts.get(split, files)
    labels = np.concatenate([file.class_numbers(own) for file in used])
    rows = (
        np.arange(len(labels))
        if parts
        else splitting.rows(labels, split, origin=str(spec), parts=_row_parts(files))
    )
    return ParquetSource(
        used, _read_images(used), rows=rows, classes=names, labels=np.asarray(index)[labels[rows]]
    )


def _row_parts(files: Sequence[ParquetFile]) -> dict[Split, NDArray[np.int64]]:
    """Training and validation rows by the column ``split``; nothing where a file has none."""
    if not all(file.has_splits for file in files):
        return {}
    starts = list(accumulate((file.rows for file in files), initial=0))

    def where(row: int) -> str:
        file = bisect_right(starts, row) - 1
        return f"{files[file].path} row {row - starts[file]}"

    return split_parts([word for file in files for word in file.splits], where=where)


def _files(spec: Path) -> list[Path]:
    if spec.is_dir():
        return _folder_files(spec)
    if spec.is_file():
        return [spec]
    found = sorted(
        (Path(name) for name in glob.glob(str(spec), recursive=True)), key=lambda path: natural_key(str(path))
    )
    if not found:
        raise UserError(f"no file matches {spec}")
    return found


def _folder_files(folder: Path) -> list[Path]:
    for place in (folder, folder / "data"):
        found = [path for path in place.glob("*.parquet") if not path.name.startswith(".")]
        if found:
            return sorted(found, key=lambda path: natural_key(path.name))
    return []


def _parts(files: Sequence[ParquetFile]) -> dict[Split, list[ParquetFile]]:
    """Training and validation files by the words in their names; nothing where one kind is missing."""
    words = {file: set(re.split("[^a-z]+", file.path.stem.lower())) for file in files}
    train = [file for file in files if words[file] & _TRAIN_WORDS]
    for kind in _VAL_WORDS:
        val = [file for file in files if words[file] & kind and file not in train]
        if train and val:
            return {"train": train, "val": val}
    return {}


def _read_images(files: Sequence[ParquetFile]) -> datasets.Dataset:
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    by_column = dict.fromkeys(file.image for file in files)
    if len(by_column) > 1:
        raise UserError(f"the images lie in columns of different names: {', '.join(by_column)}")
    paths = [glob.escape(str(file.path.resolve())) for file in files]  # `datasets` takes them as patterns
    try:
        with quiet_datasets():
            return Dataset.from_parquet(paths, columns=list(by_column))
    except (DatasetsError, OSError, ValueError) as error:
        reason = reason_of(error.__cause__ or error)
        raise UserError(f"the images of {files[0].path} cannot be read ({reason})") from error


@contextmanager
def quiet_datasets(*, bars: bool = False) -> Iterator[None]:
    """No log lines of ``datasets`` and the hub inside the block, and no progress bars unless asked for."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    level, hub_level = datasets.logging.get_verbosity(), hub_logging.get_verbosity()
    hidden = datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    if not bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if not bars and not hidden:
            datasets.enable_progress_bars()
