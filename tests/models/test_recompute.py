"""Gradient checkpointing: the modes, and what they keep. Every variant's contract has its exactness."""

from __future__ import annotations

import copy
from itertools import accumulate

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from conformer_vision import Conformer
from contracts.model import SMALL, images

NAME = "conformer_nano_patch8_64"


def build(**options: object) -> Conformer:
    torch.manual_seed(0)
    model: Conformer = timm.create_model(NAME, channel_ratio=0.375, embed_dim=40, **SMALL | options)
    return model.train()


def gradients(model: Conformer, mode: str, x: Tensor) -> dict[str, Tensor | None]:
    """The gradients of a copy of the model, with the buffers that the step leaves."""
    model = copy.deepcopy(model)
    model.set_grad_checkpointing(mode)
    torch.manual_seed(3)
    features, levels = model.forward_intermediates(x)
    (model.forward_head(features).square().mean() + levels[-1].square().mean()).backward()
    return {name: each.grad for name, each in model.named_parameters()} | dict(model.named_buffers())


def assert_exact(model: Conformer, x: Tensor) -> None:
    expected = gradients(model, "off", x)
    for mode in ("cheap", "full"):
        actual = gradients(model, mode, x)
        for name, value in expected.items():
            assert (value is None) == (actual[name] is None), name
            assert value is None or torch.equal(actual[name], value), f"{mode}: {name}"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "options",
    [
        {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_rate": 0.3, "drop_path_rate": 0.3},
        {"upsample": "bilinear", "conv_drop_path_rate": 0.4},
    ],
    ids=str,
)
def test_exact_with_random_layers(options: dict[str, object], layout: torch.memory_format) -> None:
    model = build(**options).to(memory_format=layout)
    assert_exact(model, images(3, 3, 50, 66).contiguous(memory_format=layout))


def test_exact_with_random_layers_without_fused_attention() -> None:
    model = build(attn_drop_rate=0.3, drop_path_rate=0.3)
    model.set_fused_attention(False)
    assert_exact(model, images(3, 3, 64, 64))


def test_exact_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert_exact(build(drop_path_rate=0.3), images(3, 3, 64, 64))


@pytest.mark.parametrize("frozen", ["statistics", "one layer"])
def test_exact_with_frozen_parts(frozen: str) -> None:
    model = build()
    if frozen == "one layer":
        model.blocks[1].bottleneck.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and frozen == "statistics":
            module.eval()
    assert_exact(model, images(3, 3, 64, 64))


def test_exact_when_folded_and_tuned() -> None:
    assert_exact(build().fold().train(), images(3, 3, 64, 64))


def test_exact_with_hooks_that_change_outputs() -> None:
    model = build(drop_path_rate=0.3)
    for block in model.blocks:
        block.transformer.norm1.register_forward_hook(lambda module, inputs, output: output.tanh())
        block.bottleneck.bn1.register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert_exact(model, images(3, 3, 64, 64))


@pytest.mark.parametrize("mode", ["cheap", "full"])
def test_statistics_count_each_batch_once(mode: str) -> None:
    model, x = build(), images(4, 3, 64, 64)
    model.set_grad_checkpointing(mode)
    model(x).square().mean().backward()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        assert (norm.num_batches_tracked.item(), norm.momentum, norm.track_running_stats) == (1, 0.1, True)


def test_each_mode_takes_less_memory() -> None:
    torch.manual_seed(0)
    model: Conformer = timm.create_model("conformer_tiny_patch16_224", num_classes=5).train()
    peaks = []
    for mode in ("off", "cheap", "full"):
        model.set_grad_checkpointing(mode)
        peaks.append(peak_bytes(model, images(2, 3, 224, 224)))
    off, cheap, full = peaks
    assert cheap < 0.8 * off and full < 0.85 * cheap


def peak_bytes(model: Conformer, x: Tensor) -> int:
    """The most memory that torch has allocated during a step, weights and images left out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("mode", ["cheap", "full"])
def test_random_state_goes_on_as_without(mode: str) -> None:
    model, x = build(drop_path_rate=0.5, proj_drop_rate=0.2), images(4, 3, 64, 64)
    assert any(isinstance(module, DropPath) for module in model.modules())
    after = []
    for each in ("off", mode):
        model.set_grad_checkpointing(each)
        torch.manual_seed(5)
        model(x).sum().backward()
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_modes_and_timms_switch() -> None:
    model = build()
    assert model.grad_checkpointing == "off"
    for given, mode in [(True, "full"), (False, "off"), ("cheap", "cheap"), ("full", "full"), ("off", "off")]:
        model.set_grad_checkpointing(given)
        assert model.grad_checkpointing == mode
    model.set_grad_checkpointing()
    assert model.grad_checkpointing == "full"
    with pytest.raises(
        ValueError, match="grad_checkpointing='some' is unknown; use 'off', 'cheap' or 'full'"
    ):
        model.set_grad_checkpointing("some")
