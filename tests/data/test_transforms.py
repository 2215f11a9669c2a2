import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from conformer_vision.data import AugmentConfig, build_transform
from conformer_vision.errors import UserError
from conformer_vision.preprocessing import array_pipeline
from conformer_vision.spec import CROP_MODES, INTERPOLATIONS, Preprocessing
from conformer_vision.tensors import Transform
from image_sets import opened

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _build(augment: AugmentConfig | None, size: tuple[int, ...] = (3, 32, 32), **options: Any) -> Transform:
    settings = {"mean": MEAN, "std": STD, "crop_pct": 1.0} | options
    return build_transform(Preprocessing(size, **settings), augment)


def _pixels(tensor: Tensor) -> Tensor:
    """Back to 0..255."""
    return (tensor * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def _draws(augment: AugmentConfig, image: Image.Image, *, count: int = 60, size: int = 32) -> list[Tensor]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    transform = _build(augment, (3, size, size))
    return [_pixels(transform(image)) for _ in range(count)]


# Nothing random but what a test turns on: the whole image, unflipped.
STILL = AugmentConfig(crop="rrc", scale=(1, 1), ratio=(1, 1), hflip=0)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_evaluation_is_timms(gradient: Image.Image, interpolation: str, crop_mode: str) -> None:
    """The same pixels; the normalised values are rounded otherwise."""
    settings = {"mean": MEAN, "std": STD, "interpolation": interpolation, "crop_mode": crop_mode}
    for size in ((3, 32, 32), (3, 64, 48), (3, 35, 90)):
        for crop_pct in (0.875, 0.9, 1.0):
            for edges in ((100, 80), (37, 90), (33, 33), (20, 71), (64, 48)):
                image = gradient.resize(edges)
                options = settings | {"crop_pct": crop_pct}
                ours = build_transform(Preprocessing(size, **options))(image)  # type: ignore[arg-type]
                timms = create_transform(size, **options)(image)
                assert ours.shape == size
                assert ours.dtype == torch.float32
                assert ours.is_contiguous()
                assert torch.equal(_pixels(ours).round(), _pixels(timms).round())
                torch.testing.assert_close(ours, timms, rtol=1e-5, atol=1e-5)
                array = array_pipeline(Preprocessing(size, **options))(image)  # type: ignore[arg-type]
                assert np.array_equal(array, ours)


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_evaluation_of_grey_is_timms(gradient: Image.Image, crop_mode: str) -> None:
    settings = {"mean": (0.3,), "std": (0.2,), "crop_mode": crop_mode, "crop_pct": 0.9}
    for edges in ((100, 80), (37, 90), (20, 71)):
        image = gradient.resize(edges)
        ours = build_transform(Preprocessing((1, 48, 64), **settings))(image)  # type: ignore[arg-type]
        timms = create_transform((1, 48, 64), interpolation="bicubic", **settings)(image.convert("L"))
        torch.testing.assert_close(ours, timms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["crop_pct", "crop_mode", "interpolation", "mean", "std"])
def test_each_evaluation_option_has_an_effect(gradient: Image.Image, name: str) -> None:
    image = gradient.resize((50, 40))
    other = {
        "crop_pct": 0.8,
        "crop_mode": "squash",
        "interpolation": "nearest",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
    }[name]
    assert not torch.allclose(_build(None)(image), _build(None, **{name: other})(image))


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["rrc", "pad"]), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=40)
def test_any_image_gets_the_input_size(width: int, height: int, crop: Any, channels: int) -> None:
    image = Image.new("RGB", (width, height), "red")
    for augment in (None, AugmentConfig(crop=crop)):
        transform = _build(augment, (channels, 48, 32), mean=[0.5] * channels, std=[0.5] * channels)
        assert transform(image).shape == (channels, 48, 32)


def test_digits_are_enlarged_to_32_px() -> None:
    image, _ = opened("digits", split="all")[3]
    tensor = _pixels(_build(None)(image))
    assert tensor.shape == (3, 32, 32)
    small = torch.from_numpy(np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).copy())
    torch.testing.assert_close(tensor, small.permute(2, 0, 1).float(), rtol=0, atol=0.01)


