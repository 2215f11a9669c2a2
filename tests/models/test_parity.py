"""Every golden of the two public implementations, in `../shared/parity`, against the models that timm builds.

The goldens were computed in float64 from weights that follow from the official parameter names alone.
"""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from conformer_vision import Conformer, load_checkpoint
from conformer_vision.models.checkpoints import to_official

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"
if not PARITY.is_dir():
    pytest.skip("needs the goldens in ../shared/parity, which are not here", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
assert _spec and _spec.loader
weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(weights)

# Relative; logits are stored as float32, everything in the JSON as float64.
LOGITS = {torch.float64: 1e-6, torch.float32: 1e-4}
STATISTICS = {torch.float64: 1e-9, torch.float32: 1e-4}
# No float32 network can have these gradients to 1e-4: the derivatives of ReLU and max pooling jump, and
# rounding moves some values across. Noise of 1e-6 on the input of the plain formulation
# (tests/oracle) changes norms by 1e-2 even in float64, noise of 1e-7 by 1e-5; computed in float32
# it is up to 2.3e-2 off the goldens itself.
GRADIENTS = {torch.float64: 1e-9, torch.float32: 1e-1}
ZERO = {torch.float64: 1e-12, torch.float32: 1e-4}


@dataclass(frozen=True)
class Golden:
    """What a golden was computed with."""

    name: str
    variant: str
    seed: int
    batch: int
    in_chans: int
    num_classes: int
    height: int
    width: int

    @classmethod
    def read(cls, path: Path) -> Golden:
        if path.with_suffix(".json").exists():
            meta = json.loads(path.with_suffix(".json").read_text())
            fields = ("variant", "seed", "batch", "in_chans", "num_classes")
            return cls(path.stem, *(meta[field] for field in fields), *meta["size"])
        name = re.fullmatch(r"mmpretrain_(\w+)_(\d+)x(\d+)", path.stem)
        assert name, f"{path} is no golden that ../shared/parity/README.md describes"
        arrays = np.load(path)
        batch, num_classes = arrays["conv_logits"].shape
        return cls(path.stem, name[1], int(arrays["seed"]), batch, 3, num_classes, int(name[2]), int(name[3]))

    @property
    def meta(self) -> dict[str, Any]:
        return json.loads((PARITY / "golden" / f"{self.name}.json").read_text())

    @property
    def images(self) -> Tensor:
        return torch.from_numpy(weights.image(self.batch, self.in_chans, self.height, self.width, self.seed))

    @property
    def logits(self) -> tuple[Tensor, Tensor]:
        arrays = np.load(PARITY / "golden" / f"{self.name}.npz")
        return torch.from_numpy(arrays["conv_logits"]), torch.from_numpy(arrays["trans_logits"])


GOLDENS = [Golden.read(path) for path in sorted((PARITY / "golden").glob("*.npz"))]
# Those with statistics and a training step first: pytest groups by position, so weights are computed once.
GOLDENS.sort(key=lambda golden: golden.name.startswith("mmpretrain"))
FULL_GOLDENS = [golden for golden in GOLDENS if not golden.name.startswith("mmpretrain")]
assert FULL_GOLDENS, f"{PARITY} holds no goldens"


def each(goldens: list[Golden]) -> pytest.MarkDecorator:
    """Parametrize by goldens; one process makes the weights of a golden, once."""
    groups = [pytest.param(g, id=g.name, marks=pytest.mark.xdist_group(f"golden {g.name}")) for g in goldens]
    return pytest.mark.parametrize("golden", groups, scope="module")


every_golden = each(GOLDENS)
every_full_golden = each(FULL_GOLDENS)
both_precisions = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def official_keys(golden: Golden) -> dict[str, tuple[int, ...]]:
    keys = json.loads((PARITY / f"keys_official_{golden.variant}.json").read_text())
    keys["conv1.weight"][1] = golden.in_chans
    for head in ("conv_cls_head", "trans_cls_head"):
        keys[f"{head}.weight"][0] = keys[f"{head}.bias"][0] = golden.num_classes
    return {name: tuple(shape) for name, shape in keys.items()}


@lru_cache(maxsize=1)
def official_weights(golden: Golden) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(np.asarray(weights.tensor(name, shape, golden.seed)))
        for name, shape in official_keys(golden).items()
    }


