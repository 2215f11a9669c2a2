"""Files that are passed over are counted and named; run folders are left out."""

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from conformer_vision.data.find import find_images
from conformer_vision.errors import UserError
from conformer_vision.runs import mark_config
from image_sets import opened

Folders = Callable[..., Path]


PASSED_OVER = ("a/1.HEIC", "a/2.heic", "b/IMG_0001", "b/deep/notes.txt", "b/raw.CR2", "b/x.jpg.bak")


@pytest.fixture
def photos(tmp_path: Path, class_folders: Folders) -> Path:
    """Two classes of three images, and files of other kinds."""
    root = class_folders(tmp_path / "photos", ["a", "b"])
    for name in (
        "a/1.HEIC",
        "a/2.heic",
        "b/raw.CR2",
        "b/deep/notes.txt",
        "b/IMG_0001",
        "loose.png",
        "b/x.jpg.bak",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"?")
    for name in ("a/Thumbs.db", "b/desktop.ini", "b/.DS_Store", "README.md", "labels.csv"):
        (root / name).write_bytes(b"?")
    return root


def test_files_that_are_passed_over(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sources = [opened(photos, split) for split in ("train", "val", "all")]
    wanted = sorted(str(photos / name) for name in (*PASSED_OVER, "loose.png"))
    assert [sorted(source.passed_over) for source in sources] == [wanted] * 3
    files, loose = [record.getMessage() for record in caplog.records]  # once, whatever is opened
    assert files.startswith(
        f"{photos}: passed over 6 files that are no images of a format that is read (.heic 2"
    )
    assert (
        "(.heic 2, " in files and "; for HEIC: pip install pillow-heif)" in files and "no suffix 1" in files
    )
    assert ": a/1.HEIC, a/2.heic, b/deep/notes.txt and 3 more" in files
    assert loose == f"{photos}: passed over 1 image in no class folder: loose.png"


def test_in_an_archive_and_for_predict(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as packed:
        for path in photos.rglob("*.*"):
            if path.is_file() and path.name != "loose.png":
                packed.write(path, path.relative_to(photos))
    source = opened(tmp_path / "set.zip")
    wanted = [str(tmp_path / "set.zip" / name) for name in PASSED_OVER if name != "b/IMG_0001"]
    assert sorted(source.passed_over) == sorted(wanted)
    caplog.clear()
    assert len(find_images(photos)) == 7
    assert "passed over 8 files" in caplog.text


def test_a_class_of_files_that_are_not_read(photos: Path) -> None:
    (photos / "c").mkdir()
    (photos / "c" / "1.nef").touch()
    with pytest.raises(UserError, match=r"folder .*/c holds no images, only files of other kinds \(\.nef\)"):
        opened(photos)


@pytest.mark.parametrize("place", ["run", "runs/one", "cat/run", "train/cat/runs/1/2", "output/a/b"])
def test_run_folders_are_left_out(
    place: str,
    tmp_path: Path,
    class_folders: Folders,
    write_image: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = tmp_path / "set"
    classes = ["cat", "dog"]
    if place.startswith("train"):
        class_folders(root / "val", classes)
        class_folders(root / "train", classes)
    else:
        class_folders(root, classes)
    write_image(root / place / "curves.png")
    write_image(root / place / "report" / "1.png")
    (root / place / "config.yaml").write_text(mark_config("data: .\n"))
    source = opened(root)
    assert source.classes == ("cat", "dog")
    assert not any("curves" in source.name(index) for index in range(len(source)))
    assert len(source) == (12 if place.startswith("train") else 6)
    assert source.passed_over == ()
    assert not any("curves" in path.name for path in find_images(root))
    if "/" in place:
        assert "left out 1 run folder: " in caplog.text
    (root / place / "config.yaml").write_text("data: .\n")  # of another program
    assert len(find_images(root)) > len(source)
