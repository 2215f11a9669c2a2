"""Several labels per image: how each form stores them, and what is refused; more is in the contract."""

import csv
import json
import logging
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

from conformer_vision.data import class_counts, multi_hot, open_images
from conformer_vision.data.base import ImageSource, SubsetSource, fingerprint
from conformer_vision.data.exclude import exclude
from conformer_vision.data.label_columns import flag
from conformer_vision.data.splits import Splitting
from conformer_vision.data.stream import ImageStream
from conformer_vision.errors import UserError
from image_sets import opened
from streamed import encode, opened_stream, problem, read, write_tar

LABELS: list[list[str]] = [["x", "z"], ["y"], [], ["x", "y", "z"], ["z"], ["y", "x"], ["z", "z"], []]
"""Of images 0, 1, ...: in any order, one twice, and none."""
EXPECTED = [(0, 2), (1,), (), (0, 1, 2), (2,), (0, 1), (2,), ()]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A table whose first column is added: the paths of images that are there."""
    (path.parent / "0.png").write_bytes(encode())
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["path", *header], *(["0.png", *row] for row in rows)])
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    table = {"image": pa.array([encode()] * len(next(iter(columns.values()))))}
    pq.write_table(pa.table(table | columns), path)
    return path


def flags(name: str) -> list[int]:
    return [int(name in labels) for labels in LABELS]


def features(content: Any) -> datasets.Features:
    return datasets.Features({"image": datasets.Image(), "labels": content})


def rows_of(labels: Sequence[Any]) -> dict[str, Any]:
    return {"image": [{"bytes": encode(), "path": None}] * len(labels), "labels": labels}


NUMBERS = [["xyz".index(name) for name in labels] for labels in LABELS]


def as_texts(root: Path) -> Any:
    return write_csv(root / "set.csv", ["tags"], [[" | ".join(labels)] for labels in LABELS])


def as_json(root: Path) -> Any:
    return write_csv(root / "set.csv", ["labels"], [[json.dumps(labels)] for labels in LABELS])


def as_python(root: Path) -> Any:
    return write_csv(root / "set.csv", ["labels"], [[str(labels)] for labels in LABELS])


def as_flags(root: Path) -> Any:
    rows = zip(flags("x"), range(8), flags("y"), flags("z"), strict=True)
    return write_csv(root / "set.csv", ["x", "age", "y", "z"], [*rows])


def as_words(root: Path) -> Any:
    words = [["no", "Yes"][n] for n in flags("y")]
    rows = zip(map(float, flags("x")), words, map(bool, flags("z")), strict=True)
    return write_csv(root / "set.csv", ["x", "y", "z"], [*rows])


def as_list_column(root: Path) -> Any:
    return write_parquet(root / "set.parquet", {"labels": pa.array(LABELS, pa.list_(pa.string()))})


def as_large_list(root: Path) -> Any:
    return write_parquet(root / "set.parquet", {"label": pa.array(LABELS, pa.large_list(pa.large_string()))})


def as_columns(root: Path) -> Any:
    columns = {
        "x": pa.array(flags("x"), pa.int8()),
        "y": pa.array([bool(n) for n in flags("y")]),
        "z": pa.array([float(n) or None for n in flags("z")]),
    }
    return write_parquet(root / "set.parquet", columns)


def as_column_of_texts(root: Path) -> Any:
    return write_parquet(root / "set.parquet", {"tags": pa.array([" | ".join(labels) for labels in LABELS])})


def as_saved(root: Path) -> Any:
    kind = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    datasets.Dataset.from_dict(rows_of(NUMBERS), features(kind)).save_to_disk(root / "set")
    return root / "set"


def as_strings(root: Path) -> Any:
    kind = datasets.Sequence(datasets.Value("string"))
    datasets.Dataset.from_dict(rows_of(LABELS), features(kind)).save_to_disk(root / "set")
    return root / "set"


def as_hub(root: Path) -> Any:
    kind = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    (root / "set").mkdir()
    datasets.Dataset.from_dict(rows_of(NUMBERS), features(kind)).to_parquet(root / "set" / "train.parquet")
    return f"hfds/{root / 'set'}"


def as_object(labels: Any, **attributes: Any) -> Any:
    class Items(torch.utils.data.Dataset[Any]):
        classes = ("x", "y", "z")

        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(3, 4, 4), labels[index]

    dataset = Items()
    vars(dataset).update(attributes)
    return dataset


def as_multi_hot(root: Path) -> Any:
    hot = torch.tensor([flags(name) for name in "xyz"]).T.float()
    dataset = TensorDataset(torch.zeros(8, 3, 4, 4), hot)
    dataset.classes = ["x", "y", "z"]  # type: ignore[attr-defined]
    return dataset


def as_targets(root: Path) -> Any:
    hot = np.array([flags(name) for name in "xyz"]).T
    return as_object(hot.astype(bool), targets=hot)


def as_list_of_other_name(root: Path) -> Any:
    return write_parquet(root / "set.parquet", {"findings": pa.array(LABELS)})


COLUMNS = {"label_column": "x, y,z"}
TEXTS = {"label_column": "tags", "label_separator": "|"}
FORMS: dict[Callable[[Path], Any], dict[str, Any]] = {
    as_texts: TEXTS,
    as_json: {},
    as_python: {},
    lambda root: write_csv(root / "set.csv", ["label"], [[str(tuple(labels))] for labels in LABELS]): {},
    lambda root: write_csv(root / "set.csv", ["label"], [[str({*labels})] for labels in LABELS]): {},
    as_list_of_other_name: {"label_column": "Finding"},
    as_flags: COLUMNS,
    as_words: COLUMNS,
    as_list_column: {},
    as_large_list: {},
    as_columns: COLUMNS,
    as_column_of_texts: TEXTS,
    as_saved: {},
    as_strings: {},
    as_hub: {},
    lambda root: as_object(LABELS): {},
    lambda root: as_object([{*each} for each in NUMBERS]): {},
    as_multi_hot: {},
    as_targets: {},
}


@pytest.mark.parametrize(("write", "options"), FORMS.items())
def test_every_form(tmp_path: Path, write: Callable[[Path], Any], options: dict[str, Any]) -> None:
    spec = write(tmp_path)
    source = opened(spec, **options)
    assert (source.multilabel, source.classes, list(source.labels)) == (True, ("x", "y", "z"), EXPECTED)
    assert source[5][1] == (0, 1)
    wanted = ["z", "y", "x"] if options is COLUMNS else ["z", "new", "y", "x"]
    other = opened(spec, classes=wanted, **options)
    assert [{wanted[each] for each in label} for label in other.labels] == [{*each} for each in LABELS]  # type: ignore[union-attr]
    assert all(list(label) == sorted(label) for label in other.labels)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not know the class z; it knows x, y"):
        opened(spec, classes=["x", "y"], **options)


def test_helpers(tmp_path: Path) -> None:
    source = opened(as_json(tmp_path))
    assert multi_hot(source).dtype == bool
    assert multi_hot(source).T.astype(int).tolist() == [flags(name) for name in "xyz"]
    assert class_counts(source).tolist() == [sum(flags(name)) for name in "xyz"]
    part = SubsetSource(source, [7, 3])
    assert (part.multilabel, part.labels) == (True, ((), (0, 1, 2)))
    prints = {
        fingerprint(each) for each in (source, part, SubsetSource(source, [3, 7]), SubsetSource(source, [7]))
    }
    assert len(prints) == 4
    empty = SubsetSource(source, [])
    assert multi_hot(empty).shape == (0, 3) and class_counts(empty).tolist() == [0, 0, 0]


def test_the_last_image_of_a_class_is_not_excluded(tmp_path: Path) -> None:
    source = opened(as_object_with_files(tmp_path))
    kept = exclude(source, [source.name(2), source.name(3)])
    assert (kept.multilabel, len(kept), kept.labels[2]) == (True, 6, (2,))
    with pytest.raises(UserError, match="every image of the class y is excluded"):
        exclude(source, [source.name(row) for row, label in enumerate(source.labels) if 1 in label])  # type: ignore[operator]


def as_object_with_files(root: Path) -> Path:
    """Images of different names."""
    for row in range(len(LABELS)):
        (root / f"{row}.png").write_bytes(encode())
    rows = [[f"{row}.png", json.dumps(labels)] for row, labels in enumerate(LABELS)]
    with (root / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *rows])
    return root / "set.csv"


def test_splits_of_the_set_itself(tmp_path: Path) -> None:
    """Classes are those of training images; labels of rows of no split are not looked at."""
    rows = [["x|y", "train"], ["y", "train"], ["x", "val"], ["x|q", "unused"]]
    with pytest.raises(UserError, match="split 'unused'; it must be one of"):
        opened(write_csv(tmp_path / "set.csv", ["tags", "split"], rows), **TEXTS)
    rows = [["x|y", "train"], ["y", "train"], ["x", "val"], ["x|q", "test"]]
    path = write_csv(tmp_path / "set.csv", ["tags", "split"], rows)
    assert opened(path, "train", **TEXTS).labels == ((0, 1), (1,))
    assert opened(path, "val", **TEXTS).labels == ((0,),)
    rows[2][0] = "x|q"
    with pytest.raises(UserError, match="line 4: label 'q' does not occur in the training split"):
        opened(write_csv(tmp_path / "set.csv", ["tags", "split"], rows), **TEXTS)
    rows = [["1", "0", "train"], ["1", "1", "train"], ["0", "1", "val"], ["-1", "?", "test"]]
    path = write_csv(tmp_path / "set.csv", ["x", "y", "split"], rows)
    assert opened(path, "all", label_column="x,y").labels == ((0,), (0, 1), (1,))


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "no such column": (as_texts, {"label_column": "tagz"}, r"has no column 'tagz'; did you mean tags"),
    "no such column among several": (
        as_flags,
        {"label_column": "x,y,w"},
        r"no column 'w'; it has path, x, age",
    ),
    "a column twice": (as_flags, {"label_column": "x,y,X"}, "names 'x' twice"),
    "an empty name": (as_flags, {"label_column": "x,,y"}, "has no column ''"),
    "a separator beside columns": (
        as_flags,
        COLUMNS | {"label_separator": "|"},
        "is for one column of labels, but label_column names 3",
    ),
    "numbers that are no flags": (
        as_flags,
        {"label_column": "x,age"},
        r"set.csv line 4: column 'age' holds '2', which does not say .*; write 1 or 0",
    ),
    "a separator that is nowhere": (as_texts, TEXTS | {"label_separator": "/"}, "'/' parts no label of"),
    "the column of images": (as_texts, {"label_column": "path"}, "'path' holds the images"),
    "lists of 0 and 1": (
        lambda root: write_csv(root / "set.csv", ["label"], [["[0, 1, 1]"], ["[1, 0, 0]"]]),
        {},
        "each list in column 'label' holds 3 times 0 or 1, which names no class; store the names",
    ),
    "lists of 0 and 1, parquet": (
        lambda root: write_parquet(root / "set.parquet", {"label": pa.array([[0, 1], [1, 0], [1, 1]])}),
        {},
        "each list in column 'label' holds 2 times 0 or 1",
    ),
    "no label beside joined ones": (
        lambda root: write_csv(root / "set.csv", ["label"], [["a;b"], ["b"], [""]]),
        {},
        "line 4 has no label .*; if other rows have several, give label_separator=';'",
    ),
    "another name": (as_list_of_other_name, {}, "it has image, findings; label_column names another"),
    "a separator of lists": (
        as_list_column,
        {"label_separator": "|"},
        "column 'labels' of .* does not hold texts; leave it out",
    ),
    "a column per class that is missing": (
        as_flags,
        {"label_column": "x,y", "classes": ["x", "y", "z"]},
        "label_column names no column for the class z, which the model knows; name all",
    ),
    "a column per class that is missing, parquet": (
        as_columns,
        {"label_column": "x,y", "classes": ["x", "y", "z"]},
        "label_column names no column for the class z",
    ),
    "no column of labels, but columns of classes": (
        as_flags,
        {},
        r"no column of labels; if those of 0 and 1 are its classes, give label_column='x,y,z'",
    ),
    "columns of a folder": (lambda root: root, {"label_column": "x"}, "has no columns; leave it out"),
    "a separator of digits": (lambda root: "digits", {"label_separator": ";"}, "digits has no columns"),
    "columns of an object": (as_multi_hot, {"label_column": "x"}, "dataset/TensorDataset has no columns"),
}


@pytest.mark.parametrize(("write", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(
    tmp_path: Path, write: Callable[[Path], Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(write(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_a_model_of_the_other_kind(tmp_path: Path) -> None:
    path = as_json(tmp_path)
    with pytest.raises(UserError, match="has several labels per image, but the model gives each image one"):
        open_images(path, "val", multilabel=False)
    assert open_images(path, "all", multilabel=True).multilabel
    single = open_images("digits", "val")
    several = open_images("digits", "val", multilabel=True)
    assert isinstance(single, ImageSource) and isinstance(several, ImageSource)
    assert several.multilabel and several.labels == tuple((label,) for label in single.labels)
    assert several[3][0].tobytes() == single[3][0].tobytes() and several.name(3) == single.name(3)
    assert (several.is_cut, several.mirrorable) == (single.is_cut, single.mirrorable) == (True, False)


CELLS: dict[str, tuple[list[str], str]] = {
    "an empty cell": (['["x"]', ""], r"line 3 has no label \(column 'label' is empty\); write \[\] for"),
    "null": (['["x", null]', "[]"], "line 2: its list of labels .* holds 'None', which is no name"),
    "a nested list": (["[]", '[["x"]]'], r"line 3: its list of labels .* holds \"\['x'\]\""),
    "a fraction": (["[0.5]", "[]"], "holds '0.5', which is no name of a class"),
    "a flag": (["[true, false]", "[]"], "holds 'True', which is no name of a class"),
    "an empty name": (['["x", " "]', "[]"], "holds ' ', which is no name of a class"),
    "names without quotes": (
        ["[cat, dog]", "[]"],
        r"\[cat, dog\] looks like a list .* but is neither",
    ),
    "what numpy writes": (["['cat' 'dog']", "[]"], "looks like a list"),
    "code": (["[__import__('os').getpid()]", "[]"], "looks like a list"),
    "brackets without an end": (["[" * 100_000 + "]", "[]"], "looks like a list"),
    "no label at all": (["[]", "[]"], "has a single class"),
}


@pytest.mark.parametrize(("cells", "message"), CELLS.values(), ids=CELLS)
def test_lists_in_cells(tmp_path: Path, cells: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(write_csv(tmp_path / "set.csv", ["label"], [[cell] for cell in cells]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_text_is_one_label_unless_said_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Class names may hold commas and brackets; a hint comes where they look joined."""
    names = ["tench, Tinca tinca", "goldfish, Carassius auratus", "[sic]", '["a"]', "(1, 2)", "{'a'}"]
    path = write_csv(tmp_path / "set.csv", ["label"], [[name] for name in names])
    assert not opened(path).multilabel and set(opened(path).classes) == {*names}
    assert caplog.text == ""
    path = write_csv(tmp_path / "other.csv", ["label"], [["cat"], ["cat;dog"], ["dog;bird"]])
    with caplog.at_level(logging.WARNING):
        assert opened(path).classes == ("cat", "cat;dog", "dog;bird")
        opened(path)
    assert caplog.text.count("look like several labels; if so, give label_separator=';'") == 1
    assert opened(path, label_separator=";").classes == ("bird", "cat", "dog")


