"""Images of random patches, and a set with one of everything that can be wrong."""

import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

# What the reading processes run in the tests of their deaths must be importable there.
sys.path.insert(0, str(Path(__file__).parent))

MakeImage = Callable[..., Image.Image]


def make_image(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image like no other one: 6 × 8 random colours, blurred into each other."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(name="make_image")
def make_image_fixture() -> MakeImage:
    return make_image


@pytest.fixture(name="bomb")
def bomb_fixture() -> Callable[[int, int], bytes]:
    return bomb


class Bad(NamedTuple):
    """A set with known faults."""

    root: Path
    findings: dict[str, set[str]]
    """Kind -> paths below the root."""
    groups: dict[str, list[set[str]]]
    """Kind of duplicates -> the groups."""


def write_clean(root: Path) -> Path:
    """Two classes with a split, and nothing to find."""
    seed = 1000
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "<script>alert(1)"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                make_image(seed).save(root / split / name / f"{number}.png")
                seed += 1
    return root


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "set")


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Bad:
    root = write_clean(tmp_path_factory.mktemp("bad") / "set")
    cat, other, val = root / "train/cat", root / "train/<script>alert(1)", root / "val/cat"
    whole = root / "whole.jpg"
    make_image(1).save(whole)
    (cat / "cut.jpg").write_bytes(whole.read_bytes()[:-500])
    whole.unlink()
    (cat / "text.jpg").write_bytes(b"no image")
    (val / "empty.png").write_bytes(b"")
    (cat / "bomb.png").write_bytes(bomb(30_000, 30_000))
    make_image(2).save(cat / "a_png.jpg", "PNG")
    make_image(3, (5, 9)).save(cat / "small.png")
    make_image(4, (400, 40)).save(cat / "long.png")
    Image.new("RGB", (40, 30), "red").save(cat / "red.png")
    frames = [make_image(seed) for seed in (5, 6)]
    frames[0].save(cat / "moving.gif", save_all=True, append_images=frames[1:])

    shutil.copy(cat / "0.png", val / "leak.png")
    make_image(7, (300, 200)).save(cat / "big.jpg")
    make_image(7, (300, 200)).resize((150, 100)).save(val / "half.jpg", quality=60)
    shutil.copy(cat / "1.png", other / "conflict.png")
    for number in range(3):
        shutil.copy(cat / "2.png", cat / f"again{number}.png")
    return Bad(
        root,
        {
            "broken": {"train/cat/text.jpg", "val/cat/empty.png"},
            "truncated": {"train/cat/cut.jpg"},
            "gigantic": {"train/cat/bomb.png"},
            "extension": {"train/cat/a_png.jpg"},
            "tiny": {"train/cat/small.png"},
            "elongated": {"train/cat/long.png"},
            "single_colour": {"train/cat/red.png"},
            "several_frames": {"train/cat/moving.gif"},
        },
        {
            "leak": [
                {"train/cat/0.png", "val/cat/leak.png"},
                {"train/cat/big.jpg", "val/cat/half.jpg"},
            ],
            "conflict": [{"train/cat/1.png", "train/<script>alert(1)/conflict.png"}],
            "redundant": [{"train/cat/2.png", *(f"train/cat/again{number}.png" for number in range(3))}],
        },
    )
