from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conformer_vision.errors import UserError
from contracts.stream import StreamContract
from image_sets import opened
from streamed import colour, numbers, opened_stream, problem, read, write_rows

datasets = pytest.importorskip("datasets")
Encode = Callable[..., bytes]
WriteParquet = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class TestHubStream(StreamContract):
    def write(self, root: Path, lengths: list[int], **options: Any) -> str:
        return write_rows(root, lengths, **options)


def test_splits_by_name(tmp_path: Path, parquet: WriteParquet, encode: Encode) -> None:
    def write(name: str, shown: list[int]) -> None:
        images = [encode(colour(number)) for number in shown]
        parquet(f"d/{name}.parquet", [0] * len(shown), names=["x", "y"], images=images)

    write("train-00000-of-00002", [0, 1])
    write("train-00001-of-00002", [2])
    write("test-00000-of-00001", [3, 4])
    for names, held_out in (((), [3, 4]), (("validation-00000-of-00001",), [5])):
        for name in names:
            write(name, [5])
        parts = [opened_stream(f"hfids/{tmp_path}/d", split) for split in ("train", "val", "all")]
        found = [numbers(read(part)) for part in parts]
        assert found == [[0, 1, 2], held_out, [0, 1, 2, *held_out]]
    items = read(parts[0])
    assert [item.name for item in items[1:]] == [
        f"hfids/{tmp_path}/d train shard 0 row 1",
        f"hfids/{tmp_path}/d train shard 1 row 0",
    ]
    assert read(parts[1])[0].name == f"hfids/{tmp_path}/d validation row 0"


def test_configuration_and_length(tmp_path: Path, parquet: WriteParquet) -> None:
    """A README as on the hub says what configurations there are and how many rows."""
    parquet("d/big/train.parquet", [0, 1, 0], names=["x", "y"])
    parquet("d/small/train.parquet", [0, 1], names=["x", "y"])
    text = "configs:\n"
    infos = "dataset_info:\n"
    for name, rows in (("big", 3), ("small", 2)):
        text += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.parquet\n"
        infos += (
            f"- config_name: {name}\n  features:\n  - name: image\n    dtype: image\n  - name: label\n"
            "    dtype:\n      class_label:\n        names:\n          '0': x\n          '1': y\n"
            f"  splits:\n  - name: train\n    num_bytes: 9\n    num_examples: {rows}\n"
        )
    (tmp_path / "d" / "README.md").write_text(f"---\n{text}{infos}---\n")
    for name, rows in (("big", 3), ("small", 2)):
        stream = opened_stream(f"hfids/{tmp_path}/d:{name}", data_dir=tmp_path / "cache")
        assert stream.length == rows == len(read(stream))
        assert opened_stream(f"hfids/{tmp_path}/d:{name}", "train", val_fraction=0.4).length == 2 - (rows < 3)
    with pytest.raises(UserError, match=r"d:none cannot be loaded") as caught:
        opened_stream(f"hfids/{tmp_path}/d:none")
    assert "\n" not in str(caught.value)


def test_rows_that_lack_something(tmp_path: Path, parquet: WriteParquet, encode: Encode) -> None:
    images = [encode(colour(0)), None, b"?", encode(), encode(colour(4))]
    parquet("d/train.parquet", [0, 1, 1, None, 1], names=["x", "y"], images=images)
    items = read(opened_stream(f"hfids/{tmp_path}/d"))
    assert [problem(item) != "" for item in items] == [False, True, True, True, False]
    assert problem(items[1]).startswith(f"hfids/{tmp_path}/d train row 1: ")
    assert "no label" in problem(items[3])
    assert [items[0].label, items[4].label] == [0, 1]


def test_images_beside_the_rows(tmp_path: Path, class_folders: Any) -> None:
    """Class folders, which `datasets` reads as paths."""
    class_folders(tmp_path / "d" / "train", ["a", "b"], 3)
    stream = opened_stream(f"hfids/{tmp_path}/d")
    assert stream.classes == ("a", "b")
    items = read(stream)
    assert sorted((item.label, item.image().getpixel((0, 0))[0]) for item in items) == [
        (label, red) for label in range(2) for red in range(3)
    ]


def test_labels_without_names(tmp_path: Path, parquet: WriteParquet) -> None:
    parquet("names/train.parquet", ["b", "a", "c"])
    parquet("numbers/train.parquet", [1, 0, 5])
    for folder in ("names", "numbers"):
        with pytest.raises(UserError, match=r"have no names; store them as ClassLabel, or give classes"):
            opened_stream(f"hfids/{tmp_path}/{folder}")
    items = read(opened_stream(f"hfids/{tmp_path}/names", classes=["a", "b"]))
    assert [item.label for item in items] == [1, 0, -1]
    assert "label 'c' is neither a class" in problem(items[2])
    items = read(opened_stream(f"hfids/{tmp_path}/numbers", classes=["a", "b"]))
    assert [item.label for item in items] == [1, 0, -1]
    assert "nor the number of one" in problem(items[2])


def test_other_columns_and_splits(tmp_path: Path, parquet: WriteParquet) -> None:
    parquet("d/train.parquet", [0, 1], names=["x", "y"], columns=("photo", "kind"))
    assert [item.label for item in read(opened_stream(f"hfids/{tmp_path}/d"))] == [0, 1]
    parquet("e/part.parquet", [0, 1], names=["x", "y"], columns=("IMG", "Fine_Label"))
    assert [item.label for item in read(opened_stream(f"hfids/{tmp_path}/e"))] == [0, 1]


def test_an_extra_split_is_left_alone(tmp_path: Path, parquet: WriteParquet) -> None:
    """As in a set that is loaded whole; the training images are cut."""
    text = "configs:\n- config_name: default\n  data_files:\n"
    for name in ("train", "unlabelled"):
        parquet(f"d/{name}.parquet", [0, 1] * 20, names=["x", "y"])
        text += f"  - split: {name}\n    path: {name}.parquet\n"
    (tmp_path / "d" / "README.md").write_text(f"---\n{text}---\n")
    parts = [opened_stream(f"hfids/{tmp_path}/d", split) for split in ("train", "val", "all")]
    counts = [len(read(part)) for part in parts]
    assert counts[2] == 40 == counts[0] + counts[1] and counts[1] > 0
    assert len(opened(f"hfds/{tmp_path}/d")) == 40


def test_a_column_of_splits_is_refused(tmp_path: Path, encode: Encode) -> None:
    rows = {"image": [encode()] * 4, "label": ["x", "y"] * 2, "Split": ["train", "train", "test", "test"]}
    (tmp_path / "d").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "d" / "rows.parquet")
    with pytest.raises(UserError, match="names splits in column 'Split', by which a stream is not divided"):
        opened_stream(f"hfids/{tmp_path}/d", classes=["x", "y"])
    assert len(opened(f"hfds/{tmp_path}/d", "val")) == 2


def test_a_file_that_is_damaged(tmp_path: Path, parquet: WriteParquet) -> None:
    paths = [parquet(f"d/train-{n:05d}-of-00003.parquet", [0, 1], names=["x", "y"]) for n in range(3)]
    stream = opened_stream(f"hfids/{tmp_path}/d")
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    items = read(stream)
    assert [problem(item) != "" for item in items] == [False, False, True, False, False]
    assert "shard 1: cannot be read from row 0 on" in problem(items[2])
    assert "\n" not in problem(items[2])
    paths[1].unlink()
    assert len(read(stream)) == 5
