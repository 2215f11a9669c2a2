"""Images kept on a device: the same as read one by one, and augmented as asked."""

import random
import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from batches import same
from conformer_vision.data import AugmentConfig, BrokenImageError, ImageSource, build_transform
from conformer_vision.data.device_cache import DeviceAugmentation, DeviceCache, DeviceLoader
from conformer_vision.data.loader import NOT_COUNTED, evaluation_loader
from conformer_vision.data.order import EvaluationOrder, Share, TrainingOrder
from conformer_vision.errors import UserError
from image_sets import opened

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]
STILL = AugmentConfig(crop="rrc", scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
"""Moves and changes nothing."""


class Noise(ImageSource):
    """Images of noise in sizes of their own, some of them broken."""

    def __init__(
        self, count: int = 12, *, size: tuple[int, int] | None = (32, 32), broken: Collection[int] = ()
    ) -> None:
        super().__init__(["even", "odd"], (number % 2 for number in range(count)))
        self.size = size
        self.broken = broken

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise BrokenImageError(f"{self.name(index)}: cannot be read")
        rng = np.random.default_rng(index)
        height, width = self.size or rng.integers(20, 90, 2).tolist()
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def name(self, index: int) -> str:
        return f"image {index}"


def preprocessing(
    height: int = 32, width: int = 32, channels: int = 3, crop_pct: float = 1.0
) -> dict[str, Any]:
    return {
        "input_size": (channels, height, width),
        "mean": (0.485, 0.456, 0.406)[:channels],
        "std": (0.229, 0.224, 0.225)[:channels],
        "interpolation": "bicubic",
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }


def cache(source: ImageSource, *, edge: int = 32, device: str = "cpu", **how: Any) -> DeviceCache:
    return DeviceCache(
        source, preprocessing=preprocessing(**how), edge=edge, device=torch.device(device), workers=0
    )


def training(source: ImageSource, augment: AugmentConfig, *, edge: int = 32, **order: Any) -> DeviceLoader:
    return DeviceLoader(
        cache(source, edge=edge),
        TrainingOrder(source.labels, **{"batch_size": 4, "seed": 0} | order),
        DeviceAugmentation(augment, cached=edge, preprocessing=preprocessing()),
    )


# ---- evaluation: against the loader that reads one by one ------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", [{"crop_pct": 0.8}, {"height": 24, "width": 40}, {"channels": 1}])
@pytest.mark.parametrize("share", [Share(), Share(1, 3)])
def test_evaluation_is_that_of_images_read_one_by_one(device: str, how: dict[str, Any], share: Share) -> None:
    source = Noise(13, size=None, broken={2, 7, 12})
    edge = min(how.get("height", 32), how.get("width", 32))
    order = EvaluationOrder(len(source), 5, share=share)
    found = list(DeviceLoader(cache(source, edge=edge, device=device, **how), order))
    read = evaluation_loader(
        source, build_transform(**preprocessing(**how), augment=None), batch_size=5, workers=0, share=share
    )
    for mine, other in zip(found, read, strict=True):
        assert mine.images.device.type == device
        torch.testing.assert_close(mine.images.cpu(), other.images, rtol=0, atol=1e-6)
        assert mine.labels.tolist() == other.labels.tolist()
        assert mine.indices.tolist() == other.indices.tolist()
        assert mine.broken == other.broken
    assert any(NOT_COUNTED in batch.labels for batch in found)


# ---- augmentation ----------------------------------------------------------------------------------


def test_without_augmentation_images_come_as_they_are() -> None:
    source = Noise()
    plain = build_transform(**preprocessing(), augment=None)
    batches = list(training(source, STILL))
    assert len(batches) == 3
    for batch in batches:
        for image, number in zip(batch.images, batch.indices.tolist(), strict=True):
            torch.testing.assert_close(image, plain(source.image(number)), rtol=0, atol=2e-4)


@settings(max_examples=8, deadline=None)
@given(pad=st.integers(1, 4), seed=st.integers(0, 2**31), larger=st.sampled_from([1, 2]))
def test_padding_crops_are_whole_images_moved_over_black(pad: int, seed: int, larger: int) -> None:
    """Each image by steps of its own, up to `pad`, mirrored or not."""
    source = Noise(6, size=(32 * larger, 32 * larger))
    kept = cache(source, edge=32 * larger)
    augment = DeviceAugmentation(
        AugmentConfig(crop="pad", pad=pad, hflip=0.5), cached=32 * larger, preprocessing=preprocessing()
    )
    augment._size = augment._cached  # before it is made smaller
    torch.manual_seed(seed)
    images = kept.take(range(6))
    moved = augment(images)
    steps = set()
    for image, original in zip(moved, images, strict=True):
        found = [
            (flip, down, right)
            for flip in (False, True)
            for down in range(-pad * larger, pad * larger + 1)
            for right in range(-pad * larger, pad * larger + 1)
            if torch.allclose(shifted(original, down, right, flip), image, atol=1e-6)
        ]
        assert len(found) == 1, "exactly one movement explains it"
        steps |= set(found)
    assert len(steps) > 1, "not all by the same"


def shifted(image: Tensor, down: int, right: int, flip: bool) -> Tensor:
    height, width = image.shape[1:]
    moved = torch.zeros_like(image)
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return moved.flip(-1) if flip else moved


@pytest.mark.parametrize("edge", [32, 64])
def test_random_resized_crops_take_the_share_that_was_asked_for(edge: int) -> None:
    """Of two ramps a crop shows, by how far they rise, which part it is."""
    ramp = torch.linspace(0, 1, edge)
    image = torch.stack([ramp.expand(edge, edge), ramp[:, None].expand(edge, edge), torch.zeros(edge, edge)])
    augment = DeviceAugmentation(
        AugmentConfig(crop="rrc", scale=(0.3, 0.5), ratio=(0.75, 1.5), hflip=0.5),
        cached=edge,
        preprocessing=preprocessing(),
    )
    torch.manual_seed(0)
    out = augment(image.expand(64, -1, -1, -1).clone())
    assert out.shape == (64, 3, 32, 32)
    inner = slice(8, 24)  # away from the edges, where resampling levels the ramp
    width = (out[:, 0, 16, inner.stop] - out[:, 0, 16, inner.start]).abs() * 2
    height = (out[:, 1, inner.stop, 16] - out[:, 1, inner.start, 16]) * 2
    assert (out[:, 0, 16, 24] < out[:, 0, 16, 8]).any(), "some mirrored"
    area, ratio = width * height, width / height
    assert 0.27 < area.min() < 0.36 and 0.44 < area.max() < 0.54
    assert 0.68 < ratio.min() < 0.95 and 1.2 < ratio.max() < 1.65


def test_colours_and_erasing() -> None:
    source = Noise()
    jittered = next(
        iter(
            training(source, AugmentConfig(crop="rrc", scale=(1, 1), ratio=(1, 1), hflip=0, color_jitter=0.5))
        )
    )
    plain = next(iter(training(source, STILL)))
    changes = (jittered.images - plain.images).flatten(1).mean(1)
    assert len(set(changes.tolist())) == 4, "each image's own"
    erased = next(iter(training(source, replace(STILL, re_prob=1.0))))
    gone = erased.images.eq(0).all(1)
    assert gone.flatten(1).any(1).all(), "a rectangle of the mean colour in every image"
    torch.testing.assert_close(
        erased.images * ~gone[:, None], plain.images * ~gone[:, None], rtol=0, atol=1e-6
    )


# ---- order and seeds -------------------------------------------------------------------------------

AUGMENT = AugmentConfig(color_jitter=0.4, re_prob=0.5, hflip=0.5)


def test_seed_and_epoch_decide_everything() -> None:
    loader = training(Noise(), AUGMENT)
    first, second = list(loader), list(loader)
    for generator in (random, np.random, torch):
        generator.seed()  # nothing is drawn from the global generators
    assert same(first, list(training(Noise(), AUGMENT)))
    assert not same(first, second)
    assert not same(first, list(training(Noise(), AUGMENT, seed=1)))
    for start in range(3):
        loader.position = lambda start=start: (0, start)
        assert same(list(loader), first[start:]), "going on in the middle of an epoch"


def test_global_generators_are_left_alone() -> None:
    batches = iter(training(Noise(), AUGMENT))
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert len(list(batches)) == 3
    after = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert before[0] == after[0] and torch.equal(before[1], after[1]) and before[2] == after[2]


def test_broken_training_image_is_replaced_by_the_next_and_named() -> None:
    drawn = [int(n) for batch in training(Noise(), AUGMENT) for n in batch.indices]
    batches = list(training(Noise(broken={3, 4, 11}), AUGMENT))
    shown = [int(n) for batch in batches for n in batch.indices]
    assert shown == [{3: 5, 4: 5, 11: 0}.get(number, number) for number in drawn]
    assert all(n % 2 == label for b in batches for n, label in zip(b.indices, b.labels, strict=True))
    assert {line for batch in batches for line in batch.broken} == {
        f"image {number}: cannot be read" for number in (3, 4, 11)
    }
    with pytest.raises(BrokenImageError, match=r"image \d+: cannot be read; nor can the 11 images after it"):
        list(training(Noise(broken=range(12)), AUGMENT))


# ---- mistakes --------------------------------------------------------------------------------------


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 30_000

    monkeypatch.setattr("psutil.virtual_memory", Little)
    message = r"device_cache: 12 images of 32x32 take 0.0 MB, and cpu has 0.0 MB left; give a lower"
    with pytest.raises(UserError, match=message):
        cache(Noise())


def test_a_policy_for_single_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"auto_augment 'rand-m9' works on single images"):
        training(Noise(), AugmentConfig(auto_augment="rand-m9"))


def test_without_kornia_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(UserError, match=r"pip install 'conformer-vision\[gpu\]'"):
        training(Noise(), AUGMENT)


def test_the_cache_says_what_it_keeps() -> None:
    kept = cache(opened("digits", split="val"))
    assert kept.images.shape == (179, 3, 32, 32)
    assert str(kept).startswith("179 images of 32x32 kept on cpu (0.5 MB), decoded in ")
