from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import BrokenImageError
from conformer_vision.data.base import ImageSource
from conformer_vision.errors import UserError
from image_sets import opened

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline_with_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def make(encode: Callable[..., bytes]) -> Callable[..., Any]:
    """A set of images whose reds count from ``first``."""

    def make(
        labels: Sequence[Any],
        *,
        first: int = 0,
        names: Sequence[str] | None = ("x", "y"),
        columns: tuple[str, str] = ("image", "label"),
        images: Sequence[Any] | None = None,
    ) -> Any:
        if images is None:
            images = [{"bytes": encode((first + i, 0, 0)), "path": None} for i in range(len(labels))]
        label = datasets.ClassLabel(names=list(names)) if names else None
        data = datasets.Dataset.from_dict({columns[1]: labels, columns[0]: images})
        data = data.cast_column(columns[0], datasets.Image())
        return data.cast_column(columns[1], label) if label else data

    return make


def _reds(source: ImageSource) -> list[int]:
    return [source[i][0].getpixel((0, 0))[0] for i in range(len(source))]  # type: ignore[index, misc]


def test_saved_splits(tmp_path: Path, make: Callable[..., Any]) -> None:
    val = "validation"
    splits = {"train": make([0, 1] * 3), val: make([1, 0], first=10), "extra": make([0], first=20)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    train, held_out, both = (opened(tmp_path / "set", split=s) for s in ("train", "val", "all"))
    assert (_reds(train), _reds(held_out)) == ([0, 1, 2, 3, 4, 5], [10, 11])
    assert (_reds(both), list(both.labels)) == ([0, 1, 2, 3, 4, 5, 10, 11], [0, 1, 0, 1, 0, 1, 1, 0])
    assert held_out.name(1) == f"{tmp_path / 'set'} {val} row 1"
    folds = [_reds(opened(tmp_path / "set", split="val", folds=3, fold=fold)) for fold in range(3)]
    assert sorted(red for fold in folds for red in fold) == [0, 1, 2, 3, 4, 5]


def test_shuffled_selection_of_a_set(tmp_path: Path, make: Callable[..., Any]) -> None:
    make([0, 1] * 10).shuffle(seed=1).select(range(8)).save_to_disk(tmp_path / "set")
    source = opened(tmp_path / "set", split="all")
    reds = _reds(source)
    assert (len(reds), reds != sorted(reds)) == (8, True)
    assert list(source.labels) == [red % 2 for red in reds]


@pytest.mark.parametrize("columns", [("img", "fine_label"), ("photo", "kind"), ("file", "labels")])
def test_columns(tmp_path: Path, make: Callable[..., Any], columns: tuple[str, str]) -> None:
    make([0, 1, 1], columns=columns).save_to_disk(tmp_path / "set")
    assert _reds(opened(tmp_path / "set", split="all")) == [0, 1, 2]


def test_labels_without_names(tmp_path: Path, make: Callable[..., Any]) -> None:
    for labels, classes in ((["dog", "cat", "dog"], ("cat", "dog")), ([10, 9, 10], ("9", "10"))):
        make(labels, names=None).save_to_disk(tmp_path / str(classes))
        source = opened(tmp_path / str(classes), split="all")
        assert (source.classes, list(source.labels)) == (classes, [1, 0, 1])
    source = opened(tmp_path / "('9', '10')", split="all", classes=["10", "8", "9"])
    assert list(source.labels) == [0, 2, 0]


def test_images_by_path_and_broken_ones(
    tmp_path: Path,
    make: Callable[..., Any],
    write_image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(write_image(tmp_path / "1.png", (7, 0, 0)))
    images = [
        {"bytes": None, "path": path},
        {"bytes": b"broken", "path": "x.png"},
        None,
        {"bytes": None, "path": "/none.png"},
    ]
    data = make([0, 1, 0, 1])
    column = datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    data = data.remove_columns("image").add_column("image", column.data.column(0), feature=datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)  # saved, paths become bytes
    source = opened("hfds/set", split="all")
    assert source[0][0].getpixel((0, 0)) == (7, 0, 0)
    for row, message in ((1, "in no format"), (2, "row has none"), (3, "no such file")):
        with pytest.raises(BrokenImageError, match=rf"set row {row}.*{message}"):
            source[row]


def test_local_folder_through_load_dataset(
    tmp_path: Path, class_folders: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    class_folders(tmp_path / "set" / "train", ["a", "b"], count=3)
    class_folders(tmp_path / "set" / "validation", ["a", "b"], count=1)
    kept = tmp_path / "kept"
    source = opened(f"hfds/{tmp_path / 'set'}", split="train", data_dir=kept)
    assert (source.classes, list(source.labels), _reds(source)) == (
        ("a", "b"),
        [0] * 3 + [1] * 3,
        [0, 1, 2] * 2,
    )
    assert source.name(0) == f"hfds/{tmp_path / 'set'} train row 0"
    assert len(opened(f"HFDS/{tmp_path / 'set'}", split="val", data_dir=kept)) == 2
    assert any(kept.iterdir())
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UserError, match="set:small cannot be loaded"):
        opened(f"hfds/{tmp_path / 'set'}:small", split="train")


def test_name_and_configuration_are_passed_on(
    tmp_path: Path, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, name: str | None = None, *, cache_dir: str | None = None) -> Any:
        calls.append((path, name, cache_dir))
        return datasets.DatasetDict(train=make([0, 1]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    opened("hfds/someone/set:small", split="train", data_dir=tmp_path)
    opened("hfds/set", split="train")
    assert calls == [("someone/set", "small", str(tmp_path)), ("set", None, None)]


def test_code_of_a_set_is_never_run(tmp_path: Path, make: Callable[..., Any]) -> None:
    (tmp_path / "set").mkdir()
    mark = tmp_path / "ran"
    (tmp_path / "set" / "set.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(UserError, match=r"cannot be loaded|no such set"):
        opened(f"hfds/{tmp_path / 'set'}", split="train")
    assert not mark.exists()


def test_errors_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets.exceptions import DatasetNotFoundError

    def fails(error: Exception) -> Callable[..., Any]:
        def load_dataset(*args: Any, **kwargs: Any) -> Any:
            raise error

        return load_dataset

    for error, message in (
        (DatasetNotFoundError("Dataset 'a/b' is a gated\ndataset"), "no such set, or it needs an account"),
        (ConnectionError("Couldn't\nreach"), r"the hub is not reached \(Couldn't reach\)"),
        (
            ValueError("Config name is missing.\nPlease pick one: c"),
            "Config name is missing. Please pick one: c",
        ),
    ):
        monkeypatch.setattr(datasets, "load_dataset", fails(error))
        with pytest.raises(UserError, match=message) as caught:
            opened("hfds/a/b", split="train")
        assert "hfds/a/b" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="hfds/ names nothing"):
        opened("hfds/", split="train")


def test_offline_and_not_in_the_cache() -> None:
    with pytest.raises(UserError, match="hfds/no/such cannot be loaded") as caught:
        opened("hfds/no/such", split="train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0, None, 1]}, "row 1 has no label"),
        ({"labels": [0, 1, -1]}, "row 2: label -1 is negative"),
        ({"labels": [1, 1], "names": ["only"]}, "row 0: label 1 is out of range|cannot be"),
        ({"labels": [0, 0], "names": ["only"]}, r"single class \(only\)"),
        (
            {"labels": [0.5, 1.5], "names": None},
            "column 'label' holds Value.*; labels must be stored as integers or strings",
        ),
    ],
)
def test_wrong_rows_and_columns_are_named(
    tmp_path: Path, make: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    labels = options.pop("labels")
    data = make([0] * len(labels) if options.get("names", "") is not None else labels, **options)
    if options.get("names", "") is not None:  # `datasets` itself refuses to make them
        import pyarrow as pa

        schema = data.data.schema
        table = data.data.table.set_column(
            data.column_names.index("label"), schema.field("label"), pa.array(labels, pa.int64())
        )
        data = datasets.Dataset(datasets.table.InMemoryTable(table), info=data.info)
    data.save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / "set", split="all")
    assert str(tmp_path / "set") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_splits_and_damage_are_named(tmp_path: Path, make: Callable[..., Any]) -> None:
    datasets.DatasetDict(a=make([0, 1]), b=make([0, 1])).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match="has the splits a, b, but none of train"):
        opened(tmp_path / "set", split="train")
    datasets.DatasetDict(train=make([0, 1]), test=make([0, 1], names="yx")).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match=r"two train and .*two test declare different classes"):
        opened(tmp_path / "two", split="train")
    datasets.DatasetDict(test=make([0, 1])).save_to_disk(tmp_path / "test")
    assert len(opened(tmp_path / "test", split="val")) == 2
    with pytest.raises(UserError, match="validation images but none for training"):
        opened(tmp_path / "test", split="train")
    (tmp_path / "set" / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="set cannot be read as a set saved by datasets") as caught:
        opened(tmp_path / "set", split="train")
    assert "\n" not in str(caught.value)
