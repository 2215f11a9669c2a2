"""Batches of images with several labels: a row of 0 and 1 for each image, or one that does not count."""

import json
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import (
    BrokenImageError,
    ImageDataModule,
    ImageSource,
    evaluation_loader,
    handover,
    multi_hot,
    training_loader,
)
from conformer_vision.data.base import NOT_COUNTED
from conformer_vision.data.handover import Batch
from conformer_vision.data.order import Share
from conformer_vision.data.unlabelled import JoinedSource
from conformer_vision.errors import UserError
from conformer_vision.inference.conversion.images import prepared
from conformer_vision.spec import ModelSpec
from streamed import encode, opened_stream, write_tar

LABELS = [(), (0,), (1, 3), (0, 1, 2, 3)]


class Tagged(ImageSource):
    """Images of four classes; some of them cannot be read."""

    def __init__(self, count: int, broken: Collection[int] = ()) -> None:
        labels = [LABELS[number % 4] for number in range(count)]
        super().__init__(["a", "b", "c", "d"], labels, multilabel=True)
        self.broken = broken

    def image(self, index: int, need: Any = None) -> Image.Image:
        if index in self.broken:
            raise BrokenImageError(f"{self.name(index)}: cannot be read")
        return Image.new("RGB", (8, 8), (index, 0, 0))

    def name(self, index: int) -> str:
        return f"image {index}"


def red(image: Image.Image) -> Tensor:
    return torch.full((3, 2, 2), image.getpixel((0, 0))[0] / 255)  # type: ignore[index]


def rows(source: ImageSource, batches: list[Batch]) -> None:
    """The rows are those of the source, by the images' numbers; others do not count."""
    truth = torch.from_numpy(multi_hot(source)).float()
    for batch in batches:
        assert (batch.labels.dtype, batch.labels.shape) == (torch.float32, (len(batch.indices), 4))
        for index, row in zip(batch.indices.tolist(), batch.labels, strict=True):
            if index in source.broken:  # type: ignore[attr-defined]
                assert (row == NOT_COUNTED).all()
            else:
                assert torch.equal(row, truth[index])


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation(workers: int) -> None:
    source = Tagged(11, broken=[4, 7])
    batches = list(evaluation_loader(source, red, batch_size=4, workers=workers))
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(11))
    rows(source, batches)
    assert [line for batch in batches for line in batch.broken] == [
        f"image {n}: cannot be read" for n in (4, 7)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_training(workers: int) -> None:
    """The next image replaces a broken one, with its own labels."""
    source = Tagged(24, broken=[5])
    batches = list(training_loader(source, red, batch_size=8, workers=workers, seed=0))
    assert len(batches) == 3
    rows(source, batches)
    for batch in batches:
        assert torch.equal((batch.images[:, 0, 0, 0] * 255).round().long(), batch.indices)
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == sorted(
        [*{*range(24)} - {5}, 6]
    )


def test_an_image_that_fills_up_a_batch_does_not_count() -> None:
    source = Tagged(5)
    shares = [
        list(evaluation_loader(source, red, batch_size=9, workers=0, share=Share(n, 2))) for n in (0, 1)
    ]
    counted = [[bool((row != NOT_COUNTED).all()) for row in share[0].labels] for share in shares]
    assert counted == [[True] * 3, [True, True, False]]


def test_images_without_known_labels_do_not_count() -> None:
    joined = JoinedSource(Tagged(8), Tagged(4))
    assert joined.multilabel and joined.labels[8:] == (NOT_COUNTED,) * 4
    (batch,) = training_loader(joined, red, batch_size=12, workers=0, seed=0)
    for index, row in zip(batch.indices.tolist(), batch.labels, strict=True):
        assert (
            (row == NOT_COUNTED).all()
            if index > 7
            else torch.equal(row.nonzero()[:, 0], torch.tensor(LABELS[index % 4]).long())
        )


@pytest.mark.parametrize("shared", [True, False])
def test_workers_hand_over_both_ways(monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    monkeypatch.setattr(handover, "_shared", shared)
    labels = torch.tensor([[0.0, 1.0], [NOT_COUNTED, NOT_COUNTED]])
    parcel = handover.pack([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)], labels, torch.tensor([7, 9]), ["x"])
    batch = pickle.loads(pickle.dumps(parcel))
    assert torch.equal(batch.labels, labels) and batch.labels.dtype == torch.float32
    assert (batch.images.sum().item(), batch.indices.tolist(), batch.broken) == (12, [7, 9], ["x"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream(tmp_path: Path, workers: int) -> None:
    files: list[tuple[str, bytes]] = []
    for number in range(8):
        data = encode()[:30] if number == 2 else encode((number, 0, 0))
        labels = ["q"] if number == 5 else ["abcd"[each] for each in LABELS[number % 4]]
        files += [(f"{number}.png", data), (f"{number}.json", json.dumps({"label": labels}).encode())]
    write_tar(tmp_path / "set.tar", files)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    stream = opened_stream(f"wds/{tmp_path}")
    (batch,) = evaluation_loader(stream, red, batch_size=8, workers=workers)
    expected: list[Any] = [[float(each in LABELS[n % 4]) for each in range(4)] for n in range(8)]
    expected[2] = expected[5] = [NOT_COUNTED] * 4
    assert batch.labels.tolist() == expected and len(batch.broken) == 2
    batches = list(training_loader(stream, red, batch_size=4, workers=workers, seed=0, epoch_images=12))
    for batch in batches:
        numbers = (batch.images[:, 0, 0, 0] * 255).round().long().tolist()
        assert batch.labels.tolist() == [expected[number] for number in numbers]


def test_classes_are_not_drawn_equally_often(tmp_path: Path) -> None:
    message = (
        "sampling='balanced': images with several labels cannot be drawn so .* give class_weights='balanced'"
    )
    with pytest.raises(UserError, match=message):
        training_loader(Tagged(24), red, batch_size=8, workers=0, seed=0, sampling="balanced")
    (tmp_path / "0.png").write_bytes(encode())
    table = tmp_path / "set.csv"
    table.write_text("path,label\n" + "\n".join(f'0.png,"[""{name}""]"' for name in "abab" * 3))
    module = ImageDataModule(table, "resnet18", sampling="balanced")
    with pytest.raises(UserError, match=message):
        module.setup()
    module = ImageDataModule(table, "resnet18", batch_size=4)
    module.setup()
    assert module.train_images.multilabel and module.val_images.multilabel
    assert next(iter(module.train_dataloader())).labels.shape == (4, 2)


def test_images_to_check_an_export_with() -> None:
    """Those that can be read, whatever labels they have."""
    spec = ModelSpec("m", classes=("a", "b", "c", "d"), input_size=(3, 32, 32), multilabel=True)
    batches = list(prepared(Tagged(12, broken={1, 8}), spec, count=12))
    assert [len(batch) for batch in batches] == [7, 3]
