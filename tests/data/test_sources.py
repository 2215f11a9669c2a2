import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformer_vision.data import Splitting, open_images, require_source
from conformer_vision.data.splits import Request, stratified_split
from conformer_vision.errors import UserError
from image_sets import opened


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_stratified_split(labels: list[int], val_fraction: float, seed: int) -> None:
    parts = stratified_split(labels, val_fraction=val_fraction, seed=seed)
    assert sorted([*parts["train"], *parts["val"]]) == list(range(len(labels))) == list(parts["all"])
    held_out, total = (Counter(labels[i] for i in parts[part]) for part in ("val", "all"))
    for label, count in total.items():
        assert held_out[label] < count  # every class stays in training
        assert held_out[label] >= min(count - 1, 1)
        assert abs(held_out[label] - count * val_fraction) <= 1
    again = stratified_split(labels, val_fraction=val_fraction, seed=seed)
    assert np.array_equal(again["val"], parts["val"])


def test_split_is_the_same_on_every_machine() -> None:
    parts = stratified_split([0, 1] * 10, val_fraction=0.2, seed=3)
    assert parts["val"].tolist() == [9, 12, 15, 18]


def test_digits() -> None:
    train, val = (opened("digits", split=split) for split in ("train", "val"))
    assert len(train) + len(val) == 1797
    assert train.classes == tuple("0123456789")
    assert min(Counter(val.labels).values()) >= 17
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
        ("photos/notes.txt", r"notes\.txt cannot be read as parquet"),
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


def test_misspelt_digits() -> None:
    with pytest.raises(UserError, match="did you mean digits"):
        opened("digit", split="train")


@pytest.mark.parametrize("val_fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_val_fraction(val_fraction: float) -> None:
    with pytest.raises(UserError, match="val_fraction"):
        opened("digits", split="train", val_fraction=val_fraction)


def test_impossible_split() -> None:
    with pytest.raises(UserError, match="must be train, val or all"):
        opened("digits", split="test")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "opener"),
    [("hfids/some/set", "hub_stream.open_hub_stream"), ("WDS/s/*.tar", "webdataset.open_webdataset")],
)
def test_streams(monkeypatch: pytest.MonkeyPatch, spec: str, opener: str) -> None:
    calls = []
    monkeypatch.setattr(f"conformer_vision.data.{opener}", lambda *given: calls.append(given))
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
