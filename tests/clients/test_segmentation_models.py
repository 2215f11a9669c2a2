"""segmentation_models.pytorch: Conformers as encoders, by the prefix ``tu-``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clients import WITHOUT, images, padded, same_elsewhere, three_steps
from conformer_vision import VARIANTS

smp = pytest.importorskip("segmentation_models_pytorch", reason=WITHOUT)

ARCHITECTURES = ("Unet", "FPN", "DeepLabV3Plus", "PAN", "UPerNet")
TARGET = torch.randint(0, 3, (2, 256, 352), generator=torch.Generator().manual_seed(1))


def depth_of(name: str) -> int:
    """Levels of an encoder: 5 from stride 2 to 32, fewer for the variants for small images."""
    return {1: 3, 2: 4, 4: 5}[VARIANTS[name].stem_stride]


def build(architecture: str, name: str) -> Any:
    depth = depth_of(name)
    options: dict[str, Any] = {"encoder_depth": depth}
    if architecture == "Unet":
        options["decoder_channels"] = (64, 32, 16, 16, 8)[:depth]
    if architecture == "FPN":
        options["upsampling"] = 2 ** (depth - 3)  # from its finest level to the image
    return smp.create_model(architecture, f"tu-{name}", encoder_weights=None, classes=3, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_in_every_decoder(name: str, architecture: str) -> None:
    model = build(architecture, name).eval()
    height, width = 128, 192
    with torch.inference_mode():
        assert model(images(1, height=height, width=width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_three_steps(architecture: str, tmp_path: Path) -> None:
    name = "conformer_nano_patch16_224"
    model = build(architecture, name)
    x = padded()
    three_steps(model, lambda: torch.nn.functional.cross_entropy(model(x), TARGET))
    if architecture == "UPerNet":
        again = f"""
import conformer_vision, segmentation_models_pytorch as smp
model = smp.UPerNet("tu-{name}", encoder_weights=None, classes=3)
"""
        same_elsewhere(model, again, tmp_path, x)


def test_unet_takes_any_size() -> None:
    model = build("Unet", "conformer_nano_patch16_224").eval()
    with torch.inference_mode():
        assert model(images(1)).shape == (1, 3, 250, 333)


def test_pretrained_weights_reach_the_encoder() -> None:
    """Those of the bundled weights, statistics of the BatchNorms included."""
    import timm

    name = "conformer_nano_patch8_64"
    encoder = smp.Unet(
        f"tu-{name}", encoder_weights="imagenet", encoder_depth=4, decoder_channels=(64, 32, 16, 16)
    ).encoder.model
    expected = timm.create_model(name, pretrained=True, features_only=True).state_dict()
    actual = encoder.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
