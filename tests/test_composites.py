"""The script that makes images with several labels of Tiny-ImageNet's photos."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import composites
from composites import Recipe, compose, make_set
from conformer_vision.data import class_counts
from image_sets import opened
from localization_set import CLASSES, Photos, share_out

NAMES = CLASSES.read_text(encoding="utf-8").splitlines()
COUNTS = {"train": 40, "val": 12, "test": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in the layout of Tiny-ImageNet: grey of 10 for each class, and white for others."""
    folder = tmp_path_factory.mktemp("source")
    names = [*NAMES, "n9 other"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for part, each in (("train-0", 8), ("val", 2)):
        labels = [label for label in range(len(names)) for _ in range(each if label < 20 else 10 * each)]
        images = [Image.new("RGB", (64, 64), (10 * label if label < 20 else 255,) * 3) for label in labels]
        datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(
            folder / f"{part}.parquet"
        )
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("placement", ["grid", "random"])
def test_the_labels_are_what_the_image_shows(source: Path, placement: str) -> None:
    photos = Photos.read(str(source / "train*.parquet"))
    share = share_out(photos, NAMES, {"train": 1.0}, seed=0)["train"]
    seen: Counter[int] = Counter()
    sizes = set()
    for seed in range(200):
        recipe = Recipe(size=64, placement=placement)
        image, labels = compose(photos, share, recipe, np.random.default_rng(seed))
        greys, counts = np.unique(np.asarray(image)[..., 0], return_counts=True)
        shown = {int(grey) // 10: int(count) for grey, count in zip(greys, counts, strict=True) if grey < 255}
        assert [*shown] == labels == sorted({*labels})
        sizes |= {*shown.values()}
        seen[len(labels)] += 1
    assert seen.keys() == {2, 3, 4} and min(seen.values()) > 40
    assert sizes == {32 * 32} if placement == "grid" else min(sizes) < 500 and max(sizes) <= 1024


def test_the_set_is_the_same_every_time(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_set(source, tmp_path / name, Recipe(seed=seed), COUNTS, val_share=0.25)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")
    with pytest.raises(ValueError, match="a is not empty"):
        make_set(source, tmp_path / "a", Recipe(), COUNTS)
    for part in ("train", "val"):
        images = opened(tmp_path / "a" / "set.csv", part)
        assert (len(images), images.multilabel, images.is_cut) == (COUNTS[part], True, False)
        assert set(images.classes) == {*NAMES} and class_counts(images).sum() >= 2 * len(images)
        assert images.image(0).size == (128, 128)
    assert len(opened(tmp_path / "a" / "test.csv", "val", classes=NAMES)) == COUNTS["test"]
    with (tmp_path / "a" / "test.csv").open(newline="") as file:
        assert all({*json.loads(row["labels"])} <= {*NAMES} for row in csv.DictReader(file))


def test_the_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--size", "64", "--placement", "random", "--train", "25", "--val", "9", "--test", "3"]
    monkeypatch.setattr("sys.argv", ["composites.py", str(source), str(tmp_path / "made"), *options])
    composites.main()
    assert {part: len([*(tmp_path / "made" / part).iterdir()]) for part in COUNTS} == {
        "train": 25,
        "val": 9,
        "test": 3,
    }
