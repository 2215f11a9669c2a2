"""One table of names: whatever the form and the letter case, the same splits and columns are found."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conformer_vision.data.names import find_splits, group_files
from conformer_vision.errors import UserError
from image_sets import opened
from streamed import NAMES, colour, encode, opened_stream, read, write_shards


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("train test val", "train val"),
        ("Training TEST", "Training TEST"),
        ("train unlabelled", "train"),
        ("a b", ""),
        ("TRAINS Validations extra", "TRAINS Validations"),
        ("training_set test_set single_prediction", "training_set test_set"),
        ("seg_train seg_test seg_pred", "seg_train seg_test"),
        ("train2017 val2017 annotations", "train2017 val2017"),
        ("01-Train 02-Dev 03-Test", "01-Train 02-Dev"),
        ("TrainImages TestImages", "TrainImages TestImages"),
        ("images.train images.eval", "images.train images.eval"),
        ("trainset testset", "trainset testset"),
        ("trainval test", "trainval test"),
        ("train_val test", "train_val test"),
        ("my-training-data my-valid-data", "my-training-data my-valid-data"),
        # classes
        ("train_station test_tube bus", ""),
        ("steam_train freight_train", ""),
        ("positive_test negative_test", ""),
        ("invalid vale contest straining latest restrain developer", ""),
        ("train_test_split", ""),
    ],
)
def test_find_splits(names: str, found: str) -> None:
    assert [*find_splits(names.split(), origin="x").values()] == found.split()


@pytest.mark.parametrize(
    "names",
    [
        "train training test",
        "Train train val",
        "val validation train",
        "train test testing",
        "train val train_extra",
        "a_train a_test b_train b_test",
        "train_images_a test_images_b",
        "train seg_train seg_test",
        "train PublicTest PrivateTest",
        "fold1_train fold1_test fold2_train fold2_test",
    ],
)
def test_what_is_ambiguous(names: str) -> None:
    with pytest.raises(UserError, match=r"x: it is unclear which of .* are the training and the validation"):
        find_splits(names.split(), origin="x")


def test_group_files() -> None:
    files = ["a/Train-0.parquet", "a/test-0.parquet", "a/other.parquet", "a/imgsTraining_2.parquet"]
    assert group_files(files, origin="x") == {"train": [files[0], files[3]], "val": [files[1]]}
    assert group_files(files[:1], origin="x") == {}
    for train, val in (("training/0.tar", "Validation/0.tar"), ("test/train-0.tar", "test/tests-0.tar")):
        assert group_files([train, val], origin="x") == {"train": [train], "val": [val]}
    for unclear in (
        ["train-0.tar", "other.tar"],
        ["val.tar", "test.tar"],
        ["train/test-0.tar", "train/1.tar"],
    ):
        with pytest.raises(UserError, match="x: it is unclear which files are for training"):
            group_files(unclear, origin="x")
    with pytest.raises(UserError, match="x: the names of files and of their folders mean different splits"):
        group_files(["train/test-0.tar", "val/train-0.tar"], origin="x")


def write(form: str, root: Path, train: str, val: str, image: str, label: str) -> Any:
    """Six training and three validation images; gives the spec."""
    parts = {train: range(6), val: range(6, 9)}
    files = [encode(colour(number)) for number in range(9)]
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(NAMES))})
    rows = {
        name: datasets.Dataset.from_dict(
            {
                image: [{"bytes": files[number], "path": None} for number in numbers],
                label: [number % 3 for number in numbers],
            },
            features,
        )
        for name, numbers in parts.items()
    }
    if form == "folder":
        for name, numbers in parts.items():
            for number in numbers:
                (root / name / NAMES[number % 3]).mkdir(parents=True, exist_ok=True)
                (root / name / NAMES[number % 3] / f"{number}.png").write_bytes(files[number])
        return root
    if form == "table":
        write("folder", root, train, val, image, label)
        lines = [f"{image},{label},Split"]
        for name, numbers in parts.items():
            lines += [f"{name}/{NAMES[n % 3]}/{n}.png,{NAMES[n % 3]},{name}" for n in numbers]
        (root / "set.csv").write_text("\n".join(lines) + "\n")
        return root / "set.csv"
    if form == "saved":
        datasets.DatasetDict(rows).save_to_disk(root)
        return root
    if form == "tar":
        write_shards(root / train, [6])
        write_shards(root / val, [3], first=6)
        return f"wds/{root}"
    root.mkdir(parents=True, exist_ok=True)
    text = "configs:\n- config_name: default\n  data_files:\n"
    for name, part in rows.items():
        part.to_parquet(root / f"{name}-0.parquet")
        text += f"  - split: {name}\n    path: {name}-0.parquet\n"
    (root / "README.md").write_text(f"---\n{text}---\n")  # as on the hub
    return {"parquet": root, "hub": f"hfds/{root}", "stream": f"hfids/{root}"}[form]


@pytest.mark.parametrize("form", ["folder", "table", "saved", "parquet", "hub", "stream", "tar"])
@pytest.mark.parametrize(
    ("train", "val", "image", "label"),
    [
        ("train", "val", "image", "label"),
        ("Training", "TEST", "IMG", "Fine_Label"),
        ("set1_trains", "set1_Tests", "Images", "class"),
    ],
)
def test_every_form_knows_the_same_names(
    tmp_path: Path, form: str, train: str, val: str, image: str, label: str
) -> None:
    spec = write(form, tmp_path / "set", train, val, image, label)
    counts = []
    for split in ("train", "val", "all"):
        if form in ("stream", "tar"):
            items = read(opened_stream(spec, split))
            shown = [(item.image().getpixel((0, 0))[0], item.label) for item in items]
        else:
            source = opened(spec, split)
            shown = [
                (image.getpixel((0, 0))[0], label) for image, label in (source[i] for i in range(len(source)))
            ]
        assert all(number % 3 == label for number, label in shown)
        counts.append(sorted(number for number, _ in shown))
    assert counts == [list(range(6)), list(range(6, 9)), list(range(9))]


@pytest.mark.parametrize("inner", ["", "set/set", "photos"])
def test_folders_of_splits_are_found_below_folders_of_their_own(tmp_path: Path, inner: str) -> None:
    write("folder", tmp_path / "set" / inner, "Train", "Valid", "", "")
    assert [len(opened(tmp_path / "set", split)) for split in ("train", "val")] == [6, 3]


def test_kaggle_repeats_the_split(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write("folder", tmp_path / "set" / f"seg_{part}", f"seg_{part}", "none", "", "")
        shutil.rmtree(tmp_path / "set" / f"seg_{part}" / "none")
    source = opened(tmp_path / "set", "val")
    assert source.classes == NAMES and "seg_test/seg_test" in source.name(0)


def test_folders_that_may_be_splits_or_classes(
    tmp_path: Path, class_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    messages = {
        "Train/cat Train/dog extra/cat": "it is unclear whether Train is a split or a class like extra; call",
        "train/cat train/dog train_extra/cat": "whether train is a split or a class like train_extra; call",
        "train_a/1 train_a/2 train_b/1 train_b/2": "whether train_a, train_b are splits or classes",
        "cat/train cat/test dog/train dog/test": "cat holds splits inside a class; put the splits first",
        "train/cat training/cat test/cat": "it is unclear which of",
        "train test bus": "train holds images but no class folders",
        "TRAIN Tests": "TRAIN holds images but no class folders",
    }
    for number, (folders, message) in enumerate(messages.items()):
        root = class_folders(tmp_path / str(number), folders.split())
        with pytest.raises(UserError, match=message) as caught:
            opened(root, "train")
        assert "\n" not in str(caught.value)
    for number, folders in enumerate(
        ("train bus", "valid invalid", "steam_train bus test_tube", "dev board")
    ):
        root = class_folders(tmp_path / f"classes{number}", folders.split())
        assert set(opened(root).classes) == set(folders.split())
    root = class_folders(tmp_path / "tiny", ["bullet train/images", "ox/images", "test tube/images"])
    assert opened(root).classes == ("bullet train", "ox", "test tube")  # as Tiny-ImageNet's folders are
    root = class_folders(tmp_path / "left", ["train/a", "train/b", "val/a", "val/b", "unlabelled"])
    assert len(opened(root, "train")) == 6
    assert f"{root}: left alone, as no split: unlabelled" in caplog.text


@pytest.mark.parametrize("column", ["Split", "SPLITS", " split ", "Data Set", "subset", "Usage", "partition"])
def test_columns_of_splits(tmp_path: Path, column: str) -> None:
    write("folder", tmp_path, "train", "val", "", "")
    rows = [
        (f"{part}/{path.parent.name}/{path.name}", path.parent.name, part)
        for part in ("train", "val")
        for path in sorted((tmp_path / part).rglob("*.png"))
    ]
    lines = [f"image,label,{column}", *(",".join(row) for row in rows)]
    (tmp_path / "set.csv").write_text("\n".join(lines).replace(",val", ",VALIDATION "))
    table = pa.table(dict(zip(("image", "label", column), map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "set.parquet")
    words = pa.array([row[2] for row in rows])
    pq.write_table(table.set_column(2, column, words.dictionary_encode()), tmp_path / "coded.parquet")
    for name in ("set.csv", "set.parquet", "coded.parquet"):
        assert [len(opened(tmp_path / name, split)) for split in ("train", "val")] == [6, 3]


def test_columns_that_are_not_of_splits(tmp_path: Path) -> None:
    """Other names count if all their words are splits; several columns are ambiguous."""
    write("folder", tmp_path, "train", "val", "", "")
    lines = [f"train/{NAMES[n % 3]}/{n}.png,{NAMES[n % 3]}" for n in range(6)]
    (tmp_path / "set.csv").write_text("\n".join(["image,label,set", *(f"{line},B" for line in lines)]))
    assert len(opened(tmp_path / "set.csv", "all")) == 6
    for header, cells, message in (
        ("set,usage", "train,test", "the columns set, usage all name splits"),
        ("is_valid", "False", "the column 'is_valid' looks like a split; write a column split"),
        ("Is Train", "1", "the column 'Is Train' looks like a split"),
        ("split", "unlabelled", "line 2: split 'unlabelled'; it must be one of"),
    ):
        text = "\n".join([f"image,label,{header}", *(f"{line},{cells}" for line in lines)])
        (tmp_path / "set.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            opened(tmp_path / "set.csv", "all")
    words = ["Training", "PublicTest", "PrivateTest"] * 2
    text = "\n".join(
        ["image,label,Usage", *(f"{line},{word}" for line, word in zip(lines, words, strict=True))]
    )
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(UserError, match="it is unclear which of"):
        opened(tmp_path / "set.csv", "all")


@pytest.mark.parametrize(("train", "val"), [("Train", "Test"), ("seg_train", "seg_valid"), ("TRAIN", "VAL")])
def test_splits_that_datasets_does_not_know(
    tmp_path: Path, class_folders: Callable[..., Path], parquet: Callable[..., Path], train: str, val: str
) -> None:
    class_folders(tmp_path / "folders", [f"{part}/{name}" for part in (train, val) for name in "ab"])
    for name in (train, val):
        parquet(f"files/{name}.parquet", [0, 1] * 3)
        parquet(f"inner/{name}/0.parquet", [0, 1] * 3)
    for root in ("folders", "files", "inner"):
        assert [len(opened(tmp_path / root, split)) for split in ("train", "val")] == [6, 6]
        try:
            found = [len(opened(f"hfds/{tmp_path / root}", split)) for split in ("train", "val")]
        except UserError as error:
            assert "datasets does not tell the splits" in str(error) and str(tmp_path / root) in str(error)
            with pytest.raises(UserError, match="datasets does not tell the splits"):
                opened_stream(f"hfids/{tmp_path / root}")
        else:
            assert found == [6, 6]


def test_folders_of_the_same_folders(
    tmp_path: Path, class_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """As splits by other words are; as classes they are rare."""
    root = class_folders(tmp_path, ["lernen/a", "lernen/b", "pruefen/a", "pruefen/b"])
    assert opened(root).classes == ("lernen", "pruefen")
    assert "lernen, pruefen are taken for classes, though they hold the same folders (a, b)" in caplog.text


def test_flags_of_parquet(tmp_path: Path, encode: Any) -> None:
    table = pa.table({"image": [encode()] * 4, "label": ["x", "y"] * 2, "is_valid": [True, False] * 2})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(UserError, match="the column 'is_valid' looks like a split"):
        opened(tmp_path / "set.parquet")


@pytest.mark.parametrize("values", [[0, 1], [True, False], [None, "train"], [0.5, 1.5]])
def test_a_column_split_of_other_values(tmp_path: Path, values: list[Any], encode: Any) -> None:
    table = pa.table({"image": [encode()] * 6, "label": ["x", "y", "z"] * 2, "SPLIT": values * 3})
    pq.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(UserError, match=r"set\.parquet row \d: split '.*'; it must be one of train"):
        opened(tmp_path / "set.parquet")


def test_two_columns_that_differ_in_case_only(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,Image,label\na.png,b.png,x\n")
    with pytest.raises(UserError, match="has 2 columns named image; rename all but one"):
        opened(tmp_path / "set.csv")
