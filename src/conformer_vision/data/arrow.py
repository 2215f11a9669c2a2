"""Rows of sets that ``datasets`` has opened: parquet files, saved sets and sets of the hub."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from conformer_vision.errors import UserError, some_names
from conformer_vision.geometry import Need

from .arrow_columns import Columns, find_columns
from .base import ImageSource, Label, match_classes
from .groups import Grouping, taken
from .images import BrokenImageError, open_image
from .label_columns import check_all_columns, check_found, flag_labels, text_labels
from .labels import StoredLabels, relabelled, stored_labels
from .names import find_splits, find_words, split_words
from .splits import Request, Split, Splitting
from .table import split_parts, which_rows

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray


class ArrowSource(ImageSource):
    """Rows of Arrow tables.

    The images stay in the memory-mapped files that ``datasets`` keeps, so a set larger than memory
    works and worker processes share it. Rows are taken from the Arrow column itself: ``datasets``'
    own access to a row costs a third of decoding a small JPEG.

    Args:
        blocks: the tables, one after the other.
        rows: the row of each image, counted over all tables.
        classes: as in `ImageSource`.
        labels: as in `ImageSource`.
        multilabel: as in `ImageSource`.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        rows: NDArray[np.int64],
        classes: Sequence[str],
        labels: Sequence[Label],
        multilabel: bool,
    ) -> None:
        super().__init__(classes, labels, multilabel=multilabel)
        self._origins = [(block.origin, block.folder) for block in blocks]
        self._starts = list(accumulate((len(block.data) for block in blocks), initial=0))
        self._data = [block.images for block in blocks]
        self._rows = rows
        self._columns = self._open()

    def image(self, index: int, need: Need | None = None) -> Image.Image:
        """The RGB image."""
        file, name = self.file(index), self.name(index)
        return open_image(file, name=name if isinstance(file, bytes) else f"{file} ({name})", need=need)

    def file(self, index: int) -> Path | bytes:
        """The image's bytes in the row, or else the path there."""
        block, row = self._place(index)
        stored = self._columns[block][row].as_py()
        data, path = (stored.get("bytes"), stored.get("path")) if isinstance(stored, dict) else (stored, None)
        if isinstance(data, str):
            data, path = None, data
        if isinstance(data, bytes):
            return data
        if not isinstance(path, str):  # foreign files store anything under these names
            raise BrokenImageError(f"{self.name(index)}: cannot be read as an image (the row has none)")
        folder = self._origins[block][1]
        return Path(path) if folder is None else folder / path

    def name(self, index: int) -> str:
        """``ORIGIN row N``, N counted in its file or split from 0."""
        block, row = self._place(index)
        return f"{self._origins[block][0]} row {row}"

    def _place(self, index: int) -> tuple[int, int]:
        row = int(self._rows[index])
        block = bisect_right(self._starts, row) - 1
        return block, row - self._starts[block]

    def _open(self) -> list[pa.ChunkedArray]:
        return [data.data.column(0) for data in self._data]

    def __getstate__(self) -> dict[str, Any]:
        # A dataset is pickled by the path of its Arrow file; the columns would be copied.
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._columns = self._open()


@dataclass(frozen=True)
class Block:
    """Rows of one file or split.

    Attributes:
        data: the rows.
        origin: what messages call them.
        splitting: which columns hold the labels, and how.
        folder: where relative paths of images start; the working folder where None.
        part: what stands before a row where an image has no name of its own; it tells files apart.
    """

    data: datasets.Dataset
    origin: str
    splitting: Splitting
    folder: Path | None = None
    part: str = ""

    @cached_property
    def columns(self) -> Columns:
        """The columns of images and labels.

        Raises:
            UserError: a column is missing or cannot hold them.
        """
        return find_columns(self.data.features, self.splitting, origin=self.origin)

    def where(self, row: int) -> str:
        """What an error calls a row."""
        return f"{self.origin} row {row}"

    def labels(self, used: NDArray[np.bool_]) -> StoredLabels:
        """The labels of all rows; ``used`` says which rows are used."""
        columns = self.columns
        if columns.per_class:
            flags = {name: self.values(name) or () for name in columns.labels}
            return flag_labels(flags, origin=self.origin, where=self.where, used=used)
        if self.splitting.label_separator is not None:
            cells = self.values(columns.label) or ()
            return text_labels(cells, self.splitting, column=columns.label, where=self.where)
        return stored_labels(self._column(columns.label), name=columns.label, where=self.where)

    @cached_property
    def images(self) -> datasets.Dataset:
        """The column of images alone, as it is stored."""
        data = self.data.select_columns([self.columns.image]).with_format(None)
        return data if data._indices is None else data.flatten_indices()

    def words(self) -> Sequence[str] | None:
        """The words of the column of splits; None without one."""
        others = (self.columns.image, *self.columns.labels)
        columns = [name for name in self.data.features if name not in others]
        return find_words(columns, self.values, origin=self.origin)

    def values(self, name: str) -> list[str] | None:
        """Return a column as text, empty where it is null; None if it holds lists or the like."""
        feature = self.data.features[name]
        if not hasattr(feature, "dtype"):  # a list or struct
            return None
        values = self._column(name).to_pylist()
        if hasattr(feature, "int2str") and name not in self.columns.labels:  # a ClassLabel
            values = [None if value is None else feature.int2str(value) for value in values]
        return ["" if value is None else str(value).strip() for value in values]

    def names(self) -> list[str]:
        """What the images are called in the set: the path that is stored with each, else its row."""
        return [
            f"{self.part}{row}" if path is None else without_place(path)
            for row, path in enumerate(self.paths())
        ]

    def paths(self) -> list[str | None]:
        """The path that is stored with each image."""
        import pyarrow as pa
        import pyarrow.compute as pc

        stored = self.images.data.column(0)
        if pa.types.is_struct(stored.type) and stored.type.get_field_index("path") >= 0:
            stored = pc.struct_field(stored, "path")
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        kind = stored.type.value_type if pa.types.is_dictionary(stored.type) else stored.type
        are_texts = any(is_text(kind) for is_text in texts)
        paths: list[str | None] = stored.to_pylist() if are_texts else [None] * len(stored)
        return paths

    def _column(self, name: str) -> pa.ChunkedArray:
        return self.data.select_columns([name]).with_format("arrow")[:].column(0)


