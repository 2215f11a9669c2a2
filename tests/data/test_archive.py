import io
import os
import pickle
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from conformer_vision.data import BrokenImageError, archive
from conformer_vision.data.base import ImageSource
from conformer_vision.errors import UserError
from image_sets import opened

Folders = Callable[..., Path]
KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.xz", "tar.bz2")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pack(path: Path, folder: Path, *, prefix: str = "") -> Path:
    """Archive of a folder's content, its files in an order that is not that of their names."""
    files = sorted(folder.rglob("*"))
    random.Random(0).shuffle(files)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for file in files:
                out.write(file, prefix + str(file.relative_to(folder)))
        return path
    kind = {".tgz": "gz", ".tar": ""}.get(path.suffix, path.suffix[1:])
    with tarfile.open(path, f"w:{kind}") as out:
        for file in files:
            out.add(file, prefix + str(file.relative_to(folder)), recursive=False)
    return path


def _content(source: ImageSource, root: Path) -> list[tuple[str, int, bytes]]:
    return [
        (os.path.relpath(source.name(i), root), label, image.tobytes())
        for i, (image, label) in ((i, source[i]) for i in range(len(source)))
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "./", "photos/"])
def test_an_archive_reads_as_its_folder(
    tmp_path: Path, class_folders: Folders, kind: str, prefix: str
) -> None:
    root = class_folders(tmp_path / "set", ["cat", "Dog2", "dog10", "dog10/deeper"], count=11)
    for name in (".hidden/1.png", "cat/.2.png", "__MACOSX/cat/3.png", "cat/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    path = pack(tmp_path / f"set.{kind}", root, prefix=prefix)
    (root / "__MACOSX" / "cat" / "3.png").unlink()
    (root / "__MACOSX" / "cat").rmdir()
    (root / "__MACOSX").rmdir()
    for split in ("train", "val", "all"):
        folder, packed = (opened(p, split=split, val_fraction=0.3) for p in (root, path))
        assert packed.classes == folder.classes == ("cat", "Dog2", "dog10")
        inner = path / "photos" if prefix == "photos/" else path
        assert _content(packed, inner) == _content(folder, root)
        assert packed.name(0).startswith(str(path))
    again = pickle.loads(pickle.dumps(packed))
    assert _content(again, inner) == _content(folder, root)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("prefix", ["", "root/"])
def test_train_and_val_folders(tmp_path: Path, class_folders: Folders, kind: str, prefix: str) -> None:
    class_folders(tmp_path / "set" / "train", ["a", "b"], count=4)
    class_folders(tmp_path / "set" / "valid", ["a", "b"], count=2)
    path = pack(tmp_path / f"set.{kind}", tmp_path / "set", prefix=prefix)
    assert [len(opened(path, split=split)) for split in ("train", "val", "all")] == [8, 4, 12]
    parts = [len(opened(path, split=split, folds=4)) for split in ("train", "val", "all")]
    assert parts[0] + parts[1] == parts[2] == 8


def test_a_split_folder_is_not_looked_through(tmp_path: Path, class_folders: Folders) -> None:
    class_folders(tmp_path / "set" / "val", ["a", "b"], count=2)
    path = pack(tmp_path / "set.zip", tmp_path / "set")
    assert len(opened(path, split="val")) == 4
    with pytest.raises(UserError, match=r"set\.zip holds val but no train"):
        opened(path, split="train")


def test_an_archive_is_unpacked_once(
    tmp_path: Path, class_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folders(tmp_path / "set", ["a", "b"], count=2)
    path = pack(tmp_path / "set.tar.gz", root)
    assert len(opened(path, split="all")) == 4
    (cached,) = (tmp_path / "cache" / "conformer-vision" / "archives").iterdir()
    stamp = cached.stat().st_mtime_ns
    assert len(opened(path, split="train")) == 2
    assert cached.stat().st_mtime_ns == stamp
    class_folders(root, ["c"], count=2)
    pack(path, root)
    assert len(opened(path, split="all")) == 6
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"set\.tar\.gz has to be unpacked once.*set XDG_CACHE_HOME"):
        opened(path, split="all")


def test_a_tar_that_fills_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_SMALL", 1 << 20)
    path = tmp_path / "bomb.tar.xz"
    with tarfile.open(path, "w:xz") as out:
        info = tarfile.TarInfo("a/1.png")
        info.size = 4 << 20
        out.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UserError, match=r"bomb\.tar\.xz unpacks to more than 1048576 bytes"):
        opened(path, split="all")
    assert not any((tmp_path / "cache").rglob("*.png"))


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in ("a/1.png", "b/1.png"):
            out.writestr(name, bytes(1 << 20))
    data = path.read_bytes().replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"set\.zip cannot be read as a zip archive \(Bad CRC"):
        opened(path)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_of_too_many_files_is_refused(
    tmp_path: Path, class_folders: Folders, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 7)  # two folders and six images
    path = pack(tmp_path / f"set.{kind}", class_folders(tmp_path / "set", ["a", "b"], count=3))
    with pytest.raises(UserError, match=rf"set\.{kind} holds more than 7 files"):
        opened(path)
    assert not any((tmp_path / "cache").rglob("*.png"))


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_SMALL", 1 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/1.png", bytes(4 << 20))
    with pytest.raises(UserError, match=r"bomb\.zip unpacks to more than 1048576 bytes"):
        opened(tmp_path / "bomb.zip")
    assert not any((tmp_path / "cache").rglob("*.png"))


