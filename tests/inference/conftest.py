"""Small run folders with random weights: what is tested is how a model is used, not how well it learned."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model
from exports import SPEC, write_run

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "犬 ünï")


@pytest.fixture(scope="session")
def conformer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "conformer", replace(SPEC, classes=CLASSES))


@pytest.fixture(scope="session")
def resnet_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec("test_resnet", {}, CLASSES[:4], (3, 40, 32), (0.5,) * 3, (0.2,) * 3, "bilinear")
    return write_run(tmp_path_factory.mktemp("runs") / "resnet", spec)


@pytest.fixture
def colours() -> Image.Image:
    """An image of 48 x 36 pixels without symmetry, of 64 colours (so that a GIF is lossless)."""
    y, x = np.mgrid[:36, :48]
    array = np.stack([x // 12 * 80, y // 9 * 80, (x + 2 * y) // 33 * 80], axis=-1)
    return Image.fromarray(array.astype(np.uint8))


@functools.cache
def _load(run: Path) -> tuple[torch.nn.Module, ModelSpec]:
    return load_model(run)


def _probabilities(run: Path, image: Image.Image) -> dict[str, torch.Tensor]:
    """Probabilities through timm's own transform and the model itself."""
    model, spec = _load(run)
    transform = timm.data.create_transform(
        spec.input_size,
        is_training=False,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    x = transform(image)[None]
    with torch.inference_mode():
        heads = {"fused": model(x)}
        if hasattr(model, "forward_branches"):
            heads |= model.forward_branches(x)._asdict()
    return {name: logits.softmax(1)[0] for name, logits in heads.items()}


@pytest.fixture(scope="session")
def probabilities() -> Callable[[Path, Image.Image], dict[str, torch.Tensor]]:
    """The independent answer for one image: head -> probabilities (K,)."""
    return _probabilities
