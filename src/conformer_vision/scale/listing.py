"""List the images of all inputs as a compact table, one folder at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from conformer_vision.data.find import (
    is_image_name,
    is_passed_over,
    natural_key,
    walk_images,
    warn_of_passed_over,
)
from conformer_vision.errors import UserError

from .stores import Input, Store, unreachable

SCHEMA = pa.schema(
    [
        ("path", pa.binary()),  # absolute, or an address; names of files need not be UTF-8
        ("name", pa.binary()),  # in the answers; null where it is the path
        ("input", pa.int32()),
        ("size", pa.int64()),
        ("modified", pa.int64()),  # nanoseconds since 1970
    ]
)
"""The columns of a list of images."""

_Row = tuple[bytes, bytes | None, int | None, int | None]


def list_images(inputs: Sequence[Input]) -> pa.Table:
    """List the images of all inputs, each once: folders in natural order, their files before their folders.

    Returns:
        A table of `SCHEMA`.

    Raises:
        UserError: An input that does not exist, a folder that holds no images or cannot be read, or a store
            that cannot be reached.
    """
    chunks = [_table(rows, number) for number, one in enumerate(inputs) for rows in _rows_of(one)]
    images = pa.concat_tables(chunks)
    numbered = images.select(["path"]).append_column("row", pa.array(np.arange(len(images))))
    first = numbered.group_by("path").aggregate([("row", "min")])["row_min"]
    return images if len(first) == len(images) else images.take(pa.array(np.sort(first.to_numpy())))


def _table(rows: Sequence[_Row], number: int) -> pa.Table:
    paths, names, sizes, times = zip(*rows, strict=True)
    columns = (paths, names, [number] * len(rows), sizes, times)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    return pa.table(arrays, schema=SCHEMA)


def _rows_of(one: Input) -> Iterator[list[_Row]]:
    """Yield the rows of an input, those of each folder together.

    Raises:
        UserError: As `list_images`.
    """
    if one.store is None and not os.path.isdir(one.path):
        if not os.path.exists(one.path):
            raise UserError(f"{one.shown} does not exist; give images or folders of images")
        yield [_local_row(Path(one.path))]
        return
    passed_over: list[str] = []
    runs: list[str] = []
    found = False
    folders = _local_folders(one.path) if one.store is None else _folders_of(one.store, one)
    for rows, others, own_runs in folders:
        passed_over += others
        runs += own_runs
        if rows:
            found = True
            yield rows
    warn_of_passed_over(one.shown, passed_over, runs=runs)
    if not found:
        raise UserError(f"{one.shown} holds no images of a format that is read; give a folder that does")


_Folder = tuple[list[_Row], list[str], list[str]]
"""Rows of the images in a folder, files that are passed over, run folders."""


def _local_folders(folder: str) -> Iterator[_Folder]:
    for images, others, runs in walk_images(folder):
        images.sort(key=lambda path: natural_key(path.name))
        yield [_local_row(path) for path in images], list(map(str, others)), list(map(str, runs))


def _local_row(path: Path) -> _Row:
    name, place = os.fsencode(path), os.fsencode(os.path.abspath(path))
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing, which becomes an answer that says so
        return place, None if name == place else name, None, None
    return place, None if name == place else name, status.st_size, status.st_mtime_ns


def _folders_of(store: Store, one: Input) -> Iterator[_Folder]:
    """Yield what each folder holds, or the file that an address names."""
    try:
        info = store.files.get_file_info(one.path)
        if info.type == fs.FileType.File:
            yield [_row_of(store, info)], [], []
            return
        if info.type == fs.FileType.NotFound:
            raise UserError(f"{one.shown} does not exist; give images or folders of images")
        waiting = [one.path]
        while waiting:
            infos = store.files.get_file_info(fs.FileSelector(waiting.pop()))
            infos.sort(key=lambda info: natural_key(info.base_name))
            inner = [info for info in infos if info.type == fs.FileType.Directory]
            waiting += [info.path for info in reversed(inner) if not info.base_name.startswith(".")]
            files = [info for info in infos if info.type == fs.FileType.File]
            yield (
                [_row_of(store, info) for info in files if is_image_name(info.base_name)],
                [store.address_of(info.path) for info in files if is_passed_over(info.base_name)],
                [],
            )
    except UserError:
        raise
    except Exception as error:  # every library behind a store has its own, as for missing keys
        raise unreachable(one.shown, error) from error


def _row_of(store: Store, info: fs.FileInfo) -> _Row:
    return store.address_of(info.path).encode(), None, info.size, info.mtime_ns
