"""Images of one group stay together, in every form of data, split and fold."""

import csv
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from conformer_vision.data import ImageSource, Splitting, groups, open_images
from conformer_vision.data.base import SubsetSource
from conformer_vision.data.exclude import exclude
from conformer_vision.data.folds import deal_folds, read_folds, write_folds
from conformer_vision.data.stream import StreamedImage
from conformer_vision.errors import UserError
from image_sets import opened
from streamed import colour, encode, numbers, problem, read, write_tar

IMAGES = 36
CLASSES = ["x", "y", "z"]
PATH = r"(p\d+)_"


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def patient(number: int) -> str:
    """Twelve patients of three images, one of each class."""
    return f"p{number // 3}"


def names(count: int = IMAGES) -> list[str]:
    return [f"{CLASSES[number % 3]}/{patient(number)}_{number}.png" for number in range(count)]


def folder(root: Path, count: int = IMAGES) -> Path:
    for number, name in enumerate(names(count)):
        (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "set" / name).write_bytes(encode(colour(number)))
    return root / "set"


def table(root: Path, **column: Iterable[object]) -> Path:
    folder(root)
    column = column or {"Patient ID": [patient(number) for number in range(IMAGES)]}
    with open(root / "set.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *column])
        for number, (name, *values) in enumerate(zip(names(), *column.values(), strict=True)):
            writer.writerow(["set\\" + name.replace("/", "\\"), CLASSES[number % 3], *values])
    return root / "set.csv"


def rows(*, paths: bool = True, **columns: Any) -> datasets.Dataset:
    images = [
        {"bytes": encode(colour(number)), "path": name if paths else None}
        for number, name in enumerate(names())
    ]
    found = {"image": images, "label": [number % 3 for number in range(IMAGES)]} | columns
    made = datasets.Dataset.from_dict(found)
    made = made.cast_column("image", datasets.Image())
    return made.cast_column("label", datasets.ClassLabel(names=CLASSES))


def zipped(root: Path) -> Path:
    path = folder(root)
    with zipfile.ZipFile(root / "set.zip", "w") as packed:
        for file in path.rglob("*.png"):
            packed.write(file, file.relative_to(path))
    return root / "set.zip"


def parquet(root: Path) -> Path:
    (root / "set").mkdir(parents=True)
    whole = rows(patient=[number // 3 for number in range(IMAGES)])
    for part in range(2):
        whole.select(range(18 * part, 18 * part + 18)).to_parquet(root / "set" / f"{part}.parquet")
    return root / "set"


def saved(root: Path) -> Path:
    made = rows(site=[patient(number) for number in range(IMAGES)], paths=False)
    made = made.cast_column("site", datasets.ClassLabel(names=[f"p{number}" for number in range(12)]))
    made.save_to_disk(root / "set")
    return root / "set"


def hub(root: Path) -> str:
    return f"hfds/{parquet(root)}"


class Listed:
    """A Python dataset that lists its patients."""

    classes = CLASSES
    targets = [number % 3 for number in range(IMAGES)]  # noqa: RUF012
    patient = [number // 3 for number in range(IMAGES)]  # noqa: RUF012

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Any:
        return np.full((8, 8, 3), colour(index), np.uint8), index % 3


class Sampled(Listed):
    """A Python dataset that lists its files."""

    root = "/data"
    samples = [(f"/data/{name}", 0) for name in names()]  # noqa: RUF012


def listed(root: Path) -> Any:
    return Listed()


def sampled(root: Path) -> Any:
    return Sampled()


FORMS: list[tuple[Callable[[Path], Any], str]] = [
    (folder, PATH),
    (zipped, PATH),
    (table, "Patient ID"),
    (table, "patient_id"),  # as other columns, whatever the case and spaces
    (table, r"set/\w/(p\d+)"),
    (parquet, "patient"),
    (parquet, PATH),
    (saved, "site"),
    (hub, "patient"),
    (listed, "patient"),
    (sampled, PATH),
]


def shown(source: ImageSource) -> list[int]:
    return [source.image(index).getpixel((0, 0))[0] for index in range(len(source))]  # type: ignore[index, misc]


@pytest.mark.parametrize(("write", "group"), FORMS, ids=lambda value: getattr(value, "__name__", value))
def test_groups_in_every_form(write: Callable[[Path], Any], group: str, tmp_path: Path) -> None:
    spec = write(tmp_path)
    for options in ({"val_fraction": 0.3}, {"folds": 3, "fold": 1}):
        train, val = (opened(spec, split, group=group, **options) for split in ("train", "val"))
        sides = [{number // 3 for number in shown(side)} for side in (train, val)]
        assert not sides[0] & sides[1] and all(sides) and len(train) + len(val) == IMAGES
        for side in (train, val):
            assert side.groups is not None and len(side.groups) == len(side)
            ids = {int(re.sub(r"\D", "", name)) for name in side.groups}
            assert ids == {number // 3 for number in shown(side)}
            assert [int(re.sub(r"\D", "", name)) for name in side.groups] == [n // 3 for n in shown(side)]
        subset = SubsetSource(val, [2, 0])
        assert subset.groups == (val.groups[2], val.groups[0])  # type: ignore[index]
        assert exclude(val, [val.name(0)]).groups == val.groups[1:]  # type: ignore[index]
    assert opened(spec, "val").groups is None


def shards(root: Path) -> str:
    files = []
    for number, name in enumerate(names()):
        stem = name.removesuffix(".png")
        about = json.dumps({"label": number % 3, "patient": number // 3}).encode()
        files += [(f"{stem}.png", encode(colour(number))), (f"{stem}.json", about)]
    for part in range(3):
        write_tar(root / "set" / f"{part}.tar", files[24 * part : 24 * part + 24])
    (root / "set" / "classes.txt").write_text("\n".join(CLASSES))
    return f"wds/{root / 'set'}"


@pytest.mark.parametrize(
    ("write", "group"),
    [(shards, "patient"), (shards, PATH), (lambda root: f"hfids/{parquet(root)}", "patient"),
     (lambda root: f"hfids/{parquet(root)}", PATH)],
    ids=["wds field", "wds key", "hfids column", "hfids path"],
)  # fmt: skip
def test_groups_in_streams(write: Callable[[Path], str], group: str, tmp_path: Path) -> None:
    spec = write(tmp_path)
    sides = []
    for split in ("train", "val"):
        stream = open_images(spec, split, Splitting(0.3, group=group))  # type: ignore[arg-type]
        sides.append(numbers(read(stream)))  # type: ignore[arg-type]
    train, val = ({number // 3 for number in side} for side in sides)
    assert train and val and not train & val and sorted(sides[0] + sides[1]) == list(range(IMAGES))
    with pytest.raises(UserError, match=r"stream, which cannot be cut into folds"):
        open_images(spec, "val", Splitting(folds=2, group=group))


def test_an_image_of_a_stream_without_a_group_is_reported(tmp_path: Path) -> None:
    files = []
    for number, about in enumerate(({"label": 0, "patient": 1}, {"label": 1}, {"label": 1, "patient": [2]})):
        files += [(f"{number}.png", encode(colour(number))), (f"{number}.json", json.dumps(about).encode())]
    write_tar(tmp_path / "set" / "0.tar", files)
    (tmp_path / "set" / "classes.txt").write_text("x\ny")
    stream = open_images(f"wds/{tmp_path / 'set'}", "all", Splitting(group="patient"))
    items: list[StreamedImage] = read(stream)  # type: ignore[arg-type]
    assert [problem(item) != "" for item in items] == [False, True, True]
    assert problem(items[1]).endswith("it has no group ('patient')")
    for group in ("doctor", r"(q\d)"):
        with pytest.raises(UserError, match="is not in the"):
            open_images(f"wds/{tmp_path / 'set'}", "all", Splitting(group=group))


def test_a_stream_of_the_hub_without_the_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no such column; did you mean patient\?"):
        open_images(f"hfids/{parquet(tmp_path)}", "all", Splitting(group="patent"))


def test_sets_without_groups_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the images of digits have no paths to search in"):
        opened("digits", group=PATH)
    with pytest.raises(UserError, match=r"the images of .*set have no paths.*it has the columns label, site"):
        opened(saved(tmp_path), group=PATH)
    with pytest.raises(UserError, match=r"Listed has neither a list of that name.*set dataset.doctor = "):
        opened(Listed(), group="doctor")


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("patent_id", r"has no such column; did you mean Patient ID\?"),
        ("hospital", r"has no such column; it has path, label, Patient ID"),
        ("(p", r"is no regular expression \(missing \), unterminated subpattern at position 0\)"),
        ("p{5", None),
        (r"(q\d+)_", r"finds a group in no path of .*set.csv, such as set/x/p0_0\.png"),
        (r"(p1\d*)_", r"set\.csv line 2 \(set/x/p0_0\.png\): its group is not found by .*; 27 of 36 images"),
        (r"p\d+()_", r"finds a group in no path"),
        (r"(p1\d*)|p\d+_", r"set\.csv line 2 .*its group is not found by .*; 27 of 36 images have none"),
        (" ", "group is empty"),
    ],
)
def test_mistakes_in_the_group(tmp_path: Path, group: str, message: str | None) -> None:
    path = table(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        opened(path, group=group)
    assert "\n" not in str(caught.value)


def test_a_group_is_never_empty(tmp_path: Path) -> None:
    values = [patient(number) for number in range(IMAGES)]
    values[7] = "  "
    with pytest.raises(UserError, match=r"set\.csv line 9 .*is empty in column 'who'; .*1 of 36 images have"):
        opened(table(tmp_path, who=values), group="who")
    path = tmp_path / "null.parquet"
    rows(who=[None, *range(1, IMAGES)], boxes=[[1]] * IMAGES).to_parquet(path)
    with pytest.raises(UserError, match=r"null\.parquet row 0 .*is empty in column 'who'"):
        opened(path, group="who")
    with pytest.raises(UserError, match=r"column 'boxes' does not hold single values"):
        opened(path, group="boxes")


def test_an_expression_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_SECONDS", 0.5)
    (tmp_path / "set" / "x").mkdir(parents=True)
    (tmp_path / "set" / "x" / f"{'a' * 60}.png").write_bytes(encode())
    (tmp_path / "set" / "y").mkdir()
    (tmp_path / "set" / "y" / "b.png").write_bytes(encode())
    with pytest.raises(UserError, match=r"takes too long on the paths of .*without repeats inside repeats"):
        opened(tmp_path / "set", group=r"(a+)+$")


def test_names_are_compared_as_systems_write_them(tmp_path: Path) -> None:
    """Zoë in one and in two characters is one patient, and an expression may be written either way."""
    for number in range(12):
        name = unicodedata.normalize("NFC" if number % 2 else "NFD", "Zoë" if number % 4 < 2 else "René")
        path = tmp_path / "set" / "xy"[number // 2 % 2] / f"{name}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(colour(number)))
    for number in range(4):
        (tmp_path / "set" / "xy"[number % 2] / f"Lu_{number}.png").write_bytes(encode(colour(20 + number)))
    source = opened(tmp_path / "set", group=r"(\w+?)_\d+\.png")
    assert sorted({*(source.groups or ())}) == ["Lu", "René", "Zoë"]
    form = unicodedata.normalize("NFD", "(Zoë|René|Lu)")
    assert opened(tmp_path / "set", group=form).groups == source.groups


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "set" / "xy"[number % 2] / f"caf\udce9{number // 2}_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(encode(colour(number)))
        except OSError:  # a file system that takes UTF-8 alone
            pytest.skip("no such names here")
    source = opened(tmp_path / "set", group=r"(caf.\d)_")
    assert {*(source.groups or ())} == {f"caf\udce9{number}" for number in range(4)}
    dealt = deal_folds(str(tmp_path / "set"), Splitting(folds=2, group=r"(caf.\d)_"), data_dir=None)
    assert dealt is not None
    write_folds(tmp_path, dealt)
    assert read_folds(tmp_path) == dealt


def test_recorded_folds_stay_when_the_set_grows(tmp_path: Path) -> None:
    def numbered(root: Path, count: int, splitting: Splitting) -> set[int]:
        found = open_images(folder(root, count), "val", splitting)
        return set(shown(found))  # type: ignore[arg-type]

    splitting = Splitting(folds=3, fold=1, group=PATH)
    dealt = deal_folds(folder(tmp_path / "a"), splitting, data_dir=None)
    assert dealt is not None and Counter(dealt.values()) == {0: 4, 1: 4, 2: 4}
    write_folds(tmp_path, dealt)
    recorded = Splitting(folds=3, fold=1, group=PATH, recorded=read_folds(tmp_path))
    before = numbered(tmp_path / "a", IMAGES, splitting)
    assert numbered(tmp_path / "a", IMAGES, recorded) == before
    after = {k: set() for k in range(3)} | {
        k: numbered(tmp_path / "b", 90, Splitting(folds=3, fold=k, group=PATH, recorded=read_folds(tmp_path)))
        for k in range(3)
    }
    assert {number for number in after[1] if number < IMAGES} == before
    assert sorted(number for part in after.values() for number in part) == list(range(90))
    (tmp_path / "folds.csv").write_text("group,fold\np1,first\n")
    with pytest.raises(UserError, match=r"folds\.csv does not name a fold for each group"):
        read_folds(tmp_path)
    assert read_folds(tmp_path / "nowhere") is None
    assert deal_folds(tmp_path / "a" / "set", Splitting(group=PATH), data_dir=None) is None


def test_groups_on_both_sides_of_splits_of_its_own(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        split=["val" if number > 28 else "train" for number in range(IMAGES)],
        who=[patient(number) for number in range(IMAGES)],
    )
    train, val = (opened(path, split, group="who") for split in ("train", "val"))
    assert groups.shared_groups(train, val) == ["p9"]
    assert groups.leak_line(["p9"]).startswith("1 group is in train and val (p9): ")
    assert groups.shared_groups(opened(path, "train"), opened(path, "val")) == []
