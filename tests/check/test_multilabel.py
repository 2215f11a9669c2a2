"""The check of images with several labels."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from command_line import run
from conformer_vision.check import CheckResult, check
from conformer_vision.data import Splitting
from image_sets import patches

LABELS = ["x|z", "y|z", "z", "x|y|z", "z", "y|z|v"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of train, all of z and one of v; four of val, of which two have no label."""
    root = tmp_path_factory.mktemp("tagged")
    rows = [(f"{n}.png", labels, "train") for n, labels in enumerate(LABELS)]
    rows += [("6.png", "x|y", "val"), ("7.png", "", "val"), ("8.png", "z", "val"), ("9.png", "", "val")]
    rows += [("copy.png", "z|x", "train"), ("other.png", "z", "train"), ("none.png", "x", "train")]
    for number in range(10):
        patches(number).save(root / f"{number}.png")
    for name, original in (("copy", 0), ("other", 1), ("none", 9)):
        shutil.copy(root / f"{original}.png", root / f"{name}.png")
    with (root / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "tags", "split"), *rows])
    return root / "set.csv"


@pytest.fixture(scope="module")
def result(table: Path) -> CheckResult:
    splitting = Splitting(label_column="tags", label_separator="|")
    return check(table, splitting=splitting, workers=1, page=table.parent / "page.html", distance=0)


def names(result: CheckResult, kind: str) -> list[set[str]]:
    groups = [group for group in result.duplicates if kind in group.kinds]
    return [{os.path.basename(image.name) for image in group.images} for group in groups]


def test_classes_count_labels(result: CheckResult) -> None:
    train, val = result.splits
    assert train.counts == {"v": 1, "x": 4, "y": 3, "z": 8} and train.images == 9
    assert val.counts == {"v": 0, "x": 1, "y": 1, "z": 1}
    assert (train.labels_per_image, val.labels_per_image) == ({1: 4, 2: 3, 3: 2}, {0: 2, 1: 1, 2: 1})
    assert result.examples("missing_class") == ["v in val"]
    (hint,) = result.hints
    assert hint.endswith("has 8 times the images of the smallest: train with class_weights='balanced'")


def test_copies_with_other_labels(result: CheckResult) -> None:
    """Labels are compared as a whole, whatever their order."""
    assert names(result, "conflict") == [{"9.png", "none.png"}, {"1.png", "other.png"}]
    assert names(result, "leak") == [{"9.png", "none.png"}]
    assert names(result, "redundant") == [{"0.png", "copy.png"}]
    reasons = {os.path.basename(name): reason for name, reason in result.excluded}
    assert reasons["1.png"].endswith("other.png, but is y|z and not z")
    assert reasons["none.png"].startswith("copy of ") and reasons["none.png"].endswith("9.png in val")
    assert reasons.keys() == {"1.png", "other.png", "none.png"}
    (leak,) = (group for group in result.duplicates if "leak" in group.kinds)
    assert [image.label for image in leak.images] == ["x", "no label"]


def test_a_class_of_all_images(table: Path) -> None:
    rows = table.read_text().splitlines()
    less = table.parent / "less.csv"
    less.write_text("\n".join(row for row in rows if "none.png" not in row))
    found = check(less, splitting=Splitting(label_column="tags", label_separator="|"), workers=1, distance=0)
    assert found.examples("constant_class") == ["z in train"]
    assert found.counts["constant_class"] == 1 and not found.clean
    assert json.loads(found.to_json())["splits"][0]["constant"] == ["z"]


def test_no_class_of_one_label_is_in_all_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    patches(1).save(tmp_path / "train" / "a" / "0.png")
    for name in "ab":
        (tmp_path / "val" / name).mkdir(parents=True)
        patches(ord(name)).save(tmp_path / "val" / name / "0.png")
    (tmp_path / "train" / "b").mkdir()
    patches(3).save(tmp_path / "train" / "b" / "0.png")
    found = check(tmp_path, workers=1)
    assert (found.counts["constant_class"], found.splits[0].labels_line) == (0, None)
    assert json.loads(found.to_json())["splits"][0]["labels_per_image"] is None


def test_what_is_printed(table: Path, result: CheckResult) -> None:
    done = run("check", str(table), "--label_column", "tags", "--label_separator", "|", "--workers", "1")
    assert "train: 1 to 3 labels per image, 1.8 on average" in done.out
    assert "val: 0 to 2 labels per image, 0.8 on average; 2 images have none" in done.out
    page = (table.parent / "page.html").read_text()
    assert "0 to 2 labels per image, 0.8 on average; 2 images have none" in page and "no label" in page
    done = run("check", str(table), "--label_column", "tags", "--workers", "1", "--label_separator", ";")
    assert (done.status, done.err.count("\n")) == (2, 1) and "parts no label of" in done.err
