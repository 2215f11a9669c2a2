"""Another input size than the model's own: as of a model whose spec says so."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

from conformer_vision.errors import UserError
from conformer_vision.inference import Evaluation, Predictor, evaluate
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model, save_model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the model's seven classes, four images each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "dog", "fox"):
        (root / name).mkdir()
        for number in range(4):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((80, 60)).save(root / name / f"{number}.png")
    return root


def loss(evaluation: Evaluation) -> float | None:
    return evaluation.heads["fused"].log_loss.value


@pytest.mark.parametrize(("given", "shape"), [(48, (48, 48)), ((40, 56), (40, 56))])
def test_input_size(
    conformer_run: Path, images: Path, tmp_path: Path, given: int | tuple[int, int], shape: tuple[int, int]
) -> None:
    model, spec = load_model(conformer_run)
    other = tmp_path / "other.safetensors"
    save_model(model, replace(spec, input_size=(3, *shape)), other)
    found = evaluate(conformer_run, images, split="all", device="cpu", input_size=given)
    expected = evaluate(other, images, split="all", device="cpu")
    assert found.confusion == expected.confusion
    assert loss(found) == pytest.approx(loss(expected))
    own = evaluate(conformer_run, images, split="all", device="cpu")
    assert loss(own) != pytest.approx(loss(expected))
    image = images / "ant" / "0.png"
    (answer,) = Predictor(conformer_run, device="cpu", input_size=given)(image)
    (same,) = Predictor(other, device="cpu")(image)
    assert answer.probabilities == pytest.approx(same.probabilities)


def test_sizes_that_cannot_be(conformer_run: Path, tmp_path: Path) -> None:
    for size, shown in ((0, "0x0"), ((32, -1), "32x-1"), (31, "31x31"), ((64, 1), "64x1")):
        with pytest.raises(UserError, match=f"input_size {shown}: each edge must be 32 pixels or more"):
            TrainedModel(conformer_run, device="cpu", input_size=size)
    fixed = tmp_path / "fixed.safetensors"
    small = {"embed_dim": 16, "depth": 1, "num_heads": 1, "img_size": [64, 64]}
    spec = ModelSpec("vit_tiny_patch16_224", small, ("a", "b"), (3, 64, 64))
    save_model(timm.create_model(spec.model, num_classes=2, **small), spec, fixed)
    message = r"input_size 96x96: vit_tiny_patch16_224 cannot take it \(.+\); its own size is 64x64"
    with pytest.raises(UserError, match=message):
        TrainedModel(fixed, device="cpu", input_size=96)
