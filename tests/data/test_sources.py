import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conformer_vision.data import Splitting, open_images, require_source
from conformer_vision.data.base import match_classes
from conformer_vision.data.splits import Request
from conformer_vision.errors import UserError
from image_sets import opened


def test_digits() -> None:
    train, val = (opened("digits", split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 1797
    assert train.classes == tuple("0123456789")
    assert 10 <= min(Counter(val.labels).values()) <= max(Counter(val.labels).values()) <= 30
    image, label = opened("digits", split="all")[0]
    assert (image.mode, image.size, label) == ("RGB", (8, 8), 0)
    assert np.asarray(image).max() == 239  # 15 of 16
    assert not train.mirrorable
    names = {source.name(i) for source in (train, val) for i in range(len(source))}
    assert len(names) == 1797


def test_digits_matched_to_classes_of_a_model() -> None:
    own = opened("digits", split="val")
    other = opened("digits", split="val", classes=["none", *reversed("0123456789")])
    assert [own.classes[i] for i in own.labels] == [other.classes[i] for i in other.labels]
    with pytest.raises(UserError, match="does not know the class 0"):
        opened("digits", split="val", classes=["cat", "dog"])


def test_the_name_digits_wins_over_a_folder(
    tmp_path: Path, class_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path / "digits", ["a", "b"])
    monkeypatch.chdir(tmp_path)
    assert len(opened("digits", split="train").classes) == 10
    assert opened("./digits", split="train").classes == ("a", "b")
    assert opened(Path("digits"), split="train").classes == ("a", "b")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("photso", r"photso does not exist; did you mean .*photos\?"),
        ("photos/", "no class folders"),
        ("photos/*.parquet", r"no file matches .*photos/\*\.parquet"),
        ("none/of/it", r"none/of/it does not exist; give a folder"),
        ("dangling", r"dangling"),
    ],
)
def test_wrong_paths_are_named(tmp_path: Path, spec: str, message: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("some notes")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match=message) as caught:
        opened(f"{tmp_path}/{spec}", split="train")
    assert "\n" not in str(caught.value)


JPEG = b"\xff\xd8\xff\xe0" + b"\0" * 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photo.jpg", JPEG, "is a single image; give a folder of class folders, or predict the image"),
        ("photo.HEIC", b"\0\0\0\x18ftypheic", "is a single image"),
        ("photo", None, "is a single image"),
        ("clip.mp4", b"\0\0\0\x18ftypisom", "is a video; give images: ffmpeg -i VIDEO"),
        ("clip.dat", b"\x1aE\xdf\xa3\x01", "is a video"),
        ("clip.mov", b"?", "is a video"),
        ("set.7z", b"7z\xbc\xaf\x27\x1c", "is a packed file that is not read; unpack it and give the folder"),
        ("set.zip", b"7z\xbc\xaf\x27\x1c", "is a packed file that is not read"),
        ("set.tar", b"7z\xbc\xaf\x27\x1c", "is a packed file that is not read"),
        ("set.rar", b"Rar!\x1a", "is a packed file that is not read"),
        ("set.tar.zst", b"\x28\xb5\x2f\xfd", "is a packed file that is not read"),
        ("set.csv.gz", b"\x1f\x8b", "is a packed file that is not read"),
        ("labels.xlsx", b"PK\x03\x04", "is a spreadsheet; save it as CSV"),
        ("labels.txt", b"a.png 1", "is a text file; give a CSV file with the columns path and label"),
        ("labels.jsonl", b"{}", "is a text file"),
        ("paper.pdf", b"%PDF-1.7", "is a document; give images"),
        ("x.npy", b"\x93NUMPY", "is a file of arrays; give images"),
        ("best.safetensors", b"?", "is a model; give the images that it is for"),
        ("x.zip", b"no zip", r"x\.zip cannot be read as a tar archive"),
        ("x.unknown", b"?", "is of no form that is read; give a folder or archive of class folders"),
        ("empty", b"", "is of no form that is read"),
    ],
)
def test_files_that_are_no_set(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / name, split="train")
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_a_tar_may_begin_with_any_name(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    folder = class_folders(tmp_path / "set", ["FLV", "%PDF"])
    with tarfile.open(tmp_path / "set.tar", "w") as packed:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            packed.add(path, path.relative_to(folder))
    assert opened(tmp_path / "set.tar").classes == ("%PDF", "FLV")


def test_an_address_is_not_fetched() -> None:
    with pytest.raises(UserError, match=r"https://x\.org/set\.zip is not fetched; download it"):
        opened("https://x.org/set.zip")


def test_forms_are_known_by_their_content_too(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    folder = class_folders(tmp_path / "set", ["a", "b"])
    with zipfile.ZipFile(tmp_path / "download", "w") as packed:
        for path in folder.rglob("*.png"):
            packed.write(path, path.relative_to(folder))
    pq.write_table(pa.table({"path": ["set/a/0.png", "set/b/0.png"], "label": ["a", "b"]}), tmp_path / "rows")
    assert [len(opened(tmp_path / name)) for name in ("download", "rows")] == [6, 2]


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        (["n01443537", "n01629819"], ["n01443537 goldfish", "n02085620 Chihuahua", "n01629819, salamander"]),
        (["n02085620-Chihuahua", "n01443537_goldfish"], ["n01443537", "n02085620"]),
        (["n01443537 goldfish", "cat"], ["cat", "n01443537 Carassius auratus"]),
    ],
)
def test_numbers_of_wordnet_match(own: list[str], wanted: list[str]) -> None:
    names, index = match_classes(own, wanted, origin="x")
    assert names == tuple(wanted)
    assert [name[:9] if name.startswith("n") else name for name in own] == [
        wanted[place][:9] if wanted[place].startswith("n") else wanted[place] for place in index
    ]