def test_separators(tmp_path: Path) -> None:
    cells = ["cat, dog", "dog,", " , ", "cat,,bird"]
    path = write_csv(tmp_path / "set.csv", ["label"], [[cell] for cell in cells])
    assert opened(path, label_separator=",").labels == ((1, 2), (2,), (), (0, 1))
    path = write_csv(tmp_path / "set.csv", ["label"], [["big cat && dog"], ["dog"]])
    assert opened(path, label_separator="&&").classes == ("big cat", "dog")


def test_cells_of_columns_per_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for text, value in {
        "1": 1,
        "1.0": 1,
        "TRUE": 1,
        " yes ": 1,
        "0": 0,
        "0.0": 0,
        "False": 0,
        "no": 0,
    }.items():
        assert flag(text) == value
    assert all(np.isnan(flag(text)) for text in ("", "  ", "nan", "NaN"))
    rows = [["1", "", "0"], ["", "", "1"], ["0", "1", "1"]]
    path = write_csv(tmp_path / "set.csv", ["a", "b", "c"], rows)
    with caplog.at_level(logging.WARNING):
        assert opened(path, label_column="a,b,c").labels == ((0,), (2,), (1, 2))
    assert "3 empty cells in the columns of classes count as 0" in caplog.text
    for bad, said in (("-1", "-1 often means uncertain"), ("2", "write 1 or 0"), ("maybe", "write 1 or 0")):
        rows[1][2] = bad
        path = write_csv(tmp_path / "set.csv", ["a", "b", "c"], rows)
        with pytest.raises(UserError, match=f"line 3: column 'c' holds '{bad}', .*{said}"):
            opened(path, label_column="a,b,c")