def openmmlab_name(official: str) -> str:
    """The name that OpenMMLab gives an official parameter, as ../shared/parity/README.md says."""
    if official.startswith(("conv_cls_head", "trans_cls_head")):
        return f"head.{official}"
    name = re.sub(r"^(trans_1|conv_trans_\d+\.trans_block)\.norm", r"\1.ln", official)
    return "backbone." + name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")


def build(golden: Golden, dtype: torch.dtype, *, openmmlab: bool = False) -> Conformer:
    with torch.device("meta"):  # every value comes from the checkpoint
        model = timm.create_model(
            f"conformer_{golden.variant}_224", num_classes=golden.num_classes, in_chans=golden.in_chans
        )
    layout = official_weights(golden)
    if openmmlab:
        layout = {"state_dict": {openmmlab_name(name): tensor for name, tensor in layout.items()}}
    load_checkpoint(model.to_empty(device="cpu"), layout)
    return model.to(dtype)


def assert_logits(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=LOGITS[dtype] * scale)


@every_golden
@both_precisions
def test_logits_and_blocks(golden: Golden, dtype: torch.dtype) -> None:
    model = build(golden, dtype).eval()
    outputs: dict[int, tuple[Tensor, Tensor]] = {}
    for number, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(lambda _, __, output, number=number: outputs.update({number: output}))
    with torch.inference_mode():
        branches = model.forward_branches(golden.images.to(dtype))
    for actual, expected in zip(branches, golden.logits, strict=True):
        assert_logits(actual, expected, dtype)

    assert len(outputs) == 12
    if golden.name.startswith("mmpretrain"):
        return  # logits only
    for number, expected in golden.meta["blocks"].items():
        x, tokens = (tensor.double() for tensor in outputs[int(number)])
        assert list(x.shape) == expected.pop("map_shape")
        assert list(tokens.shape) == expected.pop("tokens_shape")
        actual = {
            "map_mean": x.mean().item(),
            "map_std": x.std().item(),
            "tokens_mean": tokens.mean().item(),
            "tokens_std": tokens.std().item(),
            "cls_norm": tokens[:, 0].norm().item(),
        }
        assert actual == pytest.approx(expected, rel=STATISTICS[dtype]), f"block {number}"


@every_full_golden
@both_precisions
def test_training_step(golden: Golden, dtype: torch.dtype) -> None:
    expected = golden.meta["train"]
    model = build(golden, dtype).train()
    target = torch.tensor(expected["target"])
    conv, trans = model.forward_branches(golden.images.to(dtype))
    loss = (F.cross_entropy(conv, target) + F.cross_entropy(trans, target)) / 2
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=STATISTICS[dtype])

    assert not expected["no_grad"]
    grads = to_official({name: parameter.grad for name, parameter in model.named_parameters()})
    norms = {name: grad.double().norm().item() for name, grad in grads.items()}
    # BatchNorm subtracts the mean, and with it the bias of FCUUp's projection: that gradient is zero, stored
    # as the rounding error of some summation (1e-15; the smallest of the others is 1e-4). Here it has to
    # vanish against the gradient of the weight beside it.
    for name in [name for name in norms if name.endswith("expand_block.conv_project.bias")]:
        assert expected["grad_norm"].pop(name) < 1e-12
        assert norms.pop(name) < ZERO[dtype] * norms[name.replace("bias", "weight")], name
    assert norms == pytest.approx(expected["grad_norm"], rel=GRADIENTS[dtype], abs=0)

    buffers = to_official(dict(model.named_buffers()))
    means = {name: mean.double().norm().item() for name, mean in buffers.items() if "running_mean" in name}
    assert means == pytest.approx(expected["running_mean_norm"], rel=STATISTICS[dtype])


@each(list({golden.variant: golden for golden in GOLDENS}.values()))
def test_openmmlab_layout_holds_the_same_weights(golden: Golden) -> None:
    """Once per variant: that its names have others."""
    keys = json.loads((PARITY / f"keys_mmpretrain_{golden.variant}.json").read_text())
    assert {openmmlab_name(name) for name in official_weights(golden)} == keys.keys()
    expected = build(golden, torch.float32).state_dict()
    actual = build(golden, torch.float32, openmmlab=True).state_dict()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name
