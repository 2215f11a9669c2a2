"""What the branches exchange, and networks whose couplings are cut."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from conformer_vision.errors import UserError
from conformer_vision.explain import couplings

from .test_methods import build, images


def test_every_block_is_seen_as_it_computes() -> None:
    model, x = build(), images()
    kept: dict[str, list[Tensor]] = {"down": [], "up": [], "first": []}
    watched = build()
    for block in watched.blocks[1:]:
        block.fcu_down.register_forward_hook(lambda *call: kept["down"].append(call[2][0]))
        block.fcu_up.register_forward_hook(lambda *call: kept["up"].append(call[2]))
        block.bottleneck.register_forward_hook(lambda *call: kept["first"].append(call[2][0]))
    pairs: Any = watched.forward_intermediates(
        x, blocks=[1, 2, 3, 4, 5], return_tokens=True, intermediates_only=True
    )
    found = couplings(model, x)
    torch.testing.assert_close(found.logits, model.forward_branches(x))
    attention: Any = model.forward_attention(x)
    assert [view.block for view in found.blocks] == [1, 2, 3, 4, 5]
    for view, (after, tokens), weights in zip(found.blocks, pairs, attention, strict=True):
        torch.testing.assert_close(view.map_after, after.abs().mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            view.tokens_after.flatten(1), tokens[:, 1:].abs().mean(2), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(view.attention.flatten(1), weights[:, :, 0, 1:].mean(1))
    assert found.blocks[0].from_map is None and found.blocks[0].tokens_before is None
    for index, view in enumerate(found.blocks[1:]):
        for values, name in ((view.from_map, "down"), (view.from_tokens, "up"), (view.map_before, "first")):
            assert values is not None
            expected = kept[name][index].abs().mean(2 if name == "down" else 1)
            torch.testing.assert_close(values.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(view.tokens_before, found.blocks[index].tokens_after)


@pytest.mark.parametrize("cut", [[2, 3, 4, 5], [3]])
def test_cut_couplings_bring_nothing(cut: list[int]) -> None:
    model, x = build(), images()
    found = couplings(model, x, cut=cut)
    for view in found.blocks[1:]:
        for values in (view.from_map, view.from_tokens):
            assert values is not None
            assert bool((values == 0).all()) == (view.block in cut)
    for block in cut:  # the same without hooks: projections of zero bring nothing but what follows them
        down, up = model.blocks[block - 1].fcu_down, model.blocks[block - 1].fcu_up
        for parameter in (down.norm.weight, down.norm.bias, up.bn.weight, up.bn.bias):
            torch.nn.init.zeros_(parameter)
    expected = model.forward_branches(x)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)


def test_cut_apart_no_branch_hears_the_other() -> None:
    model, x = build(), images()
    before = couplings(model, x, cut=range(2, 6)).logits
    torch.nn.init.normal_(model.cls_token)
    after = couplings(model, x, cut=range(2, 6)).logits
    assert torch.equal(before.conv, after.conv) and not torch.equal(before.trans, after.trans)


def test_the_model_stays_as_it_was() -> None:
    model, x = build(), images()
    expected = model(x)
    couplings(model, x, cut=[2, 3])
    assert torch.equal(model(x), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mistakes() -> None:
    with pytest.raises(UserError, match="block 1 has no couplings; use 2 to 5"):
        couplings(build(), images(), cut=[1])
    with pytest.raises(UserError, match="block 6 has no couplings"):
        couplings(build(), images(), cut=[6])
    with pytest.raises(UserError, match="ResNet has no couplings"):
        couplings(timm.create_model("resnet18").eval(), images())
