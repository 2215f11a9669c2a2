"""A set without faults, and one with one of everything that can be wrong."""

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from image_sets import patches, with_size, write_folders

# What the reading processes run in the tests of their deaths must be importable there.
sys.path.insert(0, str(Path(__file__).parent))

EVIL = "<script>alert(1)"


class Bad(NamedTuple):
    """A set with known faults."""

    root: Path
    findings: dict[str, set[str]]
    """Kind -> paths below the root."""
    groups: dict[str, list[set[str]]]
    """Kind of duplicates -> the groups."""


def write_clean(root: Path) -> Path:
    """Two classes with a split, and nothing to find."""
    return write_folders(root, {"train/cat": 6, f"train/{EVIL}": 6, "val/cat": 3, f"val/{EVIL}": 3})


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clean(tmp_path_factory.mktemp("clean") / "set")


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Bad:
    root = write_clean(tmp_path_factory.mktemp("bad") / "set")
    cat, other, val = root / "train/cat", root / "train" / EVIL, root / "val/cat"
    patches(1).save(cat / "cut.jpg")
    (cat / "cut.jpg").write_bytes((cat / "cut.jpg").read_bytes()[:-500])
    (cat / "text.jpg").write_bytes(b"no image")
    (val / "empty.png").write_bytes(b"")
    (cat / "bomb.png").write_bytes(with_size((cat / "0.png").read_bytes(), 30_000, 30_000))
    patches(2).save(cat / "a_png.jpg", "PNG")
    patches(3, (5, 9)).save(cat / "small.png")
    patches(4, (400, 40)).save(cat / "long.png")
    Image.new("RGB", (40, 30), "red").save(cat / "red.png")
    patches(5).save(cat / "moving.gif", save_all=True, append_images=[patches(6)])
    dim = np.random.default_rng(0).integers(0, 4096, (60, 60), dtype=np.uint16)  # 12 bits
    Image.fromarray(dim).save(cat / "dim.png")
    for name in ("train/cat/photo.heic", "train/loose.jpg", "val/cat/notes.txt"):
        (root / name).write_bytes(b"?")

    shutil.copy(cat / "0.png", val / "leak.png")
    patches(7, (300, 200)).save(cat / "big.jpg")
    patches(7, (300, 200)).resize((150, 100)).save(val / "half.jpg", quality=60)
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
            "low_range": {"train/cat/dim.png"},
        },
        {
            "leak": [{"train/cat/0.png", "val/cat/leak.png"}, {"train/cat/big.jpg", "val/cat/half.jpg"}],
            "conflict": [{"train/cat/1.png", f"train/{EVIL}/conflict.png"}],
            "redundant": [{"train/cat/2.png", *(f"train/cat/again{number}.png" for number in range(3))}],
        },
    )
