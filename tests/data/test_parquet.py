import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import BrokenImageError
from conformer_vision.data.base import ImageSource
from conformer_vision.errors import UserError
from image_sets import opened

WriteParquet = Callable[..., Path]


def _reds(source: ImageSource) -> list[int]:
    return [source[i][0].getpixel((0, 0))[0] for i in range(len(source))]  # type: ignore[index, misc]


def test_pickled_source_reads_the_same(parquet: WriteParquet) -> None:
    source = opened(parquet("set.parquet", [0, 1] * 50, names=["x", "y"]), split="train")
    data = pickle.dumps(source)
    assert len(data) < 20_000  # by the path of the Arrow file, not its content
    assert _reds(pickle.loads(data)) == _reds(source)


def test_files_are_told_apart_by_name(parquet: WriteParquet, tmp_path: Path) -> None:
    parquet("d/train-00000-of-00002.parquet", [0, 1], names=["x", "y"])
    parquet("d/train-00001-of-00002.parquet", [1, 1, 0], names=["x", "y"])
    test = parquet("d/test-00000-of-00001.parquet", [1], names=["x", "y"])
    parquet("d/other.parquet", ["?"])
    (tmp_path / "d" / "README.md").touch()
    for spec in (tmp_path / "d", tmp_path / "d" / "t*.parquet"):
        train, val = (opened(spec, split=split) for split in ("train", "val"))
        assert list(train.labels) == [0, 1, 1, 1, 0]
        assert list(val.labels) == [1]
        assert train.name(4).endswith("train-00001-of-00002.parquet row 2")
        assert val.name(0) == f"{test} row 0"
        assert len(opened(spec, split="all")) == 6
    assert len(opened(tmp_path / "d" / "train*", split="train", val_fraction=0.4)) == 3  # by seed
    parquet("d/validation.parquet", [0, 0], names=["x", "y"])
    assert list(opened(tmp_path / "d", split="val").labels) == [0, 0]


def test_data_folder_of_a_repository(parquet: WriteParquet, tmp_path: Path) -> None:
    parquet("repo/data/Train.PARQUET", [0, 1])
    parquet("repo/data/validation.pq", [1])
    assert list(opened(tmp_path / "repo", split="val").labels) == [1]


def test_labels_without_names_and_of_strings(parquet: WriteParquet) -> None:
    source = opened(parquet("ints.parquet", [10, 9, 10, 30]), split="all")
    assert (source.classes, list(source.labels)) == (("9", "10", "30"), [1, 0, 1, 2])
    source = opened(parquet("words.parquet", ["dog", "cat", "dog"]), split="all")
    assert (source.classes, list(source.labels)) == (("cat", "dog"), [1, 0, 1])


