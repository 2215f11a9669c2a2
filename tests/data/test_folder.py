from collections.abc import Callable
from pathlib import Path

import pytest

from conformer_vision.errors import UserError
from image_sets import opened

Folders = Callable[..., Path]
WriteImage = Callable[..., Path]


def test_nested_upper_case_and_hidden(tmp_path: Path, write_image: WriteImage) -> None:
    for name in ("cat/deep/er/1.PNG", "cat/2.png", "dog/1.png", "dog/.3.png", ".cache/4.png", "loose.png"):
        write_image(tmp_path / name)
    source = opened(tmp_path, split="all")
    assert source.classes == ("cat", "dog")
    assert [Path(source.name(i)).name for i in range(len(source))] == ["2.png", "1.PNG", "1.png"]
    assert list(source.labels) == [0, 0, 1]


def test_links(tmp_path: Path, class_folders: Folders) -> None:
    class_folders(tmp_path / "store", ["cat", "dog"])
    root = tmp_path / "root"
    (root / "dog").mkdir(parents=True)
    (root / "cat").symlink_to(tmp_path / "store" / "cat")
    (root / "dog" / "more").symlink_to(tmp_path / "store" / "dog")
    (root / "dog" / "loop").symlink_to(root)
    assert list(opened(root, split="all").labels) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_train_and_val_folders(tmp_path: Path, class_folders: Folders, val: str) -> None:
    class_folders(tmp_path / "train", ["a", "b"], count=4)
    class_folders(tmp_path / val, ["a", "b"], count=2)
    class_folders(tmp_path / "unused", ["c"])
    assert list(opened(tmp_path, split="train").labels) == [0] * 4 + [1] * 4
    held_out = opened(tmp_path, split="val")
    assert list(held_out.labels) == [0, 0, 1, 1]
    assert Path(held_out.name(0)).parent.parent.name == val
    assert len(opened(tmp_path, split="all")) == 12


def test_val_comes_before_test(tmp_path: Path, class_folders: Folders) -> None:
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        class_folders(tmp_path / name, ["a", "b"], count=count)
    assert len(opened(tmp_path, split="val")) == 4


def test_a_class_may_be_called_train(tmp_path: Path, class_folders: Folders) -> None:
    class_folders(tmp_path, ["bus", "train"])
    assert opened(tmp_path, split="train").classes == ("bus", "train")


def test_evaluation_needs_no_train_and_not_every_class(tmp_path: Path, class_folders: Folders) -> None:
    class_folders(tmp_path / "val", ["b"], count=2)
    assert list(opened(tmp_path, split="val", classes=["a", "b"]).labels) == [1, 1]
    with pytest.raises(UserError, match=r"holds val but no train"):
        opened(tmp_path, split="train", classes=["a", "b"])


def _empty_class(root: Path, write_image: WriteImage) -> None:
    write_image(root / "full" / "1.png")
    (root / "vacant").mkdir()
    (root / "vacant" / "readme.txt").touch()


def _loose(root: Path, write_image: WriteImage) -> None:
    write_image(root / "1.png")


def _nothing(root: Path, write_image: WriteImage) -> None:
    (root / "notes.txt").touch()


def _one_class(root: Path, write_image: WriteImage) -> None:
    write_image(root / "only" / "1.png")


def _loose_in_train(root: Path, write_image: WriteImage) -> None:
    write_image(root / "train" / "1.png")
    write_image(root / "val" / "1.png")


def _different(root: Path, write_image: WriteImage) -> None:
    for name in ("train/a", "train/b", "train/c", "val/a", "val/b", "val/z"):
        write_image(root / name / "1.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty_class, r"class folder .*vacant holds no images"),
        (_loose, r"images but no class folders; put .* as .*cat/1\.jpg"),
        (_nothing, r"holds no class folders"),
        (_one_class, r"single class \(only\)"),
        (_loose_in_train, r"train holds images but no class folders"),
        (_different, r"differ; only in train: c; only in val: z"),
    ],
)
def test_wrong_layouts_are_named(
    tmp_path: Path, write_image: WriteImage, make: Callable[[Path, WriteImage], None], message: str
) -> None:
    make(tmp_path, write_image)
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path, split="train")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
