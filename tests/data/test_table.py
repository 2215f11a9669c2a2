import csv
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from conformer_vision.data import BrokenImageError
from conformer_vision.data.base import ImageSource
from conformer_vision.errors import UserError
from image_sets import opened

WriteImage = Callable[..., Path]


def write_table(path: Path, rows: Sequence[Sequence[object]], **options: str) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows(rows)  # type: ignore[arg-type]
    return path


@pytest.fixture
def images(tmp_path: Path, write_image: WriteImage) -> list[str]:
    """Paths, below the test's folder, of 8 images, each with its number as its red."""
    for number in range(8):
        write_image(tmp_path / "photos, all" / f"{number}.png", (number, 0, 0))
    return [f"photos, all/{number}.png" for number in range(8)]


def _reds(source: ImageSource) -> list[int]:
    return [source[i][0].getpixel((0, 0))[0] for i in range(len(source))]  # type: ignore[index, misc]


def test_rows_labels_and_names(tmp_path: Path, images: list[str]) -> None:
    labels = ["dog10", "dog9", "cat", "cat", "dog9", "dog10", "cat", "dog9"]
    rows = [("path", "label"), *zip(images, labels, strict=True)]
    path = write_table(tmp_path / "set.csv", rows)
    source = opened(path, split="all")
    assert source.classes == ("cat", "dog9", "dog10")
    assert [source.classes[label] for label in source.labels] == labels
    assert _reds(source) == list(range(8))
    assert source.name(3) == str(tmp_path / images[3])


