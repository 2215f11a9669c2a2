"""A folded network that overwrites its maps computes what the plain one computes."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from conformer_vision.inference.runtimes.in_place import compute_in_place
from conformer_vision.models import Conformer

VARIANTS: dict[str, dict[str, Any]] = {
    "conformer_nano_patch16_224": {},
    "conformer_nano_patch4_32": {},
    "conformer_small_patch32_224": {},
    "conformer_tiny_patch8_64": {"upsample": "bilinear"},
}


def folded(variant: str) -> Conformer:
    """A folded network with every statistic, weight and bias away from its initial value."""
    torch.manual_seed(0)
    model = timm.create_model(variant, num_classes=5, depths=(2, 1, 2), **VARIANTS[variant])
    assert isinstance(model, Conformer)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.fold()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_logits(variant: str, channels_last: bool) -> None:
    plain, ours = folded(variant), folded(variant)
    compute_in_place(ours)
    if channels_last:
        ours = ours.to(memory_format=torch.channels_last)
    for size in [(1, 64, 64), (2, 47, 61), (3, 33, 130)]:
        images = torch.randn(size[0], 3, *size[1:])
        before = images.clone()
        with torch.inference_mode():
            expected, actual = plain.forward_branches(images), ours.forward_branches(images)
            again = ours.forward_branches(images)
        assert torch.equal(images, before)
        for right, first, second in zip(expected, actual, again, strict=True):
            scale = float(right.abs().max())
            assert scale > 0.1
            torch.testing.assert_close(first, right, rtol=0, atol=1e-5 * scale)
            assert torch.equal(first, second)
