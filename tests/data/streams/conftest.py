"""Small sets in every streamed format, written on the spot."""

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import Splitting
from conformer_vision.data.streams import ImageStream, StreamedImage, open_stream

KINDS = ("hub", "webdataset", "litdata")
NAMES = ("x", "y", "z")


def colour(number: int) -> tuple[int, int, int]:
    """The colour of image ``number``, which tells it from every other."""
    return (number % 256, number // 256, 7)


def numbers(items: Sequence[StreamedImage]) -> list[int]:
    """The numbers of the images, by their colours."""
    found = []
    for item in items:
        assert not isinstance(item.image, Exception), item.image
        red, green, blue = item.image.getpixel((0, 0))  # type: ignore[misc]
        assert blue == 7
        found.append(red + 256 * green)
    return found


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], *, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_litdata(folder: Path, samples: Sequence[Any], *, per_chunk: int) -> Path:
    pytest.importorskip("litdata")
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_size=per_chunk)
    for number, sample in enumerate(samples):
        cache[number] = sample
    cache.done()
    cache.merge()
    return folder


@pytest.fixture
def tools() -> Any:
    """What the tests of this folder share; a fixture, as test files cannot import each other."""

    class Tools:
        pass

    Tools.numbers = staticmethod(numbers)  # type: ignore[attr-defined]
    Tools.colour = staticmethod(colour)  # type: ignore[attr-defined]
    Tools.write_tar = staticmethod(write_tar)  # type: ignore[attr-defined]
    Tools.write_litdata = staticmethod(write_litdata)  # type: ignore[attr-defined]
    Tools.open = staticmethod(open_split)  # type: ignore[attr-defined]
    return Tools


def open_split(spec: str | Path, split: str = "all", **options: Any) -> ImageStream:
    splitting = Splitting(options.pop("val_fraction", 0.1), options.pop("seed", 0))
    return open_stream(spec, split=split, splitting=splitting, **options)  # type: ignore[arg-type]


@pytest.fixture
def write_set(
    tmp_path: Path, encode: Callable[..., bytes], parquet: Callable[..., Path]
) -> Callable[..., str]:
    """Writes images 0, 1, ... of labels 0, 1, 2, 0, ... in shards of the given lengths; gives the spec."""

    def write(
        kind: str,
        lengths: Sequence[int],
        *,
        folder: str = "set",
        first: int = 0,
        images: Mapping[int, bytes] | None = None,
    ) -> str:
        root = tmp_path / kind / folder
        count = sum(lengths)
        files = [encode(colour(first + number)) for number in range(count)]
        for number, data in (images or {}).items():
            files[number] = data
        labels = [(first + number) % 3 for number in range(count)]
        if kind == "litdata":
            assert len(set(lengths[:-1])) <= 1
            samples = [{"image": p, "label": n} for p, n in zip(files, labels, strict=True)]
            write_litdata(root, samples, per_chunk=lengths[0])
        place = 0
        for shard, length in enumerate(lengths):
            part = slice(place, place + length)
            if kind == "hub":
                parquet(
                    f"{root}/{folder}-{shard:05d}-of-{len(lengths):05d}.parquet",
                    labels[part],
                    names=NAMES,
                    images=files[part],
                )
            elif kind == "webdataset":
                pytest.importorskip("webdataset")
                members: list[tuple[str, bytes]] = []
                for number in range(place, place + length):
                    members.append((f"{number:04d}.cls", str(labels[number]).encode()))
                    members.append((f"{number:04d}.png", files[number]))
                write_tar(root / f"shard-{shard:03d}.tar", members)
            place += length
        if kind != "hub":
            (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
        return {"hub": "hfids/", "webdataset": "wds/", "litdata": "litdata/"}[kind] + str(root)

    return write
