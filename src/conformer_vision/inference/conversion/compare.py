"""Compare a written file with the model that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.inference.runtimes.network import heads
from conformer_vision.inference.runtimes.weights import to_array
from conformer_vision.runtime.base import FUSED, Array, Floats, Outputs
from conformer_vision.runtime.decisions import is_present, to_probabilities
from conformer_vision.spec import ModelSpec

from .formats import Precision
from .graph import has_fixed_size

TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 2e-1, "int8": 5e-1}
"""Largest difference of an image's logits, relative to their norm; a file beyond it is wrong."""

Logits = Callable[[Floats], dict[str, Floats]]
Compute = Callable[[Floats], Outputs]


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


def relative_difference(actual: Array, expected: Array) -> float:
    """Return the norm of the difference of logits (B, K) over the norm of those expected; the worst image's.

    It is infinite where either is not finite.
    """
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.linalg.norm(actual - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(np.nan_to_num(error, nan=np.inf, posinf=np.inf).max())


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

    @torch.inference_mode()
    def expected(batch: Floats) -> Outputs:
        found = heads(model, torch.from_numpy(batch))
        return Outputs({head: to_array(logits / temperature) for head, logits in found.items()}, None)

    return compare_outputs(
        lambda batch: Outputs(written(batch), None),
        expected,
        spec,
        (batch.numpy() for batch in batches),
        precision=precision,
        # what of the temperature is not in the heads
        temperature=spec.temperature / temperature,
    )


def compare_outputs(
    written: Compute,
    expected: Compute,
    spec: ModelSpec,
    batches: Iterable[Floats],
    *,
    precision: Precision,
    temperature: float,
) -> Difference:
    """Compare what a file and its model give for images: logits, and features where the model has any.

    Args:
        written: The file, opened.
        expected: The model.
        spec: The model's specification.
        batches: Images (B, C, H, W).
        precision: Precision of the file.
        temperature: Divisor of the logits for probabilities.

    Raises:
        UserError: As `compare`.
    """
    relative, probability, same = 0.0, 0.0, []
    for batch in batches:
        right = expected(batch)
        try:
            found = written(batch)
        except Exception as error:  # every runtime has its own
            shape = "x".join(map(str, batch.shape))
            raise UserError(
                f"{spec.model} exported cannot take {shape} images ({first_line(error)})"
            ) from error
        if found.logits.keys() != right.logits.keys():
            raise UserError(
                f"the file has the heads {', '.join(found.logits)}, not {', '.join(right.logits)}"
            )
        pairs = [(found.logits[head], logits) for head, logits in right.logits.items()]
        if right.features is not None:
            if found.features is None:
                raise UserError("the file gives no features")
            pairs.append((found.features, right.features))
        relative = max(relative, *(relative_difference(*pair) for pair in pairs))
        shares = [to_probabilities(each.logits[FUSED] / temperature, spec) for each in (found, right)]
        probability = max(probability, float(np.abs(shares[0] - shares[1]).max()))
        same.append((is_present(shares[0], spec) == is_present(shares[1], spec)).all(axis=1))
    agreement = np.concatenate(same)
    difference = Difference(relative, probability, float(agreement.mean()), len(agreement))
    if not relative <= TOLERANCES[precision]:
        raise UserError(
            f"the {precision} file's logits differ from the model's by {relative:.2g} of their norm, more"
            f" than {TOLERANCES[precision]:.0e}; it is not kept. Please report this with the model's name"
        )
    return difference
