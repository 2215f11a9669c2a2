"""Batches of images: the same whatever reads them, and named where they cannot be read."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from batches import failure, same
from conformer_vision.data import (
    AugmentConfig,
    BrokenImageError,
    ImageSource,
    build_transform,
    evaluation_loader,
    training_loader,
)
from conformer_vision.data.base import NOT_COUNTED
from conformer_vision.data.handover import Batch
from conformer_vision.data.loader import ImageLoader
from conformer_vision.data.order import Share
from conformer_vision.errors import UserError
from conformer_vision.spec import Preprocessing
from image_sets import opened

AUGMENT = AugmentConfig(color_jitter=0.4, re_prob=0.5)


def transform(augment: AugmentConfig | None = None) -> Any:
    half = (0.5, 0.5, 0.5)
    return build_transform(Preprocessing((3, 32, 32), half, half, "bilinear", crop_pct=1.0), augment)


def training(source: ImageSource, **options: Any) -> ImageLoader:
    settings = {"batch_size": 64, "workers": 0, "seed": 0, **options}
    return training_loader(source, transform(settings.pop("augment", AUGMENT)), **settings)


def evaluating(source: ImageSource, **options: Any) -> ImageLoader:
    return evaluation_loader(source, transform(), **{"batch_size": 64, "workers": 0, **options})


def digits() -> ImageSource:
    return opened("digits", split="val")


def numbers(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.indices for batch in batches]).tolist()


class Holed(ImageSource):
    """Images whose red is their number; some of them cannot be read."""

    def __init__(self, count: int, broken: Collection[int]) -> None:
        super().__init__(["even", "odd"], (number % 2 for number in range(count)))
        self.broken = broken

    def image(self, index: int, need: Any = None) -> Image.Image:
        if index in self.broken:
            raise BrokenImageError(f"{self.name(index)}: cannot be read")
        return Image.new("RGB", (8, 8), (index, 0, 0))

    def name(self, index: int) -> str:
        return f"image {index}"


# ---- batches ---------------------------------------------------------------------------------------


def test_batches() -> None:
    source = digits()
    loader = evaluating(source)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    batch = batches[0]
    assert (batch.images.shape, batch.images.dtype) == ((64, 3, 32, 32), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((64,), torch.int64)
    assert (batch.indices.shape, batch.indices.dtype) == ((64,), torch.int64)
    assert batch.broken == []
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(source.labels)
    assert numbers(batches) == list(range(len(source)))
    trained = list(training(source))
    assert len(trained) == len(training(source)) == 2, "without the incomplete batch"
    for batch in trained:
        assert batch.labels.tolist() == [source.labels[number] for number in batch.indices.tolist()]


def test_seed_and_epoch_decide_order_and_augmentation() -> None:
    loader = training(digits())
    first, second = list(loader), list(loader)
    assert numbers(first) != numbers(second)
    assert same(first, list(training(digits())))
    assert numbers(first) != numbers(list(training(digits(), seed=1)))
    shown: dict[int, Tensor] = {}
    for batch in (*first, *second):
        for number, image in zip(batch.indices.tolist(), batch.images, strict=True):
            if number in shown:
                assert not torch.equal(image, shown[number]), "each epoch's augmentation is its own"
            shown[number] = image


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int) -> None:
    """Bit for bit, augmentation included, over epochs and in the middle of one."""
    alone, helped = training(digits(), batch_size=32), training(digits(), batch_size=32, workers=workers)
    for _ in range(2):
        random.seed()
        np.random.seed()
        torch.seed()  # nothing is drawn from the global generators
        assert same(list(helped), list(alone))
    alone.position = helped.position = lambda: (7, 3)
    batches = list(helped)
    assert len(batches) == 2
    assert same(batches, list(alone))
    assert same(list(evaluating(digits(), workers=workers)), list(evaluating(digits())))


def test_going_on_at_any_batch_gives_the_rest() -> None:
    loader = training(digits(), batch_size=32)
    loader.position = lambda: (4, 0)
    whole = list(loader)
    for start in range(6):
        loader.position = lambda start=start: (4, start)
        assert same(list(loader), whole[start:])


def test_global_generators_are_left_alone() -> None:
    """Without workers they are those of dropout and MixUp."""
    batches = iter(training(digits(), batch_size=32))
    next(batches)  # torch's DataLoader draws once when it begins
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert len(list(batches)) == 4
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert before[0] == after[0]
    np.testing.assert_equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


def test_processes_share_the_images() -> None:
    source = digits()
    whole = list(training(source, batch_size=32))
    parts = [list(training(source, batch_size=32, accumulate=2, share=Share(rank, 2))) for rank in range(2)]
    assert len(whole) == 5
    for step, batch in enumerate(whole):
        mine = [part for rank in parts for part in rank[2 * step : 2 * step + 2]]
        images = {int(n): image for part in mine for n, image in zip(part.indices, part.images, strict=True)}
        assert images.keys() == set(batch.indices.tolist())
        for number, image in zip(batch.indices.tolist(), batch.images, strict=True):
            assert torch.equal(images[number], image), "the same image, augmented the same"


def test_evaluation_of_several_processes_counts_each_image_once() -> None:
    source = digits()
    ranks = [list(evaluating(source, share=Share(rank, 2))) for rank in range(2)]
    labels = torch.cat([batch.labels for rank in ranks for batch in rank])
    indices = torch.cat([batch.indices for rank in ranks for batch in rank])
    counted = labels != NOT_COUNTED
    assert sorted(indices[counted].tolist()) == list(range(181))
    assert len(labels) == 182, "181 images, and one that fills up"


def test_repeats_are_augmented_anew() -> None:
    (batch,) = training(Holed(8, ()), batch_size=8, repeats=4, augment=AugmentConfig(color_jitter=1.0))
    images: dict[int, list[Tensor]] = {}
    for number, image in zip(batch.indices.tolist(), batch.images, strict=True):
        images.setdefault(number, []).append(image)
    assert sorted(map(len, images.values())) == [4, 4]
    bright = max(images.values(), key=lambda shown: float(shown[0].sum()))
    assert len({tuple(image.flatten().tolist()) for image in bright}) > 1


# ---- broken images -------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_training_image_is_replaced_by_the_next_and_named(workers: int) -> None:
    source = Holed(20, {3, 4, 19})
    drawn = [int(n) for batch in training(Holed(20, ()), batch_size=4) for n in batch.indices]
    loader = training(source, batch_size=4, workers=workers)
    batches = list(loader)
    assert numbers(batches) == [{3: 5, 4: 5, 19: 0}.get(number, number) for number in drawn]
    for batch in batches:
        assert batch.labels.tolist() == [number % 2 for number in batch.indices.tolist()]
    named = {line for batch in batches for line in batch.broken}
    assert named == {f"image {number}: cannot be read" for number in (3, 4, 19)}
    assert numbers(list(loader)) != numbers(batches), "the loader can be used again"


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_of_evaluation_is_not_counted(workers: int) -> None:
    loader = evaluating(Holed(10, {3, 9}), batch_size=4, workers=workers)
    for _ in range(2):
        batches = list(loader)
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        assert labels == [0, 1, 0, NOT_COUNTED, 0, 1, 0, 1, 0, NOT_COUNTED]
        assert numbers(batches) == list(range(10))
        assert [batch.broken for batch in batches] == [
            ["image 3: cannot be read"],
            [],
            ["image 9: cannot be read"],
        ]
        assert batches[0].images[3].eq(0).all()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("count", [10, 300])
def test_nothing_but_broken_images_is_one_line(count: int, workers: int) -> None:
    loader = training(Holed(count, range(count)), batch_size=4, workers=workers)
    after = min(count, 100) - 1
    for _ in range(2):
        line = failure(loader)
        assert line.startswith("BrokenImageError: image ")
        assert line.endswith(f"cannot be read; nor can the {after} images after it")


def test_a_failure_leaves_no_worker_behind() -> None:
    """Workers pass signals by, so they have to end by themselves, at once."""
    loader = training(Holed(10, range(10)), batch_size=4, workers=2)
    failure(loader)
    workers = list(loader._iterator._workers)  # type: ignore[union-attr]
    assert [worker.is_alive() for worker in workers] == [True, True], "they stay for the next epoch"
    del loader
    assert [worker.is_alive() for worker in workers] == [False, False]


def test_ninety_nine_broken_in_a_row_are_passed_over() -> None:
    source = Holed(200, range(99))
    assert set(numbers(list(training(source, batch_size=4)))) == set(range(99, 200))


# ---- processes -------------------------------------------------------------------------------------


def test_source_works_in_a_spawned_process(class_folders: Callable[..., Path], tmp_path: Path) -> None:
    source = opened(class_folders(tmp_path, ["a", "b"]), split="all")
    loader = training(source, batch_size=6, workers=1)
    loader.multiprocessing_context = "spawn"
    assert same(list(loader), list(training(source, batch_size=6)))


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_workers_survive_signals_to_the_group() -> None:
    """Of Ctrl-C and of a scheduler: the main process decides when the workers end."""
    code = """
import os, signal
from conformer_vision.data import build_transform, evaluation_loader, open_images
from conformer_vision.spec import Preprocessing
transform = build_transform(Preprocessing((3, 32, 32), (0, 0, 0), (1, 1, 1)))
loader = evaluation_loader(open_images("digits", "all"), transform, batch_size=16, workers=1)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
seen = 0
for batch in loader:
    if not seen:
        os.killpg(0, signal.SIGINT)
        os.killpg(0, signal.SIGTERM)
    seen += len(batch.images)
print(seen)  # and ends, though the loader still has its worker
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("1797", 0), done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: must be 1 or more"),
        ({"workers": -1}, "workers -1: must be 0 or more"),
    ],
)
def test_impossible_options(option: dict[str, Any], message: str) -> None:
    for make in (training, evaluating):
        with pytest.raises(UserError, match=message):
            make(digits(), **option)
    with pytest.raises(UserError, match="batch_size 182 is more than the 181 images"):
        training(digits(), batch_size=182)
