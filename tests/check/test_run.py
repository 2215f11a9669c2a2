"""Whole sets, each with what can be wrong."""

import csv
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deadly
import pytest
from PIL import Image

from conformer_vision.check import CheckResult, check
from conformer_vision.data import Splitting
from conformer_vision.data.exclude import exclude, read_exclusions
from conformer_vision.errors import UserError
from image_sets import opened


@pytest.fixture(scope="module")
def checked(
    bad: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CheckResult, Path, list[tuple[int, int]]]:
    """The result on the bad set, the exclusion list, and the progress."""
    steps: list[tuple[int, int]] = []
    fix = tmp_path_factory.mktemp("fix") / "list.txt"
    result = check(bad.root, workers=2, fix=fix, progress=lambda done, total: steps.append((done, total)))
    return result, fix, steps


def below(root: Path, name: str) -> str:
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
    files = [path for path in bad.root.rglob("*") if path.is_file()]
    assert steps == [(number, len(files)) for number in range(1, len(files) + 1)]


def test_class_balance(checked: Any) -> None:
    result, _, _ = checked
    train, val = result.splits
    assert train.counts == {"<script>alert(1)": 7, "cat": 18}
    assert val.counts == {"<script>alert(1)": 3, "cat": 6}
    assert (train.images, val.images, result.images) == (25, 9, 34)
    assert train.ratio == pytest.approx(18 / 7)
    assert result.hints == ()


def test_json_holds_everything(checked: Any, bad: Any) -> None:
    result, _, _ = checked
    content = json.loads(result.to_json())
    assert content["counts"] == result.counts
    assert content["counts"]["leak"] == 2
    assert content["counts"]["redundant"] == 1
    assert content["counts"]["missing_class"] == 0
    assert content["splits"][0]["counts"] == {"<script>alert(1)": 7, "cat": 18}
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
        "train/<script>alert(1)/conflict.png",
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
    assert {kind for kind, count in again.counts.items() if count} == {
        "extension",
        "tiny",
        "elongated",
        "single_colour",
        "several_frames",
    }
    assert again.excluded == ()


def test_a_clean_set(clean: Path) -> None:
    result = check(clean, workers=1)
    assert result.clean
    assert (result.findings, result.duplicates, result.excluded) == ((), (), ())
    assert result.splits[0].counts == {"<script>alert(1)": 6, "cat": 6}


def test_options_have_an_effect(clean: Path, tmp_path: Path, make_image: Callable[..., Image.Image]) -> None:
    assert check(clean, workers=1, min_size=73).counts["tiny"] == 18
    assert check(clean, workers=1, max_pixels=96 * 72 - 1).counts["gigantic"] == 18
    for number in range(10):
        for name in ("a", "b"):
            path = tmp_path / "set" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            make_image(number if name == "a" else number + 50).save(path)
    halves = check(tmp_path / "set", workers=1, splitting=Splitting(0.5))
    assert [split.images for split in halves.splits] == [10, 10]
    image = make_image(0).rotate(2)
    image.save(tmp_path / "set/a/turned.png")
    found = [check(tmp_path / "set", workers=1, distance=distance) for distance in (0, 8)]
    assert [len(result.duplicates) for result in found] == [0, 1]


def test_classes_out_of_balance(tmp_path: Path, make_image: Callable[..., Image.Image]) -> None:
    seed = 0
    for name, count in (("many", 14), ("few", 2), ("one", 1)):
        (tmp_path / name).mkdir()
        for number in range(count):
            make_image(seed).save(tmp_path / name / f"{number}.png")
            seed += 1
    result = check(tmp_path, workers=1)
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


def test_images_that_kill_or_stop_their_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(data: object, split: str, *_: object, **__: object) -> deadly.DeadlySource:
        return deadly.DeadlySource(range(0, 250, 10) if split == "train" else [251, 253], split=split)

    monkeypatch.setattr("conformer_vision.check.run.open_images", source)
    result = check("deadly", workers=2, timeout=5)
    broken = {found.image.name: found.detail for found in result.findings if found.kind == "broken"}
    assert broken == {
        "deadly train row 3": "it ends the reading process (SIGKILL)",
        "deadly train row 5": "reading it takes longer than 5 seconds",
    }
    assert result.counts["single_colour"] == 25, "all the others are read"


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
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        check("digits", **options)
    assert time.monotonic() - began < 5


def test_real_images(shared_dir: Path) -> None:
    """Twins in CIFAR-10's test set that others have found, too: all of one class each."""
    result = check(shared_dir / "data/cifar10/test.parquet", workers=2)
    assert result.findings == ()
    assert 5 <= len(result.duplicates) <= 15
    assert result.counts["conflict"] == 0