def test_without_any_augmentation_the_image_stays(gradient: Image.Image) -> None:
    wanted = torch.from_numpy(np.asarray(gradient).copy()).permute(2, 0, 1).float()
    for tensor in _draws(STILL, gradient, count=3):
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=0.01)


def _steps(tensor: Tensor) -> float:
    """How much the first channel rises from row to row: 8 in the gradient as it is."""
    return float((tensor[0, -1] - tensor[0, 0]).mean()) / 31


def test_scale_decides_how_much_is_cropped(gradient: Image.Image) -> None:
    small = _draws(AugmentConfig(crop="rrc", scale=(0.25, 0.25), ratio=(1, 1), hflip=0), gradient)
    assert all(3.5 < _steps(tensor) < 4.2 for tensor in small)  # half the height
    default = [_steps(tensor) for tensor in _draws(AugmentConfig(crop="rrc", hflip=0), gradient)]
    assert min(default) < 4.5 < 7 < max(default)


def test_ratio_decides_the_shape_of_the_crop(gradient: Image.Image) -> None:
    wide = _draws(AugmentConfig(crop="rrc", scale=(0.25, 0.25), ratio=(4, 4), hflip=0), gradient)
    assert all(1.5 < _steps(tensor) < 2.2 for tensor in wide)  # a quarter of the height, all of the width


def test_pad_moves_the_image(gradient: Image.Image) -> None:
    for pad, moved in ((None, 4), (2, 2)):
        offsets = set()
        for tensor in _draws(AugmentConfig(crop="pad", pad=pad, hflip=0), gradient, count=200):
            brightest = int(tensor[0].max().round()) // 8  # the last row that is still inside
            first = int(tensor[0, tensor[0].sum(1) > 0].min(dim=0).values.max().round()) // 8
            offsets.add((brightest, first))
        assert min(brightest for brightest, _ in offsets) == 31 - moved
        assert max(first for _, first in offsets) == moved


def test_auto_crop(gradient: Image.Image) -> None:
    assert AugmentConfig().crop_for(64, 64) == "pad"
    assert AugmentConfig().crop_for(64, 96) == "rrc"
    assert AugmentConfig(pad=8).crop_for(224, 224) == "pad"
    assert AugmentConfig(scale=(0.5, 1)).crop_for(32, 32) == "rrc"
    assert AugmentConfig(ratio=(1, 1)).crop_for(32, 32) == "rrc"
    assert "RandomCrop(" in str(_build(AugmentConfig()))
    assert "RandomResizedCrop" in str(_build(AugmentConfig(), (3, 96, 96)))


@pytest.mark.parametrize(
    ("hflip", "least", "most"), [(0.0, 0, 0), (0.2, 1, 29), (None, 20, 40), (1.0, 60, 60)]
)
def test_hflip(gradient: Image.Image, hflip: float | None, least: int, most: int) -> None:
    augment = AugmentConfig(crop="rrc", scale=(1, 1), ratio=(1, 1), hflip=hflip)
    flipped = sum(bool(tensor[1, 0, 0] > tensor[1, 0, -1]) for tensor in _draws(augment, gradient))
    assert least <= flipped <= most


def test_digits_are_not_mirrored_unless_asked() -> None:
    digits = opened("digits", split="val")
    assert AugmentConfig().for_source(digits).hflip == 0
    assert AugmentConfig(hflip=0.3).for_source(digits).hflip == 0.3


def test_other_sources_are_mirrored(class_folders: Any, tmp_path: Any) -> None:
    source = opened(class_folders(tmp_path, ["a", "b"]), split="train")
    assert AugmentConfig(pad=3).for_source(source) == AugmentConfig(pad=3, hflip=0.5)


def _mean_change(augment: AugmentConfig, image: Image.Image) -> float:
    still = _draws(STILL, image, count=1)[0]
    return max(float((tensor - still).abs().mean()) for tensor in _draws(augment, image, count=10))


def _still_with(**options: Any) -> AugmentConfig:
    return AugmentConfig(crop="rrc", scale=(1, 1), ratio=(1, 1), hflip=0, **options)


