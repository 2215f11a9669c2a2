"""The models to measure: from where their weights come, and what they cost."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from conformer_vision.benchmark import sources
from conformer_vision.benchmark.config import BenchmarkConfig, Runtime
from conformer_vision.benchmark.sources import CLASSES, check_names, count_macs, first_spec, open_source
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

NANO = "conformer_nano_patch8_64"
CARD = ModelSpec(NANO, {}, CLASSES, (3, 32, 32))
OWN = ModelSpec(NANO, {"depths": [2, 1, 2]}, ("a", "b", "c"), (3, 32, 32))
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A small Conformer's file."""
    torch.manual_seed(1)
    save_model(timm.create_model(NANO, num_classes=3, depths=[2, 1, 2]), OWN, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_macs_of_known_layers() -> None:
    convolution, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    before = convolution.weight.clone()
    assert count_macs(model, (3, 10, 20)) == 3 * 8 * 9 * 10 * 20 + 8 * 5
    assert torch.equal(convolution.weight, before)


def test_random_weights_are_the_same_in_both_formulations_and_their_statistics_show() -> None:
    source = open_source(NANO, CARD)
    assert source.random
    assert source.reference is not None
    with torch.inference_mode():
        branches = source.reference(IMAGES)
        assert relative(source.model(IMAGES), (branches.conv + branches.trans) / 2) < 1e-5
    statistics = [module for module in source.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert statistics
    for module in statistics:
        assert module.running_mean is not None and module.running_mean.std() > 0.01
    # FCUDown of the plain formulation projects before it pools.
    assert source.macs(Runtime("reference")) > source.macs(Runtime("folded")) > 1e8


def test_a_run_keeps_its_weights_in_both_formulations(weights: Path) -> None:
    source = open_source(str(weights), first_spec(BenchmarkConfig(models=(str(weights),))))
    assert not source.random
    assert source.spec == OWN
    assert source.reference is not None
    with torch.inference_mode():
        branches = source.reference(IMAGES)
        assert relative(source.model(IMAGES), (branches.conv + branches.trans) / 2) < 1e-5


def test_no_plain_formulation_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    spec = replace(OWN, model_kwargs={"upsample": "bilinear"})
    save_model(timm.create_model(NANO, num_classes=3, upsample="bilinear"), spec, path)
    assert open_source(str(path), spec).reference is None


def test_folded_weights_are_measured_as_they_are(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "folded.safetensors"
    save_model(timm.create_model(NANO, num_classes=3, depths=[2, 1, 2]).eval().fold(), OWN, path)
    source = open_source(str(path), OWN)
    assert source.file == path
    assert source.file_runtime == Runtime("folded")
    assert source.macs(Runtime("folded")) == open_source(str(weights), OWN).macs(Runtime("eager"))


@pytest.mark.parametrize("precision", [None, "int8"])
def test_an_exported_file(precision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.touch()
    network = SimpleNamespace(spec=OWN, device=torch.device("cpu"), precision=precision)
    monkeypatch.setattr(sources, "open_runtime", lambda file, device: network)
    spec = first_spec(BenchmarkConfig(models=(str(path),), size=64))
    assert spec.input_size == (3, 64, 64)
    source = open_source(str(path), spec)
    assert source.file == path
    assert source.file_precision == precision
    assert source.file_runtime == Runtime("onnx", "int8" if precision else "fp32")
    assert source.reference is not None, "of the same size, for its time"
    assert source.parameters > 1e6
    with pytest.raises(UserError, match="runtimes has no effect on an exported file"):
        check_names(BenchmarkConfig(models=(str(path),), runtimes=("folded",)))


def test_a_peer_learns_the_size() -> None:
    source = open_source("vit_tiny_patch16_224", CARD)
    assert source.spec.model_kwargs == {"img_size": [32, 32]}
    assert source.model(IMAGES).shape == (2, 1000)
    assert source.reference is None
    with pytest.raises(UserError, match="vit_tiny_patch16_224 cannot") as caught:
        open_source("vit_tiny_patch16_224", replace(CARD, input_size=(3, 8, 8)))
    assert "\n" not in str(caught.value)


def test_a_size_that_the_model_does_not_take() -> None:
    with pytest.raises(UserError, match=r"size 1x1: .* cannot take it"):
        open_source("convnext_atto", replace(CARD, input_size=(3, 1, 1)))


def test_channels_that_differ(weights: Path) -> None:
    grey = ModelSpec(NANO, {}, ("a", "b"), (1, 32, 32), mean=(0.5,), std=(0.5,))
    with pytest.raises(UserError, match="takes images of 3 channels, the first model of 1"):
        open_source(str(weights), grey)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"models": ("conformer_nan_patch8_64",)},
            "did you mean conformer_nano",
        ),
        ({"peers": ("resnet5O",)}, "peers resnet5O: timm knows no such model"),
    ],
)
def test_unknown_names(config: dict[str, tuple[str, ...]], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_names(BenchmarkConfig(**config))  # type: ignore[arg-type]
