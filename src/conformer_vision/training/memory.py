"""How much memory training takes, and the largest batch that fits."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial

import psutil
import torch
from torch import Tensor, nn

from ..available import available_memory
from ..errors import UserError, machine_error, option
from ..memory import needed_memory

_SHARE = 0.85
"""Share of the free memory to fill; the rest is for data loading, validation and fragmentation."""
_FIRST, _LARGEST = 2, 4096
RESERVE, PER_WORKER = 400 << 20, 50 << 20
"""Bytes that a run takes besides its steps, for validation, checkpoints and curves, and for each worker."""


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far, in bytes: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def largest_batch(
    model: nn.Module,
    image_shape: tuple[int, ...],
    *,
    precision: str,
    device: torch.device,
    most: int = _LARGEST,
) -> int:
    """Find the largest power of two for which a training step fits into memory.

    On a GPU larger and larger steps are tried until memory runs out. On a CPU the system would kill the
    process at that point (so lightning's batch-size finder does not serve), and the need is calculated.

    Args:
        model: on the device.
        image_shape: (C, H, W).
        precision: as in `HardwareConfig`.
        device: where it runs.
        most: upper limit.

    Raises:
        UserError: not even two images fit.
    """
    find = _fits_in_main_memory if device.type == "cpu" else _fits_on_gpu
    fits = find(model, image_shape, partial(training_step, precision=precision), device)
    size, found = max(min(_FIRST, most), 1), 0
    while size <= most and fits(size):
        found = size
        size *= 2
    if not found:
        smaller = f"a smaller {option('model')}, a smaller {option('input_size')}"
        raise UserError(
            f"batch_size auto: not even {min(_FIRST, most)} images fit into the memory of {device}; "
            f"give {smaller} or {option('grad_checkpointing')}"
        )
    return found


def training_step(model: nn.Module, images: Tensor, *, precision: str) -> list[Tensor]:
    """Take as much memory as a step with AdamW; return its state.

    Args:
        model: is put into training mode.
        images: (B, C, H, W), on the model's device.
        precision: as in `HardwareConfig`.
    """
    model.train()
    # AdamW's two moments of every weight.
    state = [torch.zeros(2, *weight.shape, device=images.device) for weight in model.parameters()]
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with torch.autocast(images.device.type, dtype=dtype, enabled=precision != "32"):
        output = model(images)
    outputs = [output] if isinstance(output, Tensor) else list(output)
    loss = torch.stack([logits.float().square().mean() for logits in outputs]).sum()
    loss.backward()
    model.zero_grad(set_to_none=True)
    return state


Step = Callable[[nn.Module, Tensor], object]


def _fits_in_main_memory(
    model: nn.Module, image_shape: tuple[int, ...], step: Step, device: torch.device
) -> Callable[[int], bool]:
    two, four = (needed_memory(model, step, (images, *image_shape)) for images in (2, 4))
    return lambda size: RESERVE + two + (size - 2) * (four - two) / 2 <= _SHARE * available_memory()


def _fits_on_gpu(
    model: nn.Module, image_shape: tuple[int, ...], step: Step, device: torch.device
) -> Callable[[int], bool]:
    def fits(size: int) -> bool:
        try:
            step(model, torch.zeros(size, *image_shape, device=device))
        except RuntimeError as error:
            if machine_error(error) is None:
                raise
            return False
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if device.type != "cuda":
            return True
        return peak_memory(device) <= _SHARE * torch.cuda.mem_get_info(device)[1]

    return fits
