"""Whether the Linear layers of a run compute as matrix products or as convolutions."""

from __future__ import annotations

import torch
from torch import nn

from ..models.pointwise import pointwise_is_faster
from .groups import HardwareConfig, LinearKernel
from .precision import FLOAT32


def choose_linear(
    model: nn.Module, hardware: HardwareConfig, *, device: torch.device, processes: int
) -> LinearKernel:
    """Return the kernel that is asked for, or where it is left open the faster one.

    Both give the same gradients up to rounding. Which one is faster is measured for a single process in
    float32 on the CPU. It is not where the answer is known: other types and devices have good matrix
    products, torch.compile chooses for itself, and processes that measure alone could choose differently.

    Args:
        model: as it will be trained.
        hardware: with the precision decided.
        device: where the run computes.
        processes: of the run.
    """
    if hardware.linear != "auto":
        return hardware.linear
    is_open = hardware.precision == FLOAT32 and device.type == "cpu" and not hardware.compile
    if is_open and processes == 1 and pointwise_is_faster(model, backward=True):
        return "convolution"
    return "matmul"
