"""Whole sets, each with what can be wrong."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import deadly
import pytest

from conformer_vision.check import CheckResult, check
from conformer_vision.data import Splitting
from conformer_vision.data.exclude import exclude, read_exclusions
from conformer_vision.errors import UserError
from image_sets import opened, patches, write_folders

EVIL = "<script>alert(1)"


@pytest.fixture(scope="module")
def checked(
    bad: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CheckResult, Path, list[tuple[int, int]]]:
    """The result on the bad set, the exclusion list, and the progress."""
    steps: list[tuple[int, int]] = []
    fix = tmp_path_factory.mktemp("fix") / "list.txt"
    result = check(bad.root, workers=2, fix=fix, progress=lambda done, total: steps.append((done, total)))
    return result, fix, steps


def below(root: Path, name: str | Path) -> str:
    return str(Path(name).relative_to(root))


def test_every_fault_is_found_and_nothing_else(checked: Any, bad: Any) -> None:
    result, _, steps = checked
    found: dict[str, set[str]] = {}
    for finding in result.findings:
        found.setdefault(finding.kind, set()).add(below(bad.root, finding.image.name))
    assert found == bad.findings
    groups: dict[str, list[set[str]]] = {}
    for group in result.duplicates:
        for kind in group.kinds:
            groups.setdefault(kind, []).append({below(bad.root, image.name) for image in group.images})
    assert groups == bad.groups
    assert [group.kinds[0] for group in result.duplicates] == ["leak", "leak", "conflict", "redundant"]
    assert [group.exact for group in result.duplicates] == [True, False, True, True]
    assert not result.clean
    passed_over = {"train/cat/photo.heic", "train/loose.jpg", "val/cat/notes.txt"}
    assert {below(bad.root, name) for name in result.passed_over} == passed_over
    assert len(result.passed_over) == result.counts["passed_over"] == 3
    files = [
        path for path in bad.root.rglob("*") if path.is_file() and below(bad.root, path) not in passed_over
    ]
    assert steps == [(number, len(files)) for number in range(1, len(files) + 1)]


def test_class_balance(checked: Any) -> None:
    result, _, _ = checked
    train, val = result.splits
    assert train.counts == {EVIL: 7, "cat": 19}
    assert val.counts == {EVIL: 3, "cat": 6}
    assert (train.images, val.images, result.images) == (26, 9, 35)
    assert train.ratio == pytest.approx(19 / 7)
    assert result.hints == ()


def test_json_holds_everything(checked: Any, bad: Any) -> None:
    result, _, _ = checked
    content = json.loads(result.to_json())
    assert content["counts"] == result.counts
    assert content["counts"]["leak"] == 2
    assert content["counts"]["redundant"] == 1
    assert content["counts"]["missing_class"] == 0
    assert str(bad.root / "train/cat/photo.heic") in content["passed_over"]
    assert content["splits"][0]["counts"] == {EVIL: 7, "cat": 19}
    assert {"name", "reason"} == set(content["excluded"][0])
    (cut,) = [found for found in content["findings"] if found["kind"] == "truncated"]
    assert cut["image"] == {"name": str(bad.root / "train/cat/cut.jpg"), "split": "train", "label": "cat"}


def test_the_exclusion_list_mends_the_set(checked: Any, bad: Any) -> None:
    _, fix, _ = checked
    names = read_exclusions(fix)
    assert {below(bad.root, name) for name in names} == {
        "train/cat/text.jpg",
        "val/cat/empty.png",
        "train/cat/cut.jpg",
        "train/cat/bomb.png",
        "train/cat/0.png",
        "train/cat/big.jpg",
        "train/cat/1.png",
        f"train/{EVIL}/conflict.png",
    }
    train, val = (exclude(opened(bad.root, split=split), names) for split in ("train", "val"))
    assert not train.unmatched & val.unmatched, "every name is that of an image"
    for source in (train, val):
        for index in range(len(source)):
            source.image(index)
    with fix.open(newline="") as file:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons[str(bad.root / "train/cat/0.png")] == f"copy of {bad.root / 'val/cat/leak.png'} in val"
    assert reasons[str(bad.root / "train/cat/bomb.png")] == "gigantic: 30,000 × 30,000 pixels"


def test_fix_duplicates_and_a_second_check(bad: Any, tmp_path: Path) -> None:
    root = shutil.copytree(bad.root, tmp_path / "set")
    result = check(root, workers=1, fix=tmp_path / "list", fix_duplicates=True)
    assert len(result.excluded) == 8 + 3
    for name in read_exclusions(tmp_path / "list"):
        Path(name).unlink()
    again = check(root, workers=1)
    kinds = {kind for kind, count in again.counts.items() if count}
    assert kinds == {
        "extension",
        "tiny",
        "elongated",
        "single_colour",
        "several_frames",
        "low_range",
        "passed_over",
    }
    assert again.excluded == ()


def test_a_clean_set(clean: Path) -> None:
    result = check(clean, workers=1)
    assert result.clean
    assert (result.findings, result.duplicates, result.excluded) == ((), (), ())


def test_options_have_an_effect(clean: Path, tmp_path: Path) -> None:
    found = check(clean, workers=1, min_size=73, max_pixels=96 * 72).counts
    assert (found["tiny"], found["gigantic"]) == (18, 0)
    assert check(clean, workers=1, max_pixels=96 * 72 - 1).counts["gigantic"] == 18
    images = write_folders(tmp_path / "set", {"a": 10, "b": 10})
    patches(1000).rotate(2).save(images / "a/turned.png")
    strict = check(images, workers=1, splitting=Splitting(0.5), distance=0)
    train, val = (split.images for split in strict.splits)
    assert train + val == 21 and val > 3
    assert (len(strict.duplicates), len(check(images, workers=1, distance=8).duplicates)) == (0, 1)


def test_classes_out_of_balance(tmp_path: Path) -> None:
    write_folders(tmp_path / "set", {"many": 14, "few": 2, "one": 1})
    result = check(tmp_path / "set", workers=1)
    assert result.counts["missing_class"] == 1
    assert result.examples("missing_class") == ["one in val"]
    (hint,) = result.hints
    assert hint.startswith("the largest class of train has 13 times the images of the smallest: ")


def test_data_dir_reaches_the_source(monkeypatch: pytest.MonkeyPatch, clean: Path) -> None:
    given = []

    def source(data: object, split: Any, _: object, *, data_dir: object) -> object:
        given.append((data, split, data_dir))
        return opened(clean, split=split)

    monkeypatch.setattr("conformer_vision.check.run.open_images", source)
    check("torch/mnist", workers=1, data_dir="there")
    assert given == [("torch/mnist", "train", "there"), ("torch/mnist", "val", "there")]


def test_an_image_that_kills_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(data: object, split: str, *_: object, **__: object) -> deadly.DeadlySource:
        return deadly.DeadlySource(20 if split == "train" else 2)

    monkeypatch.setattr("conformer_vision.check.run.open_images", source)
    result = check("deadly", workers=2)
    broken = {found.image.name: found.detail for found in result.findings if found.kind == "broken"}
    assert broken == {"deadly row 3 of 20": "it ends the reading process (SIGKILL)"}
    assert result.counts["single_colour"] == 21, "all the others are read"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers 0: must be 1 or more"),
        ({"min_size": 0}, "min_size 0: must be 1"),
        ({"max_pixels": 0}, "max_pixels 0: must be from 1 to 178956970"),
        ({"max_pixels": 10**9}, "max_pixels 1000000000: must be from 1"),
        ({"distance": 9}, "distance 9: must be from 0 to 8"),
        ({"distance": -1}, "distance -1: must be"),
        ({"timeout": 0.0}, "timeout 0.0: must be above 0"),
        ({"timeout": float("nan")}, "timeout nan: must be above 0"),
        ({"page": "missing/page.html"}, "cannot write missing/page.html: there is no folder missing"),
        ({"fix": "."}, r"cannot write \.: it is a folder"),
    ],
)
def test_mistakes_are_named_before_the_long_part(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check("nothing-here", **options)


def test_real_images(shared_dir: Path) -> None:
    """Twins in CIFAR-10's test set that others have found, too: all of one class each."""
    result = check(shared_dir / "data/cifar10/test.parquet", workers=2)
    assert result.findings == ()
    assert 5 <= len(result.duplicates) <= 15
    assert result.counts["conflict"] == 0