def test_names_of_columns_may_hold_commas(tmp_path: Path) -> None:
    rows = [["x;y", "1", "0"], ["y", "0", "1"]]
    path = write_csv(tmp_path / "set.csv", ["what, where", "a, b", "c"], rows)
    assert opened(path, label_column="what, where", label_separator=";").classes == ("x", "y")
    assert opened(path, label_column='"a, b",c').classes == ("a, b", "c")


COLUMN: dict[str, tuple[Any, str]] = {
    "null": (
        pa.array([["x"], None, ["y"]]),
        "row 1 has no label .*is null.; store an empty list",
    ),
    "null in a list": (pa.array([["x"], [], ["y", None]]), "row 2: its list of labels .* holds null"),
    "a negative number": (
        pa.array([[0, 1], [], [2, -1]]),
        "row 2: label -1 is negative",
    ),
    "nested lists": (
        pa.array([[["x"]], [], []]),
        "labels must be stored as integers or strings, or",
    ),
    "fractions": (
        pa.array([[0.5], [], []]),
        "labels must be stored as integers or strings, or lists",
    ),
    "flags": (pa.array([[True, False], [], []]), "labels must be stored as integers or strings, or lists"),
    "no label at all": (pa.array([[], [], []], pa.list_(pa.string())), "has a single class"),
}