def _open(path: Path) -> int:
    return len(opened(path))


def test_processes_unpack_at_once(tmp_path: Path, class_folders: Folders) -> None:
    path = pack(tmp_path / "set.tar.gz", class_folders(tmp_path / "set", ["a", "b"], count=60))
    with get_context("fork").Pool(4) as pool:
        assert pool.map(_open, [path] * 4) == [120] * 4
    assert len(list((tmp_path / "cache" / "conformer-vision" / "archives").iterdir())) == 1


def _members(path: Path, *names: str, edit: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    with tarfile.open(path, "w") as out:
        for name in names:
            info = tarfile.TarInfo(name)
            if edit and name == names[-1]:
                edit(info)
            out.addfile(info)
    return path


def _symbolic(info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"


def _hard(info: tarfile.TarInfo) -> None:
    info.type, info.linkname = tarfile.LNKTYPE, "a/1.png"


def _pipe(info: tarfile.TarInfo) -> None:
    info.type = tarfile.FIFOTYPE


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("a/2.png", _symbolic, r"'a/2\.png' is a link"),
        ("a/2.png", _hard, r"'a/2\.png' is a link"),
        ("a/2.png", _pipe, r"'a/2\.png' is not a regular file"),
        ("a/../../2.png", None, r"'a/\.\./\.\./2\.png' leads out"),
        ("/a/2.png", None, r"'/a/2\.png' leads out"),
    ],
)
def test_wrong_members_of_a_tar_are_named(
    tmp_path: Path, name: str, edit: Callable[[tarfile.TarInfo], None] | None, message: str
) -> None:
    path = _members(tmp_path / "set.tar", "a/1.png", "b/1.png", name, edit=edit)
    with pytest.raises(UserError, match=rf"set\.tar: .*{message}") as caught:
        opened(path, split="all")
    assert "\n" not in str(caught.value)


def test_wrong_members_of_a_zip_are_named(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    for name, mode, message in (
        ("a/2.png", stat.S_IFLNK | 0o777, r"'a/2\.png' is a link"),
        ("../2.png", stat.S_IFREG, r"'\.\./2\.png' leads out"),
        ("/2.png", stat.S_IFREG, r"'/2\.png' leads out"),
    ):
        with zipfile.ZipFile(path, "w") as out:
            out.writestr("b/1.png", b"")
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            out.writestr(info, b"x")
        with pytest.raises(UserError, match=rf"set\.zip: .*{message}"):
            opened(path, split="all")
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a/1.png", b"x")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # the flag of encryption in the central directory
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"'a/1\.png' is encrypted"):
        opened(path, split="all")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["short", "empty", "text"])
def test_damaged_archives_are_named(tmp_path: Path, class_folders: Folders, kind: str, damage: str) -> None:
    path = pack(tmp_path / f"set.{kind}", class_folders(tmp_path / "set", ["a", "b"], count=5))
    data = path.read_bytes()
    # A tar cut between two members is a tar; cut within one.
    path.write_bytes({"short": data[: 3 * 512 + 100], "empty": b"", "text": b"text" * 300}[damage])
    if damage == "short" and kind not in ("zip", "tar"):
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        UserError, match=rf"set\.{kind} cannot be read as a (zip|tar|compressed tar)"
    ) as caught:
        opened(path, split="all")
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "cache").rglob("*.png"))


def test_a_damaged_header_does_not_end_a_tar_early(tmp_path: Path, class_folders: Folders) -> None:
    path = pack(tmp_path / "set.tar", class_folders(tmp_path / "set", ["a", "b"], count=5))
    with tarfile.open(path) as whole:
        offset = whole.getmembers()[6].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 20] = b"?" * 20
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"set\.tar cannot be read as a tar archive \(bad header at byte"):
        opened(path, split="all")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damage_to_a_image_is_named_when_it_is_read(
    tmp_path: Path, class_folders: Folders, encode: Callable[..., bytes], kind: str
) -> None:
    root = class_folders(tmp_path / "set", ["a", "b"], count=3)
    (root / "a" / "1.png").write_bytes(b"broken" * 20)
    path = pack(tmp_path / f"set.{kind}", root)
    source = opened(path, split="all")
    with pytest.raises(BrokenImageError, match=rf"set\.{kind}/a/1\.png: cannot be read as an image"):
        source[1]
    source[2]


def test_empty_classes_and_loose_images(tmp_path: Path, class_folders: Folders) -> None:
    root = class_folders(tmp_path / "set", ["a", "b"], count=2)
    (root / "vacant").mkdir()
    for kind in ("zip", "tar"):
        with pytest.raises(UserError, match=rf"class folder .*set\.{kind}/vacant holds no images"):
            opened(pack(tmp_path / f"set.{kind}", root), split="all")
        with pytest.raises(UserError, match=rf"a\.{kind} holds images but no class folders"):
            opened(pack(tmp_path / f"a.{kind}", root / "a"), split="all")
