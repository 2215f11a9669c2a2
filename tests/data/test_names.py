"""One table of names: whatever the form and the letter case, the same splits and columns are found."""

from pathlib import Path
from typing import Any

import datasets
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
        (["train", "test", "val"], {"train": "train", "val": "val"}),
        (["Training", "TEST"], {"train": "Training", "val": "TEST"}),
        (["train", "unlabelled"], {"train": "train"}),
        (["valid", "validation"], {"val": "validation"}),
        (["a", "b"], {}),
    ],
)
def test_find_splits(names: list[str], found: dict[str, str]) -> None:
    assert find_splits(names) == found


def test_group_files() -> None:
    files = ["a/Train-0.parquet", "a/test-0.parquet", "a/other.parquet", "a/train_test.parquet"]
    assert group_files(files) == {"train": [files[0], files[3]], "val": [files[1]]}
    assert group_files(files[:1]) == {}
    assert group_files(["training/0.tar", "Validation/0.tar"]) == {
        "train": ["training/0.tar"],
        "val": ["Validation/0.tar"],
    }


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
    [("train", "val", "image", "label"), ("Training", "TEST", "IMG", "Fine_Label")],
)
def test_every_form_knows_the_same_names(
    tmp_path: Path, form: str, train: str, val: str, image: str, label: str
) -> None:
    spec = write(form, tmp_path / "set", train, val, image, label)
    counts = []
    for split in ("train", "val", "all"):
        if form in ("stream", "tar"):
            items = read(opened_stream(spec, split))
            shown = [(item.image.getpixel((0, 0))[0], item.label) for item in items]  # type: ignore[union-attr]
        else:
            source = opened(spec, split)
            shown = [
                (image.getpixel((0, 0))[0], label) for image, label in (source[i] for i in range(len(source)))
            ]
        assert all(number % 3 == label for number, label in shown)
        counts.append(sorted(number for number, _ in shown))
    assert counts == [list(range(6)), list(range(6, 9)), list(range(9))]


def test_two_columns_that_differ_in_case_only(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,Image,label\na.png,b.png,x\n")
    with pytest.raises(UserError, match="has 2 columns named image; rename all but one"):
        opened(tmp_path / "set.csv")
