"""Small run folders with random weights: what is tested is how a model is used, not how well it learned."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image

from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model, save_model

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "犬 ünï")


def write_run(folder: Path, spec: ModelSpec) -> Path:
    """A run folder whose network answers different images differently, and each head on its own."""
    folder.mkdir()
    torch.manual_seed(1)
    shape = {"num_classes": spec.num_classes, "in_chans": spec.in_chans}
    model = timm.create_model(spec.model, **shape, **spec.model_kwargs)
    batch = torch.randn(32, *spec.input_size)
    heads = [
        m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == spec.num_classes
    ]
    with torch.no_grad():
        for _ in range(5):  # running statistics that fit the activations
            model.train()(batch)
        model.eval()
        for head in heads:  # logits that spread around 0 with a deviation of 2
            seen: list[torch.Tensor] = []
            with head.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output)):
                model(batch)
            head.weight.mul_(2 / seen[0].std())
            head.bias.sub_(2 * seen[0].mean(dim=0) / seen[0].std())
    save_model(model, spec, folder / "best.safetensors")
    return folder


@pytest.fixture(scope="session")
def conformer_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ModelSpec(
        "conformer_nano_patch16_224", {"zero_init_last": False}, CLASSES, (3, 32, 32), crop_pct=1.0
    )
    return write_run(tmp_path_factory.mktemp("runs") / "conformer", spec)


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
