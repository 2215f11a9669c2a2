"""Small streamed sets, and what tests of streams ask of them."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from conformer_vision.data import BrokenImageError, ImageStream, Splitting, open_images
from conformer_vision.data.stream import StreamedImage

NAMES = ("x", "y", "z")


def encode(colour: Any = "red", *, kind: str = "PNG") -> bytes:
    """The file of an image of 8 × 8 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return buffer.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    """The colour of image ``number``, which tells it from every other."""
    return (number % 256, number // 256, 7)


def numbers(items: Sequence[StreamedImage]) -> list[int]:
    """The numbers of the images, by their colours."""
    found = []
    for item in items:
        red, green, blue = item.image().getpixel((0, 0))  # type: ignore[misc]
        assert blue == 7
        found.append(red + 256 * green)
    return found


def problem(item: StreamedImage) -> str:
    """Why an image cannot be read; empty if it can."""
    try:
        item.image()
    except BrokenImageError as error:
        return str(error)
    return ""


def opened_stream(spec: str | Path, split: Any = "all", **options: Any) -> ImageStream:
    """`open_images` for streams."""
    splitting = Splitting(
        options.pop("val_fraction", 0.1), options.pop("seed", 0), options.pop("folds", None)
    )
    stream = open_images(spec, split, splitting, **options)
    assert isinstance(stream, ImageStream)
    return stream


def read(stream: ImageStream, **options: Any) -> list[StreamedImage]:
    """All images of a part; the only one in stored order where not said otherwise."""
    return list(stream.read(**({"seed": None, "part": 0, "parts": 1} | options)))


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], *, mode: str = "w") -> Path:
    """A tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def files_of(count: int, *, first: int = 0, images: Mapping[int, bytes] | None = None) -> list[bytes]:
    """Files of images ``first``, ``first + 1``, ...; some of them as given."""
    files = [encode(colour(first + number)) for number in range(count)]
    for number, data in (images or {}).items():
        files[number] = data
    return files


def write_shards(
    root: Path, lengths: Sequence[int], *, first: int = 0, images: Mapping[int, bytes] | None = None
) -> str:
    """Tar shards of images 0, 1, ... of labels 0, 1, 2, 0, ...; gives the spec."""
    files = files_of(sum(lengths), first=first, images=images)
    place = 0
    for shard, length in enumerate(lengths):
        members = []
        for number in range(place, place + length):
            members.append((f"{number:04d}.cls", str((first + number) % 3).encode()))
            members.append((f"{number:04d}.png", files[number]))
        write_tar(root / f"shard-{shard:03d}.tar", members)
        place += length
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return f"wds/{root}"


def write_rows(
    root: Path, lengths: Sequence[int], *, first: int = 0, images: Mapping[int, bytes] | None = None
) -> str:
    """The same as parquet files."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    files = files_of(sum(lengths), first=first, images=images)
    root.mkdir(parents=True, exist_ok=True)
    place = 0
    for shard, length in enumerate(lengths):
        part = range(place, place + length)
        columns = {
            "image": [{"bytes": files[number], "path": None} for number in part],
            "label": [(first + number) % 3 for number in part],
        }
        table = pa.table(columns, schema=features.arrow_schema)
        pq.write_table(
            table, root / f"{root.name}-{shard:05d}-of-{len(lengths):05d}.parquet", row_group_size=4
        )
        place += length
    return f"hfids/{root}"