@pytest.mark.parametrize(
    "option",
    [
        {"color_jitter": 0.4},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"auto_augment": "augmix-m3-w3"},
        {"auto_augment": "original"},
    ],
)
def test_colour_and_policies_change_the_image(gradient: Image.Image, option: dict[str, Any]) -> None:
    assert _mean_change(_still_with(**option), gradient) > 2


@pytest.mark.parametrize("policy", ["rand-m10-n6-inc1", "rand-m0-n6", "augmix-m10-w6-d6", "v0", "originalr"])
def test_policies_at_the_ends_of_their_scales(gradient: Image.Image, policy: str) -> None:
    _draws(AugmentConfig(auto_augment=policy), gradient, count=300)  # Pillow 13 refuses timm's 0 bits


def test_color_jitter_grows(gradient: Image.Image) -> None:
    low, high = (_mean_change(_still_with(color_jitter=value), gradient) for value in (0.05, 0.8))
    assert low * 3 < high


def test_random_erasing_puts_the_mean(gradient: Image.Image) -> None:
    mean = torch.tensor(MEAN).view(3, 1, 1) * 255
    for re_prob, least, most in ((0.0, 0, 0), (0.5, 10, 50), (1.0, 55, 60)):
        tensors = _draws(_still_with(re_prob=re_prob), gradient)
        erased = sum(bool(((tensor - mean).abs() < 0.01).all(0).sum() > 10) for tensor in tensors)
        assert least <= erased <= most


@pytest.mark.parametrize("auto_augment", [None, "rand-m9-mstd0.5", "original"])
def test_one_channel_is_grey(gradient: Image.Image, auto_augment: str | None) -> None:
    grey = _build(None, (1, 32, 32), mean=[0.5], std=[0.25])(gradient)
    wanted = torch.from_numpy(np.asarray(gradient.convert("L")).copy()).float()
    torch.testing.assert_close(grey[0] * 0.25 + 0.5, wanted / 255)
    transform = _build(
        AugmentConfig(auto_augment=auto_augment, re_prob=0.5), (1, 32, 32), mean=[0.5], std=[0.25]
    )
    for _ in range(50):
        assert transform(gradient).shape == (1, 32, 32)


def test_transform_can_be_pickled(gradient: Image.Image) -> None:
    transform = pickle.loads(pickle.dumps(_build(AugmentConfig(auto_augment="rand-m9"))))
    assert transform(gradient).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"crop": "middle"}, "crop 'middle': must be auto, rrc or pad"),
        ({"scale": (0.5, 0.1)}, r"scale \(0.5, 0.1\): must be two numbers"),
        ({"scale": (0.5, 1.5)}, "at most 1"),
        ({"ratio": (0.0, 1.0)}, "ratio .* above 0"),
        ({"ratio": (1.0, 1.0, 1.0)}, "two numbers"),
        ({"hflip": 1.5}, "hflip 1.5: must be from 0 to 1"),
        ({"hflip": float("nan")}, "hflip nan"),
        ({"re_prob": -0.1}, "re_prob -0.1"),
        ({"color_jitter": -1}, "color_jitter -1"),
        ({"pad": 0}, "pad 0: must be 1 pixel or more"),
        ({"pad": 4, "crop": "rrc"}, "keep one kind"),
        ({"pad": 4, "scale": (0.5, 1)}, "keep one kind"),
        ({"crop": "pad", "ratio": (1, 1)}, "no effect with crop pad"),
        ({"auto_augment": "rand-m9", "color_jitter": 0.4}, "set color_jitter to 0"),
    ],
)
def test_impossible_augmentation(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AugmentConfig(**option)


@pytest.mark.parametrize("policy", ["nonsense", "rand-q9", "augmix-q3", "rand-m9-q1"])
def test_unknown_policy_is_named(policy: str) -> None:
    with pytest.raises(UserError, match=f"auto_augment '{policy}'"):
        _build(AugmentConfig(auto_augment=policy))


def test_four_channels_are_refused() -> None:
    with pytest.raises(UserError, match="3 channels, or 1 turned to grey, not 4"):
        _build(None, (4, 32, 32), mean=[0.5] * 4, std=[0.5] * 4)
