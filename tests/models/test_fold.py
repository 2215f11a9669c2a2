"""The folded network against the plain formulation and against the network it was folded from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conformer_pairs import build_pair
from conformer_vision import VARIANTS, Conformer
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model, save_model

NANO = [name for name in VARIANTS if "nano" in name]
CLASSES = ("a", "b", "c", "d", "e")


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["conformer_nano_patch4_32", "conformer_small_patch32_224"])
def test_agrees_with_the_plain_formulation(name: str, layout: torch.memory_format) -> None:
    """The contract has every variant against itself, unfolded; test_reference.py has that."""
    model, reference = build_pair(name, seed=1, num_classes=5)
    folded = model.eval().fold().to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(2, 3, 65, 50, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = reference.double().eval()(images.double())
        actual = folded.forward_branches(images.contiguous(memory_format=layout))
    assert relative(actual.conv, expected.conv) < 1e-5
    assert relative(actual.trans, expected.trans) < 1e-5


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(NANO),
    height=st.integers(32, 75),
    width=st.integers(32, 75),
    batch=st.integers(1, 3),
    upsample=st.sampled_from(["nearest", "bilinear"]),
    head_fusion=st.sampled_from(["mean", "sum"]),
    in_chans=st.sampled_from([1, 3, 4]),
    doubled=st.booleans(),
)
def test_any_size_and_option(
    name: str,
    height: int,
    width: int,
    batch: int,
    upsample: str,
    head_fusion: str,
    in_chans: int,
    doubled: bool,
) -> None:
    options = {"upsample": upsample, "head_fusion": head_fusion, "in_chans": in_chans}
    options["double_class_token"] = doubled
    model = trained(name, num_classes=3, depths=(2, 1, 2), **options).double()
    images = torch.randn(batch, in_chans, height, width, dtype=torch.float64)
    with torch.no_grad():
        assert relative(model.fold()(images), model(images)) < 1e-12


def trained(name: str, **options: object) -> Conformer:
    """A model whose BatchNorms have statistics and scales as after training."""
    torch.manual_seed(0)
    model: Conformer = timm.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model


def test_every_part_of_the_last_block_is_needed() -> None:
    """No token of the last block can be left out, nor any position of its map, without another answer."""
    model = trained("conformer_nano_patch8_64", num_classes=5).double()
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, Tensor]) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output
            seen[name].retain_grad()

        return hook

    last = model.blocks[-1]
    last.transformer.register_forward_hook(keep("tokens"))
    last.transformer.norm1.register_forward_hook(keep("keys and queries"))
    last.bottleneck.register_forward_hook(keep("map"))
    branches = model.forward_branches(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    for head, logits in branches._asdict().items():
        model.zero_grad()
        for tensor in seen.values():
            tensor.grad = None
        logits[0, 0].backward(retain_graph=True)
        tokens = seen["tokens"].grad
        assert tokens is not None
        used = tokens.abs().sum(2)[0] > 0
        # The transformer head reads the class token, FCUUp all the others.
        assert used.tolist() == [head == "trans"] + [head == "conv"] * (len(used) - 1)
        keys = seen["keys and queries"].grad
        assert keys is not None and bool((keys.abs().sum(2) > 0).all())
        if head == "conv":
            positions = seen["map"].grad
            assert positions is not None and bool((positions.abs().sum(1) > 0).all())


def test_saved_and_loaded(tmp_path: Path) -> None:
    name = "conformer_nano_patch8_64"
    model = trained(name, num_classes=5)
    spec = ModelSpec(name, classes=CLASSES, temperature=1.5)
    path = tmp_path / "folded.safetensors"
    save_model(model.fold(), spec, path)
    loaded, found = load_model(path)
    assert isinstance(loaded, Conformer) and loaded.folded
    assert found == replace(spec, folded=True)
    assert found.temperature == 1.5
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(images), model.fold()(images))
    save_model(model, found, path)  # the spec follows the model
    assert not load_model(path)[1].folded


def test_a_spec_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    other = timm.create_model("test_resnet", num_classes=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("conformer_vision.weights.replace", lambda spec, **_: spec)
        save_model(other, ModelSpec("test_resnet", classes=CLASSES, folded=True), path)
    with pytest.raises(UserError, match="is no Conformer"):
        load_model(path)
    with pytest.raises(UserError, match="folded must be true or false"):
        ModelSpec("test_resnet", classes=CLASSES, folded="yes")  # type: ignore[arg-type]
