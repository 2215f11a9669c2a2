"""Writing images as shards, to be streamed."""

from __future__ import annotations

import json
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from conformer_vision.errors import UserError, reason_of
from conformer_vision.files import atomic_path

from ..base import ImageSource
from ..images import is_image_name
from .base import require
from .classes import CLASSES_FILE, INFO_FILE

ShardFormat = Literal["webdataset", "litdata"]


def write_shards(
    source: ImageSource,
    folder: str | Path,
    *,
    format: ShardFormat,  # noqa: A002  # the word that users know
    images_per_shard: int,
    seed: int = 0,
) -> list[Path]:
    """Writes all images of a source as shards that `open_stream` reads.

    Image files go in as they are; images of other sources as PNG. Their order is drawn by seed,
    so that every shard holds images of all classes. ``classes.txt`` and ``_info.json`` are written
    beside the shards.

    Args:
        source: the images.
        folder: made where it is missing; empty.
        format: ``webdataset`` for tar files, ``litdata`` for its chunks.
        images_per_shard: images in each shard but the last.
        seed: seed of the order.

    Returns:
        the shards' files.

    Raises:
        UserError: a folder that is not empty or cannot be written, a number that cannot be, a
            broken image.
    """
    if format not in ("webdataset", "litdata"):
        raise UserError(f"format {format!r}: must be webdataset or litdata")
    if images_per_shard < 1:
        raise UserError(f"images_per_shard {images_per_shard}: must be 1 or more")
    bad = next((name for name in source.classes if name != name.strip() or "\n" in name), None)
    if bad is not None:
        raise UserError(f"class {bad!r}: {CLASSES_FILE} cannot hold this name; it has a line break or edges")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; give a new folder")
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {reason_of(error)}") from error
    write = _write_tars if format == "webdataset" else _write_chunks
    files = write(source, folder, _order(len(source), seed), images_per_shard)
    with atomic_path(folder / CLASSES_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")
    with atomic_path(folder / INFO_FILE) as temporary:
        temporary.write_text(json.dumps(_info(source, files, images_per_shard), indent=1), encoding="utf-8")
    return files


def _order(length: int, seed: int) -> list[int]:
    import numpy as np

    order: list[int] = np.random.default_rng(seed).permutation(length).tolist()
    return order


def _info(source: ImageSource, files: list[Path], images_per_shard: int) -> dict[str, Any]:
    """timm's layout, from which its reader of shards takes their lengths; the rest is ours."""
    count = len(source)
    lengths = [min(images_per_shard, count - first) for first in range(0, count, images_per_shard)]
    names = [file.name for file in files]
    split = {"name": "train", "num_samples": count, "filenames": names, "shard_lengths": lengths}
    return {"mirrorable": source.mirrorable, "splits": {"train": split}}


def _write_tars(source: ImageSource, folder: Path, order: list[int], per_shard: int) -> list[Path]:
    writer = require("webdataset.writer").TarWriter
    files = []
    for number, first in enumerate(range(0, len(order), per_shard)):
        path = folder / f"shard-{number:06d}.tar"
        # The same images make the same file: no times, no user.
        with (
            atomic_path(path) as temporary,
            open(temporary, "wb") as file,
            writer(file, encoder=False, mtime=0, user="", group="") as tar,
        ):
            for place in range(first, min(first + per_shard, len(order))):
                kind, data, label = _encoded(source, order[place])
                tar.write({"__key__": f"{place:09d}", kind: data, "cls": str(label).encode()})
        files.append(path)
    return files


def _write_chunks(source: ImageSource, folder: Path, order: list[int], per_shard: int) -> list[Path]:
    cache = require("litdata.streaming.cache").Cache
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp") as temporary:
        writer = cache(temporary, chunk_size=per_shard)
        for place, (_, data, label) in enumerate(_encoded(source, index) for index in order):
            writer[place] = {"image": data, "label": label}
        writer.done()
        writer.merge()
        with open(os.path.join(temporary, "index.json"), encoding="utf-8") as file:
            names = [chunk["filename"] for chunk in json.load(file)["chunks"]]
        for name in [*names, "index.json"]:  # the index last: it says that all is there
            os.replace(os.path.join(temporary, name), folder / name)
    return [folder / name for name in names]


def _encoded(source: ImageSource, index: int) -> tuple[str, bytes, int]:
    """Suffix, bytes and label of an image."""
    label = source.labels[index]
    path = Path(source.name(index))  # sources of files call an image by its path
    if is_image_name(path.name) and path.is_file():
        return path.suffix.lower().removeprefix("."), path.read_bytes(), label
    buffer = BytesIO()
    source.image(index).save(buffer, "PNG")
    return "png", buffer.getvalue(), label
