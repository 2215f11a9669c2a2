"""Weights with thresholds, and images for them."""

from pathlib import Path

import numpy as np
from PIL import Image

from conformer_vision.inference.fit import fit_thresholds
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.weights import Calibrated, save_calibration


def noise(count: int, *, seed: int = 0) -> list[Image.Image]:
    """Coarse images that differ enough for a network with random weights."""
    rng = np.random.default_rng(seed)
    return [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((40, 40))
        for _ in range(count)
    ]


def calibrated(run: Path, folder: Path) -> Path:
    """A copy of a run's weights with thresholds for noise."""
    path = folder / "copied.safetensors"
    path.write_bytes((run / "best.safetensors").read_bytes())
    trained = TrainedModel(path, device="cpu")
    outputs = trained.outputs(np.stack([trained.transform(image) for image in noise(100)]))
    labels = np.arange(100) % trained.spec.num_classes
    found = fit_thresholds(outputs, labels, spec=trained.spec, temperature=1.3)
    save_calibration(path, Calibrated(1.3, found.thresholds, found.class_means))
    return path
