"""The loss of two heads against cross-entropy written out."""

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from conformer_vision import BranchLogits
from conformer_vision.training import BranchLoss

TARGET = torch.tensor([0, 2, 1, 2])


def logits(seed: int) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cross_entropy(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(x.softmax(1).log() * target).sum(1).mean()


def test_mean_of_the_branches() -> None:
    conv, trans = logits(0), logits(1)
    target = one_hot(TARGET, 3).double()
    wanted = (cross_entropy(conv, target) + cross_entropy(trans, target)) / 2
    loss = BranchLoss(nn.CrossEntropyLoss())
    torch.testing.assert_close(loss(BranchLogits(conv, trans), TARGET), wanted)
    torch.testing.assert_close(loss((conv, trans), TARGET), wanted)  # what timm's distilled models give
    assert loss(BranchLogits(conv, trans), TARGET) != loss(BranchLogits(conv, conv), TARGET)
    soft = logits(5).softmax(1)
    wanted = (cross_entropy(conv, soft) + cross_entropy(trans, soft)) / 2
    torch.testing.assert_close(loss(BranchLogits(conv, trans), soft), wanted)


def test_one_tensor_has_the_loss_of_the_criterion() -> None:
    loss = BranchLoss(nn.CrossEntropyLoss())(logits(0), TARGET)
    torch.testing.assert_close(loss, cross_entropy(logits(0), one_hot(TARGET, 3).double()))


def test_each_branch_gets_half_of_its_gradient() -> None:
    conv, trans = logits(0).requires_grad_(), logits(1).requires_grad_()
    BranchLoss(nn.CrossEntropyLoss())(BranchLogits(conv, trans), TARGET).backward()
    alone = logits(0).requires_grad_()
    nn.CrossEntropyLoss()(alone, TARGET).backward()
    assert conv.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(conv.grad, alone.grad / 2)
    assert trans.grad is not None
    assert trans.grad.norm() > 0


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_heads(count: int) -> None:
    heads = [logits(seed) for seed in range(count)]
    wanted = sum(cross_entropy(x, one_hot(TARGET, 3).double()) for x in heads) / count
    torch.testing.assert_close(BranchLoss(nn.CrossEntropyLoss())(heads, TARGET), wanted)


def test_shares_of_the_heads() -> None:
    conv, trans = logits(0), logits(1)
    target = one_hot(TARGET, 3).double()
    for share in (0.0, 0.25, 1.0):
        wanted = share * cross_entropy(conv, target) + (1 - share) * cross_entropy(trans, target)
        loss = BranchLoss(nn.CrossEntropyLoss(), conv_share=share)
        torch.testing.assert_close(loss(BranchLogits(conv, trans), TARGET), wanted)