def test_groups_on_both_sides(tmp_path: Path) -> None:
    write_folders(tmp_path / "set" / "train", {"cat": 4, "dog": 4})
    write_folders(tmp_path / "set" / "val", {"cat": 2, "dog": 2})
    for path in (tmp_path / "set").rglob("*.png"):
        shown = f"{path.parts[-3]}{path.stem}" if path.stem != "1" else "shared"
        path.rename(path.with_name(f"{shown}_{path.stem}.png"))
    fix, page = tmp_path / "fix.csv", tmp_path / "page.html"
    result = check(
        tmp_path / "set", splitting=Splitting(group=r"(\w+)_\d"), workers=1, fix=fix, page=page, distance=0
    )
    assert result.shared_groups == ("shared",)
    assert (result.counts["shared_group"], result.examples("shared_group")) == (1, ["shared"])
    assert json.loads(result.to_json())["shared_groups"] == ["shared"]
    listed = dict(row[:2] for row in csv.reader(fix.open()))
    for name in ("cat", "dog"):  # its images in train are left out
        path = tmp_path / "set" / "train" / name / "shared_1.png"
        assert "its group shared is in val too" in listed.pop(str(path))
    assert "groups across train and val" in page.read_text()
    assert check(tmp_path / "set", workers=1, distance=0).shared_groups == ()
