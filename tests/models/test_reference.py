"""Every variant against the plain formulation of the same network (`tests/oracle`), in float64."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import training_step
from conformer_pairs import build_pair, count_macs, plain_config
from conformer_vision import VARIANTS, Conformer, load_checkpoint
from conformer_vision.models.checkpoints import to_official
from plain_conformer import PUBLISHED, ReferenceConformer, build_reference, randomize_

NANO = [name for name in VARIANTS if "nano" in name]
# Not square, and padded both ways; the published stem with a second size, where that is cheap.
SIZES = [(name, (33, 50)) for name in VARIANTS] + [
    (name, (97, 64))
    for name in ("conformer_nano_patch16_224", "conformer_tiny_patch16_224", "conformer_small_patch32_224")
]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_close(actual: Tensor, expected: Tensor, what: str) -> None:
    """To 1e-9 of the largest value: float64 rounding after twelve blocks."""
    error = (actual - expected).abs().max().item()
    assert error <= 1e-9 * expected.abs().max().item(), f"{what} differs by {error:.2e}"


def assert_same_logits(model: Conformer, reference: ReferenceConformer, images: Tensor) -> None:
    with torch.inference_mode():
        actual, expected = model.eval().forward_branches(images), reference.eval()(images)
    assert_close(actual.conv, expected.conv, "the convolution head")
    assert_close(actual.trans, expected.trans, "the transformer head")


@pytest.mark.parametrize(("name", "size"), SIZES, ids=[f"{name}-{h}x{w}" for name, (h, w) in SIZES])
def test_predicts_and_trains_as_the_plain_formulation(name: str, size: tuple[int, int]) -> None:
    in_chans, num_classes = (1, 7) if size == (33, 50) else (4, 12)
    model, reference = build_pair(name, seed=sum(size), in_chans=in_chans, num_classes=num_classes)
    model.double()
    reference.double()
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(2, in_chans, *size, generator=generator, dtype=torch.float64)
    target = torch.randint(num_classes, (2,), generator=generator)
    assert_same_logits(model, reference, images)

    for branches in (model.train().forward_branches(images), reference.train()(images)):
        ((F.cross_entropy(branches.conv, target) + F.cross_entropy(branches.trans, target)) / 2).backward()
    ours = to_official({name: parameter.grad for name, parameter in model.named_parameters()})
    plain = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert ours.keys() == plain.keys()
    for key, expected in plain.items():
        # The bias before FCUUp's BatchNorm has no gradient but rounding errors of its weight's.
        like = (
            plain[key.replace("bias", "weight")]
            if key.endswith("expand_block.conv_project.bias")
            else expected
        )
        error = (ours[key] - expected).norm().item()
        assert error <= 1e-8 * like.norm().item(), f"the gradient of {key} differs by {error:.2e}"

    ours, plain = to_official(dict(model.named_buffers())), dict(reference.named_buffers())
    assert ours.keys() == plain.keys()
    for key, expected in plain.items():
        assert_close(ours[key], expected, key)


@cache
def nano_pair(name: str) -> tuple[Conformer, ReferenceConformer]:
    model, reference = build_pair(name, seed=3, num_classes=5)
    return model.double(), reference.double()


@pytest.mark.parametrize("name", NANO)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(height=st.integers(32, 80), width=st.integers(32, 80), seed=st.integers(0, 1000))
def test_predicts_as_the_plain_formulation_at_any_size(name: str, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64)
    assert_same_logits(*nano_pair(name), images)


def test_normalises_faint_tokens_as_the_plain_formulation() -> None:
    # Tokens usually have grown past any eps of the norms (the class token doubles in every block). Here they
    # stay so small that each LayerNorm's eps decides what it gives.
    model, reference = build_pair("conformer_nano_patch16_224", seed=4, num_classes=5)
    entries = reference.state_dict()
    for name, tensor in entries.items():
        if name == "cls_token" or ".attn.proj." in name or ".mlp.fc2." in name or "patch_conv" in name:
            tensor.mul_(1e-6)
        elif ".squeeze_block.conv_project." in name:
            tensor.mul_(1e-3)
        elif ".squeeze_block.ln." in name:
            tensor.mul_(1e-4)
    load_checkpoint(model, entries)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same_logits(model.double(), reference.double(), images)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_plain_formulation_has_the_official_names_in_order(variant: str, shared_dir: Path) -> None:
    keys = json.loads((shared_dir / "parity" / f"keys_official_{variant}.json").read_text())
    with torch.device("meta"):
        entries = build_reference(variant).state_dict()
    assert [(name, list(tensor.shape)) for name, tensor in entries.items()] == list(keys.items())


@pytest.mark.parametrize(
    ("variant", "parameters", "gmacs"),
    [
        ("tiny_patch16", 23_524_704, 5.226),
        ("small_patch16", 37_673_424, 10.599),
        ("small_patch32", 38_853_072, 7.046),
        ("base_patch16", 83_289_136, 23.326),
    ],
)
def test_published_parameters_and_macs(variant: str, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        model, reference = timm.create_model(f"conformer_{variant}_224"), build_reference(variant)
    assert count_parameters(model) == count_parameters(reference) == parameters
    assert plain_config(model) == reference.config
    plain = count_macs(reference, (3, 224, 224))
    assert round(plain / 1e9, 3) == gmacs

    # Pooling before the projection of FCUDown saves its work on all but one cell per token, nothing else.
    config, saved = reference.config, 0
    for block in range(2, 13):
        ratio = config.token_stride // config.scales[block - 1]
        tokens = (224 // config.patch_size) ** 2
        saved += tokens * (ratio**2 - 1) * (config.width(block) // 4) * config.embed_dim
    assert count_macs(model, (3, 224, 224)) == plain - saved


@pytest.mark.parametrize("doubled", [True, False])
def test_the_class_token_doubled_or_not(doubled: bool) -> None:
    with torch.device("meta"):
        model = timm.create_model("conformer_nano_patch8_64", num_classes=5, double_class_token=doubled)
        reference = ReferenceConformer(plain_config(model))
    randomize_(reference.to_empty(device="cpu"), 0)
    load_checkpoint(model.to_empty(device="cpu"), reference.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_same_logits(model.double(), reference.double(), images)


def test_no_plain_formulation_of_another_network() -> None:
    with pytest.raises(ValueError, match="upsample='bilinear'"):
        plain_config(timm.create_model("conformer_nano_patch4_32", upsample="bilinear"))


def test_training_steps_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "step.json"
    command = "training_step.py --models conformer_nano_patch8_64 --size 32 --batch 4 --repeats 1"
    command += " --checkpointing cheap"
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", [*command.split(), "--json", str(figures)])
    measured = training_step.memory_in_own_process

    def of_plain_alone(name: str, which: str, given: Any) -> float:
        """A process takes seconds to start."""
        return measured(name, which, given) if which == "plain" else 100.0

    monkeypatch.setattr(training_step, "memory_in_own_process", of_plain_alone)
    monkeypatch.setattr(training_step, "measure_ceilings", lambda kinds, _: dict.fromkeys(kinds, 1e11))
    training_step.main()
    assert torch.get_num_threads() == threads
    assert f"torch {torch.__version__}" in capsys.readouterr().out
    rows = json.loads(figures.read_text())["rows"]
    assert [row["checkpointing"] for row in rows] == ["cheap"]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["plain_ms"] / row["ours_ms"])
        # The optimiser's state alone is twice the weights, and the gradients are as many.
        weights = count_parameters(timm.create_model("conformer_nano_patch8_64"))
        assert row["plain_mb"] > 4 * 4 * weights / 2**20
        assert row["gradients_apart"] < 0.1, "of the same weights and images"