@pytest.mark.parametrize(("column", "message"), COLUMN.values(), ids=COLUMN)
def test_list_columns(tmp_path: Path, column: pa.Array, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(write_parquet(tmp_path / "set.parquet", {"label": column}))
    assert "\n" not in str(caught.value)


def test_numbers_out_of_range(tmp_path: Path) -> None:
    kind = datasets.Sequence(datasets.ClassLabel(names=["x", "y", "z"]))
    rows = datasets.Dataset.from_dict(rows_of([[0, 1], [], [2]]), features(kind))
    table = rows.data.table.set_column(1, "labels", pa.array([[0, 1], [], [2, 3]]))
    pq.write_table(table.replace_schema_metadata(rows.data.schema.metadata), tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"row 2: label 3 is out of range, there are 3 classes \(0 to 2\)"):
        opened(tmp_path / "set.parquet")


ITEMS: dict[str, tuple[list[Any], str]] = {
    "one label among lists": (
        [[0], 1, [2]],
        "row 1: label '1' is a single one, but the first item",
    ),
    "a list among single labels": (
        [0, [1, 2]],
        r"row 1: label '\[1, 2\]' is several labels, but the",
    ),
    "a number out of range": (
        [[0], [1, 3]],
        "row 1: label '3' is neither a class name nor a number",
    ),
    "an unknown name": ([["x"], ["q"]], "row 1: label 'q' is neither a class name"),
    "null": ([["x"], [None]], "row 1: label 'None' is neither a class name"),
    "nested lists": ([["x"], [["y"]]], "row 1: label .* is neither a class name"),
    "flags in a list": (
        [[True, False, True]],
        "row 0: the list of labels holds True, .*give a tensor",
    ),
    "fractions in a list": ([[0.0, 1.0, 0.0]], "row 0: the list of labels holds 0.0"),
    "too few values": (
        [torch.tensor([1, 0])],
        "a Tensor of 2 values, but there are 3 classes; give 0",
    ),
    "other values": ([torch.tensor([1, 0, 0.5])], "the label holds '0.5'; it must be 0 or 1 for each class"),
    "not a number": ([np.array([1, 0, np.nan])], "the label holds 'nan'"),
}


@pytest.mark.parametrize(("labels", "message"), ITEMS.values(), ids=ITEMS)
def test_items(labels: list[Any], message: str) -> None:
    for dataset in (as_object(labels), as_object(labels, targets=labels)):
        with pytest.raises(UserError, match=message):
            opened(dataset)


def test_the_list_of_labels_is_that_of_the_items() -> None:
    source = opened(as_object([["x"], ["y", "z"]], targets=[[0], [1]]))
    assert source[0][1] == (0,)
    with pytest.raises(UserError, match=r"row 1 has the label \(1, 2\), but \(1,\) in the dataset's list"):
        source[1]


def test_memory_grows_with_labels_not_with_classes(tmp_path: Path) -> None:
    """The matrix of 20,000 images and 10,000 classes would take 200 MB."""
    labels = [[f"c{row % 10_000}", f"c{(7 * row) % 10_000}"] for row in range(20_000)]
    path = write_parquet(tmp_path / "set.parquet", {"label": pa.array(labels)})
    opened(path, "train", val_fraction=0.3)
    tracemalloc.start()
    source = opened(path, "train", val_fraction=0.3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.classes) == 10_000 and class_counts(source).min() > 0
    assert peak < 60e6


# ---- streams ---------------------------------------------------------------------------------------


def test_a_stream_of_the_hub(tmp_path: Path) -> None:
    stream = opened_stream(as_hub(tmp_path).replace("hfds", "hfids"))
    assert stream.multilabel and [item.label for item in read(stream)] == EXPECTED
    (tmp_path / "columns").mkdir()
    as_columns(tmp_path / "columns")
    spec, splitting = f"hfids/{tmp_path / 'columns'}", Splitting(0.4, label_column="x,y,z")
    parts = {}
    for split in ("all", "train", "val"):
        images = open_images(spec, split, splitting)  # type: ignore[arg-type]
        assert isinstance(images, ImageStream)
        parts[split] = {item.name: item.label for item in read(images)}
    assert [*parts["all"].values()] == EXPECTED
    assert parts["train"] and parts["val"] and parts["train"] | parts["val"] == parts["all"]
    assert len(parts["train"]) + len(parts["val"]) == 8
    with pytest.raises(UserError, match="label_column names no column for the class q"):
        open_images(spec, "all", splitting, classes=["x", "y", "z", "q"])


def test_tar_shards(tmp_path: Path) -> None:
    files: list[tuple[str, bytes]] = []
    for row, labels in enumerate(LABELS):
        files.append((f"{row}.png", encode()))
        stored = json.dumps({"label": labels}) if row % 2 else json.dumps(labels)
        files.append((f"{row}.{'json' if row % 2 else 'cls'}", stored.encode()))
    files += [("8.png", encode()), ("8.cls", b"y"), ("9.png", encode()), ("9.json", b'{"label": ["x", "q"]}')]
    write_tar(tmp_path / "set.tar", files)
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    stream = opened_stream(f"wds/{tmp_path}")
    items = read(stream)
    assert stream.multilabel and [item.label for item in items] == [*EXPECTED, -1, -1]
    assert "label 'y' is no list, but those of others are" in problem(items[8])
    assert "label 'q' is neither a class (x, y, z) nor the number of one" in problem(items[9])
    (tmp_path / "classes.txt").unlink()
    assert opened_stream(f"wds/{tmp_path}").classes == ("q", "x", "y", "z")


def test_a_stream_of_one_label_for_a_model_of_several(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "set.tar", [("0.png", encode()), ("0.cls", b"a"), ("1.png", encode()), ("1.cls", b"b")]
    )
    stream = opened_stream(f"wds/{tmp_path}", multilabel=True)
    assert stream.multilabel and [item.label for item in read(stream)] == [(0,), (1,)]
