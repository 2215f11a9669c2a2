"""Gradients where a module is hooked, replaced or wrapped, against finite differences in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

from conformer_vision import Conformer
from contracts.model import ModelContract, images

NORMS_AND_ACTIVATIONS = [
    "transformer.norm1",
    "transformer.norm2",
    "transformer.mlp.act",
    "bottleneck.bn1",
    "bottleneck.act1",
    "bottleneck.bn2",
    "fusion.act1",
    "fusion.bn3",
    "fcu_down.norm",
    "fcu_down.act",
    "fcu_up.bn",
]
Change = Callable[[nn.Module, str], None]


class Nano(ModelContract):
    name = "conformer_nano_patch8_64"
    options: ClassVar = {"channel_ratio": 0.375, "embed_dim": 40}
    __test__ = False  # only builds models here


def hook_output(block: nn.Module, name: str) -> None:
    block.get_submodule(name).register_forward_hook(lambda module, inputs, output: output.tanh() * 0.7)


def hook_input(block: nn.Module, name: str) -> None:
    block.get_submodule(name).register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.3 + 0.1,))


def wrap(block: nn.Module, name: str) -> None:
    parent, _, last = name.rpartition(".")
    inner = block.get_submodule(name)
    setattr(block.get_submodule(parent), last, nn.Sequential(inner, nn.Softsign()))


def replace(block: nn.Module, name: str) -> None:
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, nn.Sequential(nn.GELU(), nn.Dropout(0.0)))


def apart(model: Conformer, x: Tensor) -> float:
    """How far the gradient along a random direction is from the quotient of differences, relatively."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(4)
    direction = [
        torch.randn(each.shape, generator=generator, dtype=each.dtype) * each.detach().abs().mean()
        for each in parameters
    ]

    def loss() -> Tensor:
        return model(x).square().sum()

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True) if g is not None)
    values, step = [], 1e-8  # small enough to leave every ReLU on its side
    with torch.no_grad():
        for factor in (step, -2 * step):
            for parameter, each in zip(parameters, direction, strict=True):
                parameter.add_(each, alpha=factor)
            values.append(loss().item())
    quotient = (values[0] - values[1]) / (2 * step)
    return abs(slope - quotient) / abs(quotient)


@pytest.mark.parametrize("mode", ["off", "cheap", "full"])
@pytest.mark.parametrize("change", [hook_output, hook_input, wrap, replace])
def test_gradients_are_those_of_the_changed_network(change: Change, mode: str) -> None:
    """Of every block but the first, another norm or activation is changed."""
    for training in (False, True) if mode == "off" else (True,):
        model = Nano().build(depths=(6, 4, 2)).double().train(training)
        plain = model(images(2, 3, 32, 32, dtype=torch.float64))
        for block, name in zip(model.blocks[1:], NORMS_AND_ACTIVATIONS, strict=True):
            change(block, name)
        x = images(2, 3, 32, 32, dtype=torch.float64)
        assert not torch.allclose(model(x), plain), "the changes have an effect"
        model.set_grad_checkpointing(mode)
        assert apart(model, x) < 1e-5


def test_backward_hooks_see_every_norm_and_activation() -> None:
    model = Nano().build().double().train()
    seen: dict[str, Tensor] = {}
    block = model.blocks[1]
    for name in NORMS_AND_ACTIVATIONS:
        block.get_submodule(name).register_full_backward_hook(
            lambda module, inputs, outputs, name=name: seen.update({name: outputs[0]})
        )
    assert apart(model, images(2, 3, 64, 64, dtype=torch.float64)) < 1e-5
    assert seen.keys() == set(NORMS_AND_ACTIVATIONS)


def test_hooks_keep_what_a_module_gave() -> None:
    """An output is not overwritten by the module behind it."""
    model = Nano().build().double()
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.blocks[1].named_modules():
        module.register_forward_hook(
            lambda module, inputs, output, name=name: (
                kept.update({name: (output, copy.deepcopy(output))}) if isinstance(output, Tensor) else None
            )
        )
    with torch.no_grad():
        model(images(2, 3, 64, 64, dtype=torch.float64))
    assert len(kept) > 30
    for name, (output, copied) in kept.items():
        assert torch.equal(output, copied), name


@pytest.mark.parametrize("mode", ["cheap", "full"])
def test_quantisation_aware_training_is_checkpointed_exactly(mode: str) -> None:
    def quantise(name: str) -> None:
        parent, _, last = name.rpartition(".")
        fake = FakeQuantize(MovingAverageMinMaxObserver)
        setattr(block.get_submodule(parent), last, nn.Sequential(block.get_submodule(name), fake))

    model = Nano().build().train()
    block = model.blocks[1]
    for name in NORMS_AND_ACTIVATIONS:
        quantise(name)
    x = images(2, 3, 64, 64)
    model(x)  # the observers see their ranges
    model.apply(torch.ao.quantization.disable_observer)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing(mode)
    for each in (model, other):
        each(x).square().sum().backward()
    for (name, expected), actual in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(actual.grad, expected.grad), name


def test_a_hooked_norm_is_not_folded() -> None:
    model = Nano().build().double()
    model.blocks[1].bottleneck.bn1.register_forward_hook(lambda module, inputs, output: output.tanh())
    model.blocks[1].bottleneck.conv2.register_forward_hook(lambda module, inputs, output: output * 0.9)
    model.blocks[1].fcu_up.bn = nn.Sequential(model.blocks[1].fcu_up.bn, nn.Softsign())
    x = images(2, 3, 64, 64, dtype=torch.float64)
    folded = model.fold()
    assert isinstance(folded.blocks[1].bottleneck.bn3, nn.Identity)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-12)
