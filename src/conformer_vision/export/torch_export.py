"""Files of ``torch.export``, for programs of one's own.

Loading such a file can run code that is in it. The package reads back only what it has just written, to check
it against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.inference.conversion.graph import build_program
from conformer_vision.inference.runtimes.weights import to_array
from conformer_vision.runtime.base import OUTPUTS, Floats
from conformer_vision.spec import METADATA_KEY, ModelSpec


def write(
    model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision, calibration: Sequence[Tensor] = ()
) -> tuple[str, ...]:
    """Write the graph with the weights, and the specification as the extra file ``conformer_vision``.

    Raises:
        UserError: The model cannot be exported.
    """
    buffer = BytesIO()  # torch's own writer aborts the process where the disk is full
    program = build_program(model, spec, precision)
    torch.export.save(program, buffer, extra_files={METADATA_KEY: spec.to_json()})
    path.write_bytes(buffer.getbuffer())
    return ()


def read(path: Path) -> Callable[[Floats], dict[str, Floats]]:
    """Load a file that `write` has just written: images (B, C, H, W) to logits per head."""
    program = torch.export.load(path).module()

    @torch.inference_mode()
    def logits(images: Floats) -> dict[str, Floats]:
        found = program(torch.from_numpy(images))
        return dict(zip(OUTPUTS, map(to_array, found), strict=False))  # one head or three

    return logits