def test_numbers_of_wordnet_that_do_not_match() -> None:
    for own, wanted in (
        (["n01443537"], ["n01443538 goldfish"]),
        (["n0144353"], ["n01443537"]),
        (["n014435371"], ["n01443537 goldfish"]),
        (["n01443537"], ["n01443537 goldfish", "n01443537 carp"]),
    ):
        with pytest.raises(UserError, match="does not know the class"):
            match_classes(own, wanted, origin="x")
    assert match_classes(["n01443537 carp"], ["n01443537 goldfish", "n01443537 carp"], origin="x")[1] == [1]


def test_misspelt_digits() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        opened("digit", split="train")


def test_impossible_split() -> None:
    with pytest.raises(UserError, match="must be train, val or all"):
        opened("digits", split="test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "opener"),
    [("hfids/some/set", "hub_stream.open_hub_stream"), ("WDS/s/*.tar", "webdataset.open_webdataset")],
)
def test_streams(monkeypatch: pytest.MonkeyPatch, spec: str, opener: str) -> None:
    calls = []

    def open_stream(*given: object) -> SimpleNamespace:
        calls.append(given)
        return SimpleNamespace(multilabel=False)

    monkeypatch.setattr(f"conformer_vision.data.{opener}", open_stream)
    images = open_images(spec, "val", Splitting(0.3, 5), classes=["a", "b"], data_dir="there")
    request = Request("val", Splitting(0.3, 5), ["a", "b"], Path("there"))
    assert calls == [(spec.partition("/")[2], request)]
    with pytest.raises(UserError, match=f"^{re.escape(spec)} is a stream, whose images cannot be taken"):
        require_source(images, name=spec)
    with pytest.raises(UserError, match="names nothing"):
        open_images(spec.partition("/")[0] + "/", "val")


def test_folder_named_like_a_stream(tmp_path: Path, class_folders: Callable[..., Path]) -> None:
    assert len(opened(class_folders(tmp_path / "hfids", ["a", "b"]))) == 6


def test_home_of_nobody_is_a_path_like_others() -> None:
    with pytest.raises(UserError, match="~nobody-there/set does not exist"):
        opened("~nobody-there/set", split="train")
