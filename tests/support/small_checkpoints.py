"""A small network with weights of its own, and what a refused checkpoint has to look like."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import timm
import torch
from hypothesis import settings
from torch import Tensor, nn

from conformer_vision import load_checkpoint
from conformer_vision.errors import UserError
from conformer_vision.models.checkpoints import (
    to_official,
    to_openmmlab,
)

SMALL = {
    "channel_ratio": 0.25,
    "embed_dim": 8,
    "num_heads": 1,
    "mlp_ratio": 1.0,
    "depths": (2, 1, 2),
    "stem_width": 8,
}
Weights = dict[str, Tensor]

quick = settings(derandomize=True, deadline=None, max_examples=40)


def make_model(seed: int = 0, *, num_classes: int = 4, in_chans: int = 3) -> nn.Module:
    """A Conformer of every kind of layer with no value at its initial one."""
    model = timm.create_model("conformer_nano_patch4_32", num_classes=num_classes, in_chans=in_chans, **SMALL)
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
        else:
            tensor.fill_(17 + seed)
    return model


def snapshot(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """The same names and the same bits, NaN included."""
    return left.keys() == right.keys() and all(
        torch.equal(
            left[name].contiguous().view(-1).view(torch.uint8), right[name].view(-1).view(torch.uint8)
        )
        for name in left
    )


def refused(model: nn.Module, source: Any, **kwargs: Any) -> str:
    """The one line in which `source` is refused; the model has to be as before."""
    before = snapshot(model)
    with pytest.raises(UserError) as caught:
        load_checkpoint(model, source, **kwargs)
    assert same(snapshot(model), before)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1500
    return line


DONOR = snapshot(make_model(1))
OWN_NAMES = tuple(DONOR)
LAYOUTS: dict[str, Callable[[Weights], Weights]] = {
    "own": dict,
    "official": to_official,
    "openmmlab": to_openmmlab,
}