def without_place(path: str) -> str:
    """Leave of an absolute path what stays when the set is moved."""
    return "/".join(Path(path).parts[-2:]) if os.path.isabs(path) else path


def choose_splits(names: Sequence[str], *, origin: str) -> dict[Split, str]:
    """The splits of a set to use: those for training and validation, or the only one as ``all``.

    Raises:
        UserError: several splits and none of a known name.
    """
    found = find_splits(names, origin=origin)
    if found:
        return found
    if len(names) != 1:
        raise UserError(f"{origin} has the splits {some_names(names)}, but none of {split_words()}")
    return {"all": names[0]}


def open_blocks(
    parts: Mapping[Split, Sequence[Block]],
    origin: str,
    request: Request,
) -> ArrowSource:
    """One split of a set.

    Without splits of its own (``all``), a column of splits divides the set as `table.split_parts` says, and
    otherwise it is cut as `splits.Splitting` says. Class names are those of a ``ClassLabel``,
    else the labels that occur in training, sorted.

    Args:
        parts: blocks of ``train`` and ``val``, or of ``all``.
        origin: what an error calls the set.
        request: which images to open.

    Raises:
        UserError: as `open_images`.
    """
    import numpy as np

    blocks = [block for part in parts.values() for block in part]
    for block in blocks[1:]:
        if block.columns.class_names != blocks[0].columns.class_names:
            raise UserError(
                f"{blocks[0].origin} and {block.origin} declare different classes; they must be the same"
            )
    starts = list(accumulate((len(block.data) for block in blocks), initial=0))
    if not starts[-1]:
        raise UserError(f"{origin} holds no rows")
    rows_of: dict[Split, NDArray[np.int64]] = {}
    first = 0
    for part, mine in parts.items():
        rows_of[part] = np.arange(starts[first], starts[first + len(mine)])
        first += len(mine)
    if "all" in parts:
        rows_of = _by_column(blocks, starts, origin)
    used, trained = which_rows(rows_of, starts[-1])
    splitting, columns = request.splitting, blocks[0].columns
    with quiet_datasets():
        each = [
            block.labels(used[slice(*ends)]) for block, ends in zip(blocks, pairwise(starts), strict=True)
        ]
    stored = StoredLabels.joined(each)
    own = list(columns.class_names or stored.names(trained))
    if request.classes is None and not columns.per_class:
        check_found(own, stored, splitting, column=columns.label, origin=origin)
    numbers = stored.numbers(
        own,
        declared=columns.class_names is not None,
        where=lambda row: _where(blocks, starts, row),
        used=used,
    )
    names, index = match_classes(own, request.classes, origin=origin)
    if columns.per_class:
        check_all_columns(index, names, origin=origin)
    groups = _grouping(blocks, starts, origin, splitting.group).groups(
        splitting.group, np.flatnonzero(used).tolist(), count=starts[-1]
    )
    rows = splitting.rows(
        numbers,
        request.split,
        origin=origin,
        classes=own,
        names=_namer(blocks, starts),
        parts=rows_of,
        groups=groups,
    )
    labels = relabelled(numbers, rows, index)
    source = ArrowSource(blocks, rows=rows, classes=names, labels=labels, multilabel=stored.several)
    source.is_cut, source.groups = splitting.cuts(rows_of), taken(groups, rows)
    return source


def _grouping(blocks: Sequence[Block], starts: Sequence[int], origin: str, group: str | None) -> Grouping:
    """Return what the rows can be grouped by: any column but the images', or the paths stored with them."""
    paths = [] if group is None else [path for block in blocks for path in block.paths()]

    def read(column: str) -> list[str] | None:
        found = [block.values(column) for block in blocks]
        return None if None in found else [value for values in found for value in values or ()]

    return Grouping(
        origin,
        lambda row: _where(blocks, starts, row),
        [name for name in blocks[0].data.features if name != blocks[0].columns.image],
        read,
        (lambda row: without_place(paths[row] or "").replace("\\", "/")) if any(paths) else None,
    )


def _where(blocks: Sequence[Block], starts: Sequence[int], row: int) -> str:
    block = bisect_right(starts, row) - 1
    return blocks[block].where(row - starts[block])


def _by_column(blocks: Sequence[Block], starts: Sequence[int], origin: str) -> dict[Split, NDArray[np.int64]]:
    words = [block.words() for block in blocks]
    if any(word is None for word in words):
        return {}

    return split_parts(
        [word for block in words for word in block or ()],
        origin=origin,
        where=lambda row: _where(blocks, starts, row),
    )


def _namer(blocks: Sequence[Block], starts: Sequence[int]) -> Callable[[int], str]:
    """Return the function that names a row in the set; the names are read when first asked for."""
    names: list[str] = []

    def name(row: int) -> str:
        if not names:
            for block in blocks:
                names.extend(block.names())
        return names[row]

    return name


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
