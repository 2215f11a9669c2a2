"""How many multiply-adds per second the machine does in large matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from conformer_vision.export.formats import Precision

_SIZES = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
_RUNS = 5
_LONGEST = 1.0
"""Seconds of one product after which no larger one is tried."""
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def measure_ceilings(
    precisions: Iterable[Precision], device: torch.device, *, sizes: Sequence[int] | None = None
) -> dict[Precision, float]:
    """Multiply-adds per second of the fastest product of two square matrices, by PyTorch.

    Args:
        precisions: to measure; fp32 always is. int8 is left out where PyTorch has no product of it that is
            faster than that of fp32.
        device: where.
        sizes: of the matrices.
    """
    sizes = sizes or _SIZES.get(device.type, _SIZES["cpu"])
    rates: dict[Precision, float] = {"fp32": _fastest("fp32", device, sizes)}
    for precision in dict.fromkeys(precisions):
        if precision in rates:
            continue
        try:
            rate = _fastest(precision, device, sizes)
        except (RuntimeError, NotImplementedError):  # no such product on this device
            continue
        if precision != "int8" or rate > rates["fp32"]:
            rates[precision] = rate
    return rates


def _fastest(precision: Precision, device: torch.device, sizes: Sequence[int]) -> float:
    best = 0.0
    for size in sizes:
        product = _product(precision, size, device)
        times = []
        for _ in range(1 + _RUNS):
            begin = time.perf_counter()
            product()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
            if times[-1] > _LONGEST:
                break
        best = max(best, size**3 / min(times))
        if min(times) > _LONGEST / 8:  # the next one has 8 times the work
            break
    return best


def _product(precision: Precision, size: int, device: torch.device) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    if precision == "int8":
        a, b = (
            torch.randint(-127, 128, (size, size), generator=generator, dtype=torch.int8).to(device)
            for _ in range(2)
        )
        return lambda: torch._int_mm(a, b)
    x, y = (torch.randn(size, size, generator=generator).to(device, _TYPES[precision]) for _ in range(2))
    return lambda: x @ y
