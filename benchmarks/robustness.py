"""Accuracy on rotated, scaled or shifted images, as in the paper's comparison of networks.

    python benchmarks/robustness.py runs/a/last.safetensors --data tiny20-val.parquet

Empty borders are filled with the mean colour.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, affine

from conformer_vision.data import evaluation_loader, open_images, require_source
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runtime.base import FUSED


def _moved(images: Tensor, *, angle: float = 0.0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Rotate images (B, C, H, W) by degrees, scale them, and shift them right and down by a share of them."""
    pixels = [round(shift * images.shape[3]), round(shift * images.shape[2])]
    return affine(images, angle, pixels, scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)


MOVEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "turned by 15°": partial(_moved, angle=15),
    "turned by 30°": partial(_moved, angle=30),
    "turned by 60°": partial(_moved, angle=60),
    "0.5 times the size": partial(_moved, scale=0.5),
    "1.5 times the size": partial(_moved, scale=1.5),
    "shifted by 1/8": partial(_moved, shift=1 / 8),
    "shifted by 1/4": partial(_moved, shift=1 / 4),
}


def moved_accuracy(weights: Path, data: Path) -> dict[str, float]:
    """Compute the top-1 accuracy of the prediction under every movement, in [0, 1].

    Args:
        weights: A run folder or weights file.
        data: Labelled images, all of which are used.
    """
    trained = TrainedModel(weights, device="auto")
    source = require_source(open_images(data, "all", classes=trained.spec.classes), name=data)
    right = dict.fromkeys(MOVEMENTS, 0)
    transform = trained.transform.then(torch.from_numpy)
    for batch in evaluation_loader(source, transform, batch_size=64, workers=0):
        for name, move in MOVEMENTS.items():
            answers = trained.runtime(move(batch.images).contiguous().numpy())[FUSED].argmax(1)
            right[name] += int((answers == batch.labels.numpy()).sum())
    return {name: count / len(source) for name, count in right.items()}


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description="Accuracy on rotated, scaled and shifted images")
    parser.add_argument("weights", type=Path, help="a run folder or its .safetensors file")
    parser.add_argument("--data", type=Path, required=True, help="labelled images")
    options = parser.parse_args()
    for name, top1 in moved_accuracy(options.weights, options.data).items():
        print(f"{name:20} {top1:.1%}")


if __name__ == "__main__":
    main()
