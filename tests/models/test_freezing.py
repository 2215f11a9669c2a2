"""Frozen parts of a Conformer: unchanged after real steps, BatchNorm's statistics included."""

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import conformer_vision  # noqa: F401  # registers the models
from conformer_vision.models.freezing import freeze, hold_frozen

SMALL: dict[str, Any] = {
    "depths": [2, 1, 2],
    "num_classes": 3,
    "drop_path_rate": 0.5,
    "zero_init_last": False,
}


def small() -> Any:
    torch.manual_seed(0)
    model = timm.create_model("conformer_nano_patch8_64", **SMALL)
    model.set_distilled_training(True)
    return model


def two_steps(model: Any) -> tuple[set[str], set[str]]:
    """Trains; gives the names in the state that stayed bit for bit, and those that changed."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        hold_frozen(model.train())
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        logits = model(images)
        loss = sum(nn.functional.cross_entropy(each, torch.tensor([0, 1, 2, 0])) for each in logits)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    return same, before.keys() - same


def names(model: Any, pattern: str) -> set[str]:
    return {name for name in model.state_dict() if re.match(pattern, name)}


def test_nothing_frozen() -> None:
    model = small()
    freeze(model)
    same, _ = two_steps(model)
    assert same == set()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_first_blocks(blocks: int) -> None:
    model = small()
    freeze(model, blocks=blocks)
    same, changed = two_steps(model)
    frozen = names(model, rf"stem\.|patch_embed\.|cls_token|blocks\.[0-{blocks - 1}]\.")
    assert same == frozen
    assert changed == model.state_dict().keys() - frozen
    assert names(model, r"stem\..*running_mean") <= same, "BatchNorm's statistics stay as well"
    assert names(model, r".*(head|norm)\.(weight|bias)$") & changed


@pytest.mark.parametrize(
    ("branch", "frozen"),
    [
        ("conv", r"stem\.|blocks\.\d+\.(bottleneck|fusion)\."),
        ("trans", r"patch_embed\.|cls_token|blocks\.\d+\.transformer\."),
    ],
)
def test_one_branch(branch: Any, frozen: str) -> None:
    model = small()
    freeze(model, branch=branch)
    same, changed = two_steps(model)
    assert same == names(model, frozen)
    couplings = names(model, r"blocks\.\d+\.fcu_(up|down)\.")
    assert couplings
    assert couplings <= changed, "the couplings learn on"
    assert names(model, r"(conv|trans)_head\.") <= changed, "and so do both heads"


def test_blocks_and_branch_together() -> None:
    model = small()
    freeze(model, blocks=2, branch="trans")
    same, _ = two_steps(model)
    assert same == names(model, r"stem\.|patch_embed\.|cls_token|blocks\.[01]\.|blocks\.\d+\.transformer\.")


def test_held_modules_are_as_in_evaluation() -> None:
    """BatchNorm, and stochastic depth: a frozen block gives the same in every pass."""
    model = small()
    freeze(model, blocks=3)
    hold_frozen(model.train())
    assert not any(module.training for block in model.blocks[:3] for module in block.modules())
    assert not any(module.training for module in model.stem.modules())
    assert all(block.training for block in model.blocks[3:])
    assert model.training

    outputs: list[Tensor] = []
    model.blocks[2].register_forward_hook(lambda module, inputs, output: outputs.append(output[1].detach()))
    images = torch.randn(4, 3, 32, 32)
    model(images)
    model(images)
    assert torch.equal(*outputs)


def test_holding_leaves_what_has_no_frozen_parameter() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Conv2d(3, 3, 1)).train()
    model[2].requires_grad_(False)
    hold_frozen(model)
    assert [module.training for module in model] == [True, True, False]


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ValueError, match="blocks 6: the model has 5"):
        freeze(small(), blocks=6)
