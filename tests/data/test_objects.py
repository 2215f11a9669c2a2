"""Python datasets; what they share with other sources is in the contract."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from command_line import NETWORK
from conformer_vision.data import BrokenImageError, open_images
from conformer_vision.data.images import as_rgb
from conformer_vision.data.opening import describe
from conformer_vision.errors import UserError
from conformer_vision.inference import evaluate
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.run import resume
from image_sets import opened


class Items(Dataset[tuple[Any, Any]]):
    """Items as they are given."""

    def __init__(self, items: list[Any], classes: Any = ("a", "b"), **attributes: Any) -> None:
        self.items = items
        self.classes = classes
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]  # type: ignore[no-any-return]


def red(label: Any, value: int = 200) -> tuple[Image.Image, Any]:
    return Image.new("RGB", (4, 3), (value, 0, 0)), label


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGBA", (4, 3), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("L", (4, 3), 9), (9, 9, 9)),
        (Image.new("P", (4, 3)), (0, 0, 0)),
        (np.full((3, 4), 7, np.uint8), (7, 7, 7)),
        (np.full((3, 4, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((3, 4, 3), [1, 2, 3], np.uint8), (1, 2, 3)),
        (np.full((3, 4, 3), 0.5), (128, 128, 128)),
        (torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None].expand(3, 3, 4), (1, 2, 3)),
        (torch.full((1, 3, 4), 1.0), (255, 255, 255)),
        (torch.zeros(3, 4), (0, 0, 0)),
        (torch.full((3, 3, 4), 0.5, dtype=torch.bfloat16), (128, 128, 128)),
    ],
)
def test_kinds_of_images(image: Any, pixel: tuple[int, ...]) -> None:
    rgb = as_rgb(image, name="it")
    assert (rgb.mode, rgb.size, rgb.getpixel((2, 1))) == ("RGB", (4, 3), pixel)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.randn(3, 3, 4), "not from 0 to 1; give images before normalisation"),
        (torch.full((3, 3, 4), torch.nan), "not from 0 to 1"),
        (np.zeros((3, 4, 3), np.int64), "its values are int64"),
        (np.zeros((4, 4, 7), np.uint8), r"ndarray of shape \(4, 4, 7\) is not an image"),
        (torch.zeros(0, 4), "is not an image"),
        ("a.png", r"str of shape \(\) is not an image"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_rgb(image, name="it")


def test_labels(caplog: pytest.LogCaptureFixture) -> None:
    labels = [0, "b", np.int64(1), torch.tensor(0), 1, 0]
    dataset = Items([red(label) for label in labels])
    with caplog.at_level(logging.WARNING):
        source = opened(dataset)
    assert list(source.labels) == [0, 1, 1, 0, 1, 0]
    assert "dataset/Items has no list of its labels (targets); all 6 items are read" in caplog.text
    caplog.clear()
    dataset = Items(
        [red(label) for label in labels], targets=[1, 0, 0, 1, 0, 1], target_transform=lambda n: 1 - n
    )
    assert list(opened(dataset).labels) == [0, 1, 1, 0, 1, 0]
    part = Subset(dataset, [5, 1])
    part.classes = ["a", "b"]  # type: ignore[attr-defined]
    assert list(opened(part).labels) == [0, 1]
    assert caplog.text == ""
    lying = opened(Items([red(0), red(1)], targets=[0, 0, 1]))
    assert list(lying.labels) == [0, 1], "a list of another length is another list"
    with pytest.raises(UserError, match="row 1 has the label 1, but 0 in the dataset's list"):
        opened(Items([red(0), red(1), red(1)], targets=[0, 0, 1]))[1]


def test_an_item_that_cannot_be_read() -> None:
    items = [red(0), OSError("cut\nshort"), red(1), red(0), red(1)]
    source = opened(Items(items, targets=[0, 1, 1, 0, 1]))
    with pytest.raises(BrokenImageError, match=r"^dataset/Items row 1: cannot be read \(OSError: cut"):
        source[1]
    assert source[2][1] == 1


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Subset(Items([red(0), red(1)]), [0, 1]),
            "dataset/Subset has no attribute classes; set",
        ),
        (TensorDataset(torch.zeros(2, 3, 4, 4), torch.zeros(2)), "has no attribute classes"),
        (Items([red(0), red(1)], classes=["a", "a"]), "must be a list of different names"),
        (Items([red(0), red(1)], classes=[0, 1]), "must be a list of different names"),
        (Items([]), "holds no images"),
        (Items([red(0), red(2)]), "row 1: label '2' is neither a class name nor a number from 0 to 1"),
        (Items([red(0), red(1)], targets=[0, "c"]), "row 1: label 'c' is neither"),
        (Items([red(0), red(0.5)]), "row 1: label '0.5' is neither"),
        (Items([red(0)[0], red(1)[0]]), "row 0 is a Image, not a pair"),
        (Items([red(0), red(0)], classes=["a"]), "has a single class"),
        (object(), "has no attribute classes"),
    ],
)
def test_what_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened(dataset)
    assert "\n" not in str(caught.value)


def test_iterable_datasets_are_refused() -> None:
    class Endless(IterableDataset[Any]):
        classes = ("a", "b")

        def __iter__(self) -> Any:
            yield red(0)

    with pytest.raises(UserError, match="give a map-style dataset"):
        opened(Endless())


def test_training_and_evaluating_from_python(tmp_path: Path) -> None:
    """config.yaml keeps a name; resuming asks for the data."""
    pixels = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dataset = TensorDataset(pixels, torch.arange(24) % 2)
    dataset.classes = ["even", "odd"]  # type: ignore[attr-defined]
    config = TrainConfig.from_options(
        data=dataset,
        model="conformer_nano_patch4_32",
        model_kwargs=NETWORK,
        batch_size=8,
        epochs=2,
        max_steps=2,
        keep_state=True,
        workers=0,
        device="cpu",
        output=str(tmp_path / "run"),
    )
    run = train(config)
    assert "data: dataset/TensorDataset\n" in (run / "config.yaml").read_text()
    result = evaluate(run, dataset, split="all", device="cpu")
    assert result.samples == 24
    assert evaluate(run, dataset, device="cpu").samples == 6, "the validation images of the run"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("max_steps: 2\n", "max_steps: 3\n"))  # not finished
    with pytest.raises(UserError, match=r"dataset/TensorDataset was a Python object.*pass the data again"):
        resume(run)
    assert resume(run, data=dataset) == run
    with pytest.raises(UserError, match="pass the data again"):
        open_images(describe(dataset), "train")