@pytest.mark.parametrize(
    "text",
    [
        "label, path\na, {0}\nb, {1}\n",
        'label, path\n"a", "{0}"\n"b", "{1}"\n',
        "label,path\na, {0} \nb,\t{1}\n",
        "sep=;\npath;label\n{0};a\n{1};b\n",
        '"sep=;"\r\n"path";"label"\r\n"{0}";"a"\r\n"{1}";"b"\r\n',
        "SEP=,\nlabel,path\na,{0}\nb,{1}\n",
        '"path";"label";"a, b, c"\n"{0}";"a";1\n"{1}";"b";2\n',
        '"notes; more; and more",path,label\n1,{0},a\n2,{1},b\n',
        '"two\nlines; here",path,label\n1,{0},a\n2,{1},b\n',
        "path|label\n{0}|a\n{1}|b\n",
        "path\tlabel\n{0}\ta\n{1}\tb\n",
        "Image Path,Class Name\n{0},a\n{1},b\n",
        "FILEPATHS,labels\r{0},a\r{1},b\r",
        "\n\npath,label\n\n{0},a\n{1},b",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects(tmp_path: Path, write_image: WriteImage, text: str, encoding: str) -> None:
    names = ["Ä/0.png", "b b/1.png"]
    for number, name in enumerate(names):
        write_image(tmp_path / name, (number, 0, 0))
    (tmp_path / "set.csv").write_bytes(text.format(*names).encode(encoding))
    source = opened(tmp_path / "set.csv")
    assert (source.classes, list(source.labels), _reds(source)) == (("a", "b"), [0, 1], [0, 1])


def test_paths_as_windows_writes_them(tmp_path: Path, write_image: WriteImage) -> None:
    for number, name in enumerate(("a/0.png", "a/ 1.png", "a\\2.png")):
        write_image(tmp_path / name, (number, 0, 0))
    rows = [("path", "label"), ("a\\0.png", "x"), ("a/ 1.png", "y"), ("a\\2.png", "y"), ("a\\3.png", "x")]
    source = opened(write_table(tmp_path / "set.csv", rows))
    assert [source.image(index).getpixel((0, 0))[0] for index in range(3)] == [0, 1, 2]  # type: ignore[index]
    assert source.name(3).endswith("a\\3.png"), "as it is written"


def test_lines_are_counted_behind_the_separator_line(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("sep=;\npath;label\n1.png;a\n;b\n")
    with pytest.raises(UserError, match="line 4 has no path"):
        opened(tmp_path / "set.csv")


def test_absolute_paths_byte_order_mark_empty_lines(tmp_path: Path, images: list[str]) -> None:
    lines = ["path,label", "", f'"{tmp_path / images[0]}",a', ",", f'"{images[1]}", b ', " , "]
    (tmp_path / "set.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    source = opened(tmp_path / "set.csv", split="all")
    assert (source.classes, list(source.labels), _reds(source)) == (("a", "b"), [0, 1], [0, 1])


def test_split_column(tmp_path: Path, images: list[str]) -> None:
    words = ["train", "Valid", "train", "TRAIN ", "Validation", "training", "train", "VAL"]
    rows = [
        ("path", "label", "split"),
        *((p, i % 2, w) for i, (p, w) in enumerate(zip(images, words, strict=True))),
    ]
    path = write_table(tmp_path / "set.csv", rows)
    assert _reds(opened(path, split="train")) == [0, 2, 3, 5, 6]
    assert _reds(opened(path, split="val")) == [1, 4, 7]
    assert sorted(_reds(opened(path, split="all"))) == list(range(8))
    held_out = [_reds(opened(path, split="val", folds=2, fold=fold)) for fold in (0, 1)]
    assert sorted(held_out[0] + held_out[1]) == [0, 2, 3, 5, 6]


def test_val_comes_before_test_and_train_alone_is_split_by_seed(tmp_path: Path, images: list[str]) -> None:
    words = ["train"] * 4 + ["test", "val", "test", "val"]
    rows = [
        ("path", "label", "split"),
        *((p, i % 2, w) for i, (p, w) in enumerate(zip(images, words, strict=True))),
    ]
    rows[1 + 4] = (images[4], "only in test", "test")
    with pytest.raises(
        UserError, match="line 5: label '1' does not occur in the training split; its classes are 0"
    ):
        opened(write_table(tmp_path / "a.csv", [rows[0], rows[1], rows[3], *rows[5:]]), split="val")
    path = write_table(tmp_path / "set.csv", rows)
    assert _reds(opened(path, split="val")) == [5, 7]
    assert opened(path, split="train").classes == ("0", "1")
    path = write_table(tmp_path / "set.csv", rows[:5])
    assert len(opened(path, split="train")) == len(opened(path, split="val")) == 2


def test_parquet_with_paths(tmp_path: Path, images: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = ["train", "validation"] * 4
    strings = pa.array([str(tmp_path / p) if i % 3 else p for i, p in enumerate(images)])
    structs = pa.array(
        [{"bytes": (tmp_path / p).read_bytes() if i % 2 else None, "path": p} for i, p in enumerate(images)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    for column in (strings, structs):
        columns = {"file_name" if column is strings else "image": column, "class": [0, 0, 1, 1] * 2}
        path = tmp_path / "set.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=3)
        source = opened(path, split="all")
        assert (_reds(source), list(source.labels)) == (list(range(8)), [0, 0, 1, 1] * 2)
        assert source.name(7) == f"{path} row 7"
        assert _reds(pickle.loads(pickle.dumps(source))) == list(range(8))
        pq.write_table(pa.table(columns | {"split": words}), path, row_group_size=3)
        assert _reds(opened(path, split="train")) == [0, 2, 4, 6]
        assert _reds(opened(path, split="val")) == [1, 3, 5, 7]
        pq.write_table(pa.table(columns | {"split": [*words[:7], "none"]}), path)
        with pytest.raises(
            UserError,
            match=r"set\.parquet row 7: split 'none'; it must be one of train",
        ):
            opened(path, split="train")
    (tmp_path / images[2]).unlink()
    with pytest.raises(BrokenImageError, match=r"/2\.png \(.*set\.parquet row 2\): .*no such file"):
        source[2]


def test_missing_image_is_named_when_it_is_read(tmp_path: Path, images: list[str]) -> None:
    rows = [("path", "label"), (images[0], "a"), ("none.png", "b"), (images[1], "b")]
    source = opened(write_table(tmp_path / "set.csv", rows), split="all")
    source[0]
    with pytest.raises(BrokenImageError, match=r"none\.png \(.*set\.csv line 3\): .*no such file"):
        source[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; its first line must name the columns"),
        (b"\n\n", "is empty"),
        (b"path,label\n", "holds no rows"),
        (b"photo,label\n1.png,a", r"no column of images; .*it has photo, label"),
        (b"path,kind\n1.png,a", r"no column of labels; .*it has path, kind"),
        (b"1.png,cat\n2.png,dog", r"no column of images; .*it has 1\.png, cat"),
        (b"path,label,Label\n1.png,a,b", r"2 columns named label"),
        (b"path,label\n1.png,a\n2.png,", r"line 3 has no label \(column 'label' is empty\)"),
        (b"path,label\n1.png,a\n2.png", r"line 3 has no label"),
        (b"path,label\n1.png,a\n,b", r"line 3 has no path of an image"),
        (b"path,label\n1.png,a\nx\0y.png,b", r"line 3 has no path of an image"),
        (b"path,label\n1.png,a\n2,5.png,b", r"line 3 has 3 cells, but the header has 2"),
        (b"path,label\n1.png,a\ncaf\xe9.png,b", r"line 3 is not UTF-8"),
        (b'path,label\n1.png,a\n"2.png,b\n3.png,b', r"line 4 cannot be read as a table"),
        (b"path,label\n1.png," + b"a" * 200_000, r"line 2 cannot be read as a table \(field larger"),
        (b"path,label\n1.png,a\n2.png,a", r"single class \(a\)"),
        (
            b"path,label,split\n1.png,a,train\n2.png,b,later",
            r"line 3: split 'later'; it must be one of train, training",
        ),
        (b"path,label,split\n1.png,a,val\n2.png,b,val", r"validation images but none for training"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "set.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / "set.csv", split="train")
    assert str(tmp_path / "set.csv") in str(caught.value)
    assert "\n" not in str(caught.value)


CELLS = st.text(st.sampled_from('ab,;"\t\r\n\0\\ é'), max_size=6)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(), st.text().map(str.encode), CELLS.map(lambda t: f"path,label\n{t}".encode())))
def test_any_text_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.csv").write_bytes(content)
    try:
        source = opened(tmp_path / "set.csv", split="all")
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert len(source) == len(source.labels)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip),
            st.sampled_from(["a", "b,c", 'd"e', "ü"]),
        ),
        min_size=1,
        max_size=8,
    )
)
@example([("\\", "a")])  # a lone backslash is no root folder
def test_what_csv_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    path = write_table(tmp_path / "set.csv", [("path", "label"), *rows])
    source = opened(path, split="all", classes=["a", "b,c", 'd"e', "ü"])
    assert [source.classes[label] for label in source.labels] == [label for _, label in rows]
    expected = [name if name.startswith("/") else f"{tmp_path}/{name}" for name, _ in rows]
    assert [source.name(i) for i in range(len(source))] == expected
