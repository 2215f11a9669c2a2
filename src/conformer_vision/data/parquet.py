"""Parquet files in the Hugging Face image layout: a column of images or of their paths, and one of labels."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, reason_of

from .arrow import ArrowSource, Block, open_blocks, quiet_datasets
from .arrow_columns import find_columns
from .find import find_parquet, natural_key
from .groups import find_group_column
from .labels import is_list
from .names import group_files, may_hold_splits
from .splits import Request, Split, Splitting

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def open_parquet(spec: Path, request: Request) -> ArrowSource:
    """Read a parquet file, a folder of them (`find.find_parquet`), or a glob.

    Words in the files' names tell the splits apart (`names.group_files`); where both are there, other
    files are left alone. Else see `arrow.open_blocks`. Paths of images are relative to the file.
    ``datasets`` keeps a copy of the columns in its cache. Errors are those of `open_images`.
    """
    found = _files(spec)
    parts: dict[Split, list[Path]] = {"all": found}
    if groups := group_files([path.as_posix() for path in found], origin=str(spec)):
        parts = {part: [Path(path) for path in paths] for part, paths in groups.items()}
    if request.splitting.folds is not None and "train" in parts:  # the folds cut the training images
        parts = {"all": parts["train"]}
    paths = [path for mine in parts.values() for path in mine]
    blocks = dict(zip(paths, _read(paths, request.splitting, alone=spec.is_file()), strict=True))
    return open_blocks(
        {part: [blocks[path] for path in mine] for part, mine in parts.items()}, str(spec), request
    )


def _files(spec: Path) -> list[Path]:
    if spec.is_dir():
        return find_parquet(spec)
    if spec.is_file():
        return [spec]
    found = sorted(map(Path, glob.glob(str(spec), recursive=True)), key=lambda path: natural_key(str(path)))
    if not found:
        raise UserError(f"no file matches {spec}")
    return found


def _read(paths: Sequence[Path], splitting: Splitting, *, alone: bool) -> list[Block]:
    """The files by ``datasets``' reader, each a block of its own; ``alone`` is the file that was given."""
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    features, lengths = zip(*(_header(path, splitting) for path in paths), strict=True)
    for path, other in zip(paths, features, strict=True):
        if other != features[0]:  # the reader would cast it, the numbers of other classes too
            raise UserError(
                f"{paths[0]} and {path} declare different classes or columns "
                f"({_short(features[0])}; {_short(other)}); they must be the same"
            )
    try:
        with quiet_datasets():
            data = Dataset.from_parquet(
                [glob.escape(str(path.resolve())) for path in paths],  # taken as patterns
                columns=list(features[0]),
                features=features[0],
            )
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"the images of {paths[0]} cannot be read ({reason_of(error.__cause__ or error)})"
        ) from error
    blocks = []
    start = 0
    for path, length in zip(paths, lengths, strict=True):
        rows = data.select(range(start, start + length))
        # How many files there are, which "-of-00008" says, may change.
        part = "" if alone else re.sub("-of-[0-9]+", "", path.name) + " "
        blocks.append(Block(rows, str(path), splitting, path.parent, part))
        start += length
    return blocks


def _header(path: Path, splitting: Splitting) -> tuple[datasets.Features, int]:
    """The columns that are used, with their types, and the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features

    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as parquet ({reason_of(error)}); give a parquet file or class folders"
        ) from error
    plain = pa.schema([field.with_type(_plain_type(field.type)) for field in schema], schema.metadata)
    try:
        features = Features.from_arrow_schema(plain)
    except Exception as error:  # the metadata is JSON that anyone may have written
        raise UserError(f"{path}: its Hugging Face metadata cannot be read ({reason_of(error)})") from error
    columns = find_columns(features, splitting, origin=str(path))
    others = [name for name in features if name != columns.image]
    column = None
    if splitting.group is not None:  # whether there are paths to search in, only the rows tell
        column = find_group_column(splitting.group, others, origin=str(path), has_paths=True)
    named = (columns.image, *columns.labels, column)
    used = [name for name in features if name in named or may_hold_splits(name)]
    return Features({name: features[name] for name in used}), rows


def _plain_type(stored: pa.DataType) -> pa.DataType:
    """Return the type with the same values that ``datasets`` can read: for dictionaries and views."""
    import pyarrow as pa

    if pa.types.is_dictionary(stored):
        return _plain_type(stored.value_type)
    if is_list(stored):
        return pa.list_(_plain_type(stored.value_type))
    if pa.types.is_struct(stored):
        return pa.struct([field.with_type(_plain_type(field.type)) for field in stored])
    return {"string_view": pa.string(), "binary_view": pa.binary()}.get(str(stored), stored)


def _short(features: datasets.Features) -> str:
    text = ", ".join(f"{name}: {feature}" for name, feature in features.items())
    return text if len(text) <= 200 else f"{text[:200]}…"
