"""Attention, class maps and the layers for CAM methods, under what users do to a model."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from conformer_vision import Conformer

NAME = "conformer_nano_patch8_64"
SMALL: dict[str, Any] = {"depths": (2, 1, 2), "num_classes": 5, "zero_init_last": False}


def build(**options: Any) -> Conformer:
    torch.manual_seed(0)
    model = timm.create_model(NAME, **SMALL | options)
    assert isinstance(model, Conformer)
    return model.eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 48, 33, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["off", "cheap", "full"])
def test_gradients_reach_the_attention(mode: str) -> None:
    """The gradient of a logit with respect to a weight is the logit's change per change of that weight."""
    model = build().double()
    model.set_grad_checkpointing(mode)
    x = images(1).double()
    attention, _, features = model.forward_attention(x, return_features=True)
    logit = model.forward_head(features)[0, 3]
    slopes = torch.autograd.grad(logit, attention)
    step = 1e-6
    for number in (1, 3, 5):
        place = (0, 2, 0, 7)  # how much the class token takes of a patch token, in head 2

        def nudge(module: nn.Module, call: Any, weights: Tensor, amount: float, place: Any = place) -> Tensor:
            weights = weights.clone()
            weights[place] += amount
            return weights

        values = []
        for amount in (step, -step):
            plain = build().double()
            plain.set_fused_attention(False)
            plain.blocks[number - 1].transformer.attn.attn_drop.register_forward_hook(
                lambda *call, amount=amount: nudge(*call, amount=amount)
            )
            values.append(plain(x)[0, 3].item())
        assert float(slopes[number - 1][place]) == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9
        )


def test_hooks_and_replaced_modules_are_seen() -> None:
    """The attention is that of the model as it is, with what the user changed in it."""
    model, x = build(), images()
    with torch.no_grad():
        before = model.forward_attention(x)
        model.blocks[2].transformer.norm1.register_forward_hook(lambda *call: call[2] * 2)
        model.blocks[3].transformer.mlp.act = nn.Sequential(nn.GELU(), nn.Tanh())
        after, _, features = model.forward_attention(x, return_features=True)
        assert torch.equal(before[1], after[1])
        assert not torch.allclose(before[2], after[2]) and not torch.allclose(before[4], after[4])
        torch.testing.assert_close(model.forward_head(features), model(x))


def test_threads_get_their_own_attention() -> None:
    model = build()
    inputs = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    with torch.no_grad():
        expected = [model.forward_attention(x)[-1] for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.equal(model.forward_attention(inputs[number])[-1], expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class NoAttention(nn.Module):
    def forward(self, tokens: Tensor, **options: Any) -> Tensor:
        return tokens.mean(1, keepdim=True).expand_as(tokens)


def test_an_attention_that_does_not_show_its_weights() -> None:
    model = build()
    model.blocks[1].transformer.attn = NoAttention()
    with pytest.raises(ValueError, match="block 2: its attention \\(NoAttention\\)"):
        model.forward_attention(images())
    # As libraries that place layers on devices do: a forward of the instance, bound to the original.
    model = build()
    model.blocks[1].transformer.attn.forward = model.blocks[1].transformer.attn.forward  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="block 2"):
        model.forward_attention(images())


def test_models_without_classes_or_blocks() -> None:
    with pytest.raises(ValueError, match="no class maps"):
        build(num_classes=0).class_maps(images())
    stem = build(depths=(2, 1, 2), stem_stride=4, patch_size=16)
    stem.prune_intermediate_layers([0])
    with pytest.raises(ValueError, match="no attention"):
        stem.forward_attention(images())


def test_layers_for_cam_methods() -> None:
    """The layer of each block gives the block's map, and Grad-CAM on the last one is the exact class map."""
    model, x = build(), images()
    maps: list[Tensor] = []
    for number in range(1, 6):
        model.cam_layer(number).register_forward_hook(lambda *call: maps.append(call[2]))
    levels: Any = model.forward_intermediates(x, blocks=[1, 2, 3, 4, 5], intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(maps, levels, strict=True))
    assert model.cam_layer() is model.cam_layer(5)
    for number in (0, 6):
        with pytest.raises(ValueError, match="use 1 to 5"):
            model.cam_layer(number)
    maps.clear()
    logit = model.forward_branches(x).conv[:, 2].sum()
    (slope,) = torch.autograd.grad(logit, maps[-1])
    gradcam = (slope.sum((2, 3), keepdim=True) * maps[-1]).sum(1)
    with torch.no_grad():
        torch.testing.assert_close(gradcam, model.class_maps(x).conv[:, 2])


def test_an_output_stride_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="output_stride=4 is not possible; use 32, 16 or 8"):
        build(output_stride=4)
