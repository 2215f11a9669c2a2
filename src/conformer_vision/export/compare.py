"""Compare a written file with the model that it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.inference.decisions import is_present, to_probabilities
from conformer_vision.inference.runtimes import FUSED, open_runtime
from conformer_vision.inference.runtimes.base import heads
from conformer_vision.runs import ModelSource
from conformer_vision.spec import ModelSpec

from .formats import Format, Precision
from .graph import has_fixed_size

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1, "int8": 5e-1}
"""Largest difference of an image's logits, relative to their norm; a file beyond it is wrong."""

Logits = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Difference:
    """How far the answers of a file are from its model's."""

    relative: float
    """Largest over images and heads: norm of the logits' difference over the norm of the logits."""
    probability: float
    """Largest difference of a probability of the prediction, at temperature 1."""
    agreement: float
    """Share of the images with the same first class, or of several labels per image the same classes."""
    images: int
    """Number of images, in batches of several sizes."""


def open_written(path: Path, entry: Format) -> Logits:
    """Open a file that was just written: images (B, C, H, W) to logits per head."""
    if entry.runtime is not None:
        return open_runtime(ModelSource(entry.runtime, path), device="cpu")
    logits: Logits = import_module(f".{entry.module}", __package__).read(path)
    return logits


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of logits (B, K) over the norm of those expected; the worst image's.

    It is infinite where either is not finite.
    """
    error = (actual.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    return float(error.nan_to_num(torch.inf, torch.inf).max())


def compare(
    written: Logits,
    model: nn.Module,
    spec: ModelSpec,
    images: Tensor,
    *,
    precision: Precision,
    temperature: float = 1.0,
) -> Difference:
    """Compare a file with its model: on all images at once, on one alone, and on images of another size.

    Args:
        written: The file, opened.
        model: In eval mode, float32, on the CPU.
        spec: The model's specification.
        images: (B, C, H, W), real ones as the model takes them.
        precision: Precision of the file.
        temperature: Divisor of the model's logits that is in the file's heads.

    Raises:
        UserError: The answers differ by more than the precision explains, or the file cannot be run.
    """
    batches = [images, images[:1]]
    if not has_fixed_size(model, spec):
        height, width = images.shape[2:]
        batches.append(F.interpolate(images[:2], size=(height + 17, width + 32), mode="bilinear"))
    relative, probability, same = 0.0, 0.0, []
    for batch in batches:
        with torch.inference_mode():
            expected = {head: logits / temperature for head, logits in heads(model, batch).items()}
        try:
            actual = written(batch)
        except Exception as error:  # every runtime has its own
            shape = "x".join(map(str, batch.shape))
            raise UserError(
                f"{spec.model} exported cannot take {shape} images ({first_line(error)})"
            ) from error
        if actual.keys() != expected.keys():
            raise UserError(f"the file has the heads {', '.join(actual)}, not {', '.join(expected)}")
        for head, logits in expected.items():
            relative = max(relative, relative_difference(actual[head], logits))
        first, second = actual[FUSED], expected[FUSED]
        scale = temperature / spec.temperature  # what of the temperature is not in the heads
        ours, theirs = (to_probabilities(each * scale, spec) for each in (first, second))
        probability = max(probability, float((ours - theirs).abs().max()))
        same.append((is_present(ours, spec) == is_present(theirs, spec)).all(dim=1))
    agreement = torch.cat(same).float()
    difference = Difference(relative, probability, float(agreement.mean()), len(agreement))
    if not relative <= TOLERANCES[precision]:
        raise UserError(
            f"the {precision} file's logits differ from the model's by {relative:.2g} of their norm, more"
            f" than {TOLERANCES[precision]:.0e}; it is not kept. Please report this with the model's name"
        )
    return difference