@pytest.mark.parametrize("strings", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize("images", ["binary", "large_binary", "binary_view", "struct", "paths"])
def test_types_of_columns(
    strings: str, images: str, encode: Callable[..., bytes], tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def text(values: list[str]) -> Any:
        if strings == "dictionary":
            return pa.array(values).dictionary_encode()
        return pa.array(values).cast(getattr(pa, strings)())

    for number in range(4):
        write_image(tmp_path / f"{number}.png", (number, 0, 0))
    files = [encode((number, 0, 0)) for number in range(4)]
    if images == "paths":
        column = text([f"{number}.png" for number in range(4)])
    elif images == "struct":
        kind = pa.string_view() if strings == "string_view" else pa.string()
        rows = [{"bytes": data, "path": None} for data in files]
        column = pa.array(rows, pa.struct([("bytes", pa.binary_view()), ("path", kind)]))
    else:
        column = pa.array(files).cast(getattr(pa, images)())
    table = {
        "Image": column,
        "LABEL": text(["x", "y"] * 2),
        "Split": text(["Train", "train", "TEST", "test"]),
    }
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    parts = [opened(tmp_path / "set.parquet", split) for split in ("train", "val")]
    assert [_reds(part) for part in parts] == [[0, 1], [2, 3]]
    assert parts[0].classes == ("x", "y")


@pytest.mark.parametrize("path", [{"folder": "a", "name": "b"}, 7, ["a"]], ids=["struct", "number", "list"])
def test_paths_that_are_no_text(path: object, encode: Callable[..., bytes], tmp_path: Path) -> None:
    """Images are read from their bytes and named by their rows; one without bytes is broken."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": encode((n, 0, 0)) if n else None, "path": path} for n in range(8)]
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 4}), tmp_path / "set.parquet")
    source = opened(tmp_path / "set.parquet", "all")
    assert source.image(3).getpixel((0, 0)) == (3, 0, 0)
    with pytest.raises(BrokenImageError, match=r"set.parquet row 0: cannot be read as an image"):
        source.image(0)
    parts = [len(opened(tmp_path / "set.parquet", part, val_fraction=0.5)) for part in ("train", "val")]
    assert sum(parts) == 8 and min(parts) > 0


def test_path_that_looks_like_a_pattern(parquet: WriteParquet) -> None:
    path = parquet("[a] *set?/t[r]ain.parquet", [0, 1, 1])
    for spec in (path, path.parent):
        assert _reds(opened(spec, split="all")) == [0, 1, 2]


def test_rewritten_file_is_read_anew(parquet: WriteParquet) -> None:
    assert len(opened(parquet("set.parquet", [0, 1, 1]), split="all")) == 3
    source = opened(parquet("set.parquet", [1, 0, 1, 0, 0]), split="all")
    assert (list(source.labels), _reds(source)) == ([1, 0, 1, 0, 0], [0, 1, 2, 3, 4])


def test_nothing_is_printed_and_nothing_left_beside_the_file(
    parquet: WriteParquet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets

    path = parquet("d/set.parquet", [0, 1, 1])
    for _ in range(2):
        opened(path, split="train")
    assert capfd.readouterr() == ("", "")
    assert list((tmp_path / "d").iterdir()) == [path]
    assert not datasets.are_progress_bars_disabled()  # as it was


def test_broken_image_is_named_by_file_and_row(parquet: WriteParquet, encode: Callable[..., bytes]) -> None:
    path = parquet("set.parquet", [0, 1, 1], images=[encode(), b"broken", b""])
    source = opened(path, split="all")
    source[0]
    for row in (1, 2):
        with pytest.raises(BrokenImageError, match=rf"set\.parquet row {row}: "):
            source[row]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, 1, 2, 5, 1], "names": ["x", "y", "z"]}, r"row 3: label 5 is out of range.*3 classes"),
        ({"labels": [0, 1, -1], "names": ["x", "y"]}, r"row 2: label -1 is negative"),
        ({"labels": [0, -7]}, r"row 1: label -7 is negative"),
        ({"labels": [0, None, 1], "names": ["x", "y"]}, r"row 1 has no label"),
        ({"labels": ["a", "b", None]}, r"row 2 has no label"),
        (
            {"labels": [0.5, 1.0]},
            r"column 'label' holds Value.*; labels must be stored as integers or strings",
        ),
        ({"labels": [0, 1], "columns": ("photo", "label")}, r"no column of images.*it has photo, label"),
        ({"labels": [0, 1], "columns": ("image", "kind")}, r"no column of labels.*it has image, kind"),
        ({"labels": [1, 1]}, r"single class \(1\)"),
        ({"labels": []}, r"column 'label' holds Value"),
    ],
)
def test_wrong_rows_and_columns_are_named(
    parquet: WriteParquet, options: dict[str, Any], message: str
) -> None:
    path = parquet("set.parquet", **options)
    with pytest.raises(UserError, match=message) as caught:
        opened(path, split="all")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_null_row_of_the_struct_is_named(
    encode: Callable[..., bytes], parquet: WriteParquet, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array(
        [{"bytes": encode(), "path": None}, None], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "set.parquet")
    with pytest.raises(BrokenImageError, match=r"set\.parquet row 1: .*the row has none"):
        opened(tmp_path / "set.parquet")[1]


def test_decoded_pixels_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [[1, 2], [3, 4]], "label": [0, 1]}), tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"column 'image' holds List.*must be stored as files' bytes"):
        opened(tmp_path / "set.parquet", split="all")


def test_files_that_disagree(parquet: WriteParquet, tmp_path: Path) -> None:
    parquet("a/train.parquet", [0, 1], names=["x", "y"])
    parquet("a/test.parquet", [0, 1], names=["y", "x"])
    with pytest.raises(UserError, match="declare different classes"):
        opened(tmp_path / "a", split="val")
    parquet("b/train.parquet", ["x", "y"])
    parquet("b/test.parquet", ["x", "z"])
    with pytest.raises(
        UserError, match=r"test\.parquet row 1: label 'z' does not occur in the training split"
    ):
        opened(tmp_path / "b", split="val")


def test_not_parquet(tmp_path: Path, parquet: WriteParquet) -> None:
    path = tmp_path / "set.parquet"
    for content in (b"", b"text", b"PAR1" + b"\0" * 20 + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"set\.parquet cannot be read as parquet") as caught:
            opened(path, split="train")
        assert "\n" not in str(caught.value)


def test_damage_behind_a_good_footer(tmp_path: Path, parquet: WriteParquet) -> None:
    path = parquet("set.parquet", [0, 1] * 20)
    data = path.read_bytes()
    path.write_bytes(data[:8] + b"\xff" * 300 + data[308:])
    with pytest.raises(UserError, match=r"set\.parquet.* cannot be read") as caught:
        opened(path, split="train")
    assert "\n" not in str(caught.value)


def test_cifar10(shared_dir: Path, parquet: WriteParquet) -> None:
    folder = shared_dir / "data" / "cifar10"
    val = opened(folder, split="val")
    assert len(val) == 10_000
    assert val.classes[:2] == ("airplane", "automobile")
    assert val[0][0].size == (32, 32)
    train = opened(folder / "test.parquet", split="train", val_fraction=0.25)
    assert 7_400 < len(train) < 7_600
