"""Writing images of a source: single files, and shards to stream."""

from __future__ import annotations

import json
import re
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path

from .base import ImageSource
from .shard_info import CLASSES_FILE, INFO_FILE


def write_examples(source: ImageSource, folder: str | Path, *, count: int, seed: int = 0) -> list[Path]:
    """Write images drawn at random as PNG files ``CLASS_NUMBER.png``, in the order of their numbers.

    Args:
        source: where to draw from.
        folder: made where it is missing.
        count: images to write.
        seed: seed of the draw.

    Raises:
        UserError: more images than the source has, or a folder that cannot be written.
    """
    import numpy as np

    if not 0 < count <= len(source):
        raise UserError(f"count {count}: must be from 1 to the {len(source)} images of the source")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    paths = []
    for index in sorted(np.random.default_rng(seed).permutation(len(source))[:count].tolist()):
        image, label = source[index]
        name = re.sub(r"[^\w.-]+", "_", source.classes[label])
        paths.append(folder / f"{name}_{index:05d}.png")
        with atomic_path(paths[-1]) as temporary:
            image.save(temporary)
    return paths


def write_shards(
    source: ImageSource,
    folder: str | Path,
    *,
    images_per_shard: int,
    seed: int = 0,
) -> list[Path]:
    """Write all images of a source as tar shards in WebDataset's layout, which ``wds/FOLDER`` reads.

    Image files go in as they are where all have the same suffix; else images are written as PNG.
    Their order is drawn by seed, so that every shard holds images of all classes. ``classes.txt`` and
    ``_info.json`` are written beside the shards.

    Args:
        source: the images.
        folder: made where it is missing; empty.
        images_per_shard: images in each shard but the last.
        seed: seed of the order.

    Returns:
        the shards' files.

    Raises:
        UserError: a folder that is not empty or cannot be written, a number out of range, or a broken
            image.
    """
    if images_per_shard < 1:
        raise UserError(f"images_per_shard {images_per_shard}: must be 1 or more")
    bad = next((name for name in source.classes if name != name.strip() or "\n" in name), None)
    if bad is not None:
        raise UserError(
            f"class {bad!r}: {CLASSES_FILE} cannot hold this name: it has a line break, or spaces at an end"
        )
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; give a new folder")
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    files = _write_tars(source, folder, _order(len(source), seed), images_per_shard)
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
    suffix = _common_suffix(source)
    files = []
    for number, first in enumerate(range(0, len(order), per_shard)):
        path = folder / f"shard-{number:06d}.tar"
        with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
            for place in range(first, min(first + per_shard, len(order))):
                index = order[place]
                _add(tar, f"{place:09d}.cls", str(source.labels[index]).encode())
                if suffix is None:
                    _add(tar, f"{place:09d}.png", _as_png(source, index))
                else:
                    _add(tar, f"{place:09d}{suffix}", _file(source, index))
        files.append(path)
    return files


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no times, no user: the same images make the same file
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _common_suffix(source: ImageSource) -> str | None:
    """The suffix of all the source's files; None where they differ or the source keeps no files."""
    suffixes = set()
    for index in range(len(source)):
        file = source.file(index)
        suffixes.add(file.suffix.lower() if isinstance(file, Path) else None)
        if len(suffixes) > 1:
            return None
    return suffixes.pop() if suffixes else None


def _file(source: ImageSource, index: int) -> bytes:
    source.image(index)  # a broken image is found now
    file = source.file(index)
    if not isinstance(file, Path):
        raise TypeError(file)
    return file.read_bytes()


def _as_png(source: ImageSource, index: int) -> bytes:
    buffer = BytesIO()
    source.image(index).save(buffer, "PNG")
    return buffer.getvalue()
