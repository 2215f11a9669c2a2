"""Options of the images: which ones, in which parts, how often."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data.augment import AugmentConfig
from conformer_vision.data.stream import ImageStream
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig
from conformer_vision.training.parts import prepare
from option_tools import loaders, opened, shows
from streamed import NAMES, write_shards

Tiny = Callable[..., TrainConfig]


def names(config: TrainConfig) -> tuple[set[str], set[str]]:
    train, val = opened(config).train_images, opened(config).val_images
    return ({train.name(i) for i in range(len(train))}, {val.name(i) for i in range(len(val))})


def labels(loader: Any) -> list[int]:
    return torch.cat([batch.labels for batch in loader]).tolist()


@shows("folds", "fold")
def test_folds(tiny: Tiny) -> None:
    """Every image is validated on once; how a set is cut is in tests/data/test_split.py."""
    held_out: list[str] = []
    for fold in range(4):
        train, val = names(tiny(folds=4, fold=fold))
        assert len(train) + len(val) == 36 and not train & val and len(val) > 4
        held_out += val
    assert len(held_out) == len(set(held_out)) == 36
    assert names(tiny(folds=4, fold=0, val_fraction=0.5)) == names(tiny(folds=4, fold=0))
    assert names(tiny(folds=4, fold=0, seed=1)) != names(tiny(folds=4, fold=0))


@shows("group")
def test_group(tiny: Tiny) -> None:
    """Images 0 and 10 are a group; how groups are cut is in tests/data/test_groups.py."""
    for options in ({"val_fraction": 0.3}, {"folds": 3, "fold": 1}):
        train, val = names(tiny(group=r"(\d)\.png", **options))
        digits = [{name[-5] for name in side} for side in (train, val)]
        assert len(train) + len(val) == 36 and all(digits) and not digits[0] & digits[1]


@shows("label_column", "label_separator")
def test_columns_of_labels(tiny: Tiny, images: Path, tmp_path: Path) -> None:
    """How they are read is in tests/data/test_multilabel.py."""
    rows = [
        f"{path},{n % 2},{'a|b' if n % 3 else 'b'}" for n, path in enumerate(sorted(images.rglob("*.png")))
    ]
    table = tmp_path / "set.csv"
    table.write_text("\n".join(["path,label,tags", *rows]))
    for options, classes in (
        ({}, ("0", "1")),
        ({"label_column": "tags"}, ("a|b", "b")),
        ({"label_column": "tags", "label_separator": "|"}, ("a", "b")),
    ):
        found = opened(tiny(data=str(table), **options)).train_images
        assert (found.classes, found.multilabel) == (classes, "label_separator" in options)


@shows("data_dir")
def test_data_dir(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a stream of shards with a relative path lies."""
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "sets" / "photos")
    with pytest.raises(UserError, match="photos"):
        opened(tiny(data="wds/photos"))
    data = opened(tiny(data="wds/photos", data_dir=str(tmp_path / "sets")))
    assert data.train_images.classes == data.val_images.classes == NAMES


@shows("exclude")
def test_exclude(tiny: Tiny, images: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.csv"
    train, val = names(tiny())
    out = {sorted(train)[0], sorted(train)[7], sorted(val)[0]}
    listed.write_text("\n".join(["image", *sorted(out)]))
    kept_train, kept_val = names(tiny(exclude=str(listed)))
    assert kept_train == train - out
    assert kept_val == val - out
    listed.write_text("image\nnowhere/0.png\n")
    with pytest.raises(UserError, match=r"exclude\.csv names images that the data does not have"):
        opened(tiny(exclude=str(listed)))


@shows("sampling")
def test_sampling(tiny: Tiny, tmp_path: Path) -> None:
    for name, count in (("many", 90), ("few", 10)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name / f"{number}.png")

    def share_of_few(sampling: str) -> float:
        loader = loaders(tiny(data=str(tmp_path), sampling=sampling))[0]
        drawn = labels(loader) + labels(loader)
        return drawn.count(0) / len(drawn)

    assert share_of_few("shuffle") == pytest.approx(0.1, abs=0.02)
    assert share_of_few("balanced") == pytest.approx(0.5, abs=0.15)


@shows("aug_repeats")
def test_aug_repeats(tiny: Tiny) -> None:
    augment = AugmentConfig(crop="rrc", scale=(0.3, 0.6))
    seen: dict[int, list[Tensor]] = {}
    loader = loaders(tiny(aug_repeats=4, augment=augment))[0]
    assert len(loader) == len(loaders(tiny())[0]) >= 3
    for batch in loader:
        for number, image in zip(batch.indices.tolist(), batch.images, strict=True):
            seen.setdefault(number, []).append(image)
    assert {len(images) for images in seen.values()} == {4} and len(seen) == 2 * len(loader)
    assert all(not torch.equal(images[0], images[1]) for images in seen.values())


def shards(root: Path) -> str:
    """24 images of three classes in two tar files; the stream does not know how many."""
    return write_shards(root, [12, 12])


@shows("epoch_images")
def test_epoch_images(tiny: Tiny, tmp_path: Path) -> None:
    data = shards(tmp_path / "shards")
    both = opened(tiny(data=data, val_fraction=0.5))
    train, val = both.train_images, both.val_images
    assert isinstance(train, ImageStream)
    assert isinstance(val, ImageStream)
    for images, batches in ((16, 2), (40, 5)):
        loader, val_loader = loaders(tiny(data=data, val_fraction=0.5, epoch_images=images))
        assert len(loader) == len(list(loader)) == batches
        assert len(labels(val_loader)) == 12
    with pytest.raises(UserError, match=r"epoch_images is for streams; .* has 33 training images"):
        opened(tiny(epoch_images=16))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("exclude", {"exclude": "list.txt"}),
        ("sampling balanced", {"sampling": "balanced"}),
        ("aug_repeats", {"aug_repeats": 2}),
    ],
)
def test_what_streams_do_not_have(tiny: Tiny, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    data = shards(tmp_path / "shards")
    with pytest.raises(UserError, match=f"{name} cannot be used with the stream .*; leave it out"):
        opened(tiny(data=data, **changes))


def test_odd_batches_cannot_be_mixed(tiny: Tiny) -> None:
    for changes in ({"batch_size": 7}, {"batch_size": 6, "accumulate": 2}):
        for mix in ("mixup", "cutmix"):
            with pytest.raises(UserError, match=r"need an even number of images per pass, not [37]"):
                prepare(tiny(**changes, **{mix: 0.5}))
    assert prepare(tiny(batch_size=7)).module.mixup is None
    assert prepare(tiny(batch_size=12, accumulate=2, mixup=0.5)).module.mixup is not None
