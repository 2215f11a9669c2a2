"""Trainings of a second: a shallow Conformer on a few coloured images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from command_line import NETWORK
from conformer_vision.training import TrainConfig

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
PREFIXES = {"red": "l", "green": "ax", "blue": "bd"}
"""Of the images' names: by their hashes 1, 3, 4 and 6 of each class are held out for 0.1, 0.25, 0.3, 0.5."""
TINY: dict[str, Any] = {
    "model": "conformer_nano_patch8_64",
    "pretrained": False,
    "model_kwargs": NETWORK,
    "input_size": 32,
    "batch_size": 8,
    "max_steps": 2,
    "workers": 0,
    "device": "cpu",
    "progress": "plain",
    "linear": "matmul",  # left open it would be measured; test_linear.py does
    "report": False,  # takes longer than two steps; test_run.py looks at it
}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy images in each of three colours."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(12):
            noisy = np.array(colour) + rng.integers(-40, 41, (36, 40, 3))
            Image.fromarray(noisy.astype(np.uint8)).save(root / name / f"{PREFIXES[name]}{number}.png")
    return root


@pytest.fixture(scope="session")
def tiny(images: Path) -> Callable[..., TrainConfig]:
    """The configuration of a tiny training, with changes."""

    def make(**changes: Any) -> TrainConfig:
        return TrainConfig.from_options(**{"data": str(images)} | TINY | changes)

    return make


def _weights(run: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


@pytest.fixture(scope="session")
def weights() -> Callable[..., dict[str, torch.Tensor]]:
    """The weights in a run folder."""
    return _weights
