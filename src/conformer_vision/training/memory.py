"""How much memory training takes, and the largest batch that fits."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from ..errors import UserError

_SHARE = 0.85
"""Share of the free memory to fill; the rest is for data loading, validation and fragmentation."""
_FIRST, _LARGEST = 2, 4096


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far, in bytes: of tensors on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def largest_batch(step: Callable[[int], None], device: torch.device, *, most: int = _LARGEST) -> int:
    """Find the largest power of two for which a training step fits into memory.

    On a GPU larger and larger steps are tried until memory runs out. On a CPU the system would kill the
    process at that point (so lightning's batch-size finder does not serve), and the need is extrapolated from
    smaller steps.

    Args:
        step: runs a training step on the given number of images.
        device: where it runs.
        most: upper limit.

    Raises:
        UserError: not even two images fit.
    """
    size, fits = max(min(_FIRST, most), 1), 0
    needs: list[tuple[int, int]] = []
    while size <= most:
        if len(needs) >= 2 and _expected(needs, size) > _available(device, needs[-1][1]):
            break
        try:
            step(size)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            break
        finally:
            _release(device)
        needs.append((size, peak_memory(device)))
        fits = size
        size *= 2
    if not fits:
        raise UserError(
            f"batch_size auto: not even {min(_FIRST, most)} images fit into the memory of {device}; "
            "give a smaller model, a smaller input_size or grad_checkpointing"
        )
    return fits


def training_step(
    model: nn.Module, *, image_shape: tuple[int, ...], precision: str, device: torch.device
) -> Callable[[int], None]:
    """Make a training step that takes as much memory as a real one with AdamW.

    Args:
        model: on the device, in training mode.
        image_shape: (C, H, W).
        precision: as in `HardwareConfig`.
        device: where it runs.
    """
    # AdamW's two moments of every weight.
    state = [torch.zeros(2, *parameter.shape, device=device) for parameter in model.parameters()]
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16

    def step(size: int) -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=precision != "32"):
            output = model(torch.zeros(size, *image_shape, device=device))
        outputs = [output] if isinstance(output, Tensor) else list(output)
        loss = torch.stack([logits.float().square().mean() for logits in outputs]).sum()
        loss.backward()
        model.zero_grad(set_to_none=True)
        state[0].zero_()  # keeps the state alive as long as the steps

    return step


def _expected(needs: list[tuple[int, int]], size: int) -> float:
    (a, first), (b, last) = needs[-2:]
    return last + (size - b) * max(last - first, 0) / (b - a)


def _available(device: torch.device, used: int) -> float:
    if device.type == "cuda":
        return float(_SHARE * torch.cuda.mem_get_info(device)[1])
    return float(used + _SHARE * psutil.virtual_memory().available)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
