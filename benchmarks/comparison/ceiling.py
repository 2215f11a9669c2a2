"""How many multiply-adds per second the machine does in large matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.models.pointwise import convolve

Product = Callable[[], object]
Kind = Callable[[Precision, torch.device, int], Product]

_SIZES = {"cpu": (512, 1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
_RUNS = 5
_LONGEST = 1.0
"""Seconds of one product after which no larger one is tried."""
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def measure_ceilings(
    precisions: Iterable[Precision], device: torch.device, *, sizes: Sequence[int] | None = None
) -> dict[Precision, float]:
    """Multiply-adds per second of the fastest product of two square matrices.

    On the CPU that is the best of PyTorch's matrix product (a BLAS library, often MKL), its 1×1 convolution
    (oneDNN), and in float32 numpy's product (OpenBLAS), because each of them is slow on some processor.

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
    return max(_rate(partial(kind, precision, device), device, sizes) for kind in _kinds(precision, device))


def _rate(product_of: Callable[[int], Product], device: torch.device, sizes: Sequence[int]) -> float:
    """Return the best rate of one kind of product, over the sizes."""
    best = 0.0
    for size in sizes:
        product = product_of(size)
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


def _kinds(precision: Precision, device: torch.device) -> list[Kind]:
    """Return the ways to a product of two matrices that are worth a trial."""
    if precision == "int8":
        return [_integers]
    if device.type != "cpu":
        return [_by_blas]
    return [_by_blas, _by_convolution, *([_by_numpy] if precision == "fp32" else [])]


def _matrices(precision: Precision, device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    numbers = torch.Generator().manual_seed(0)
    first, second = (torch.randn(size, size, generator=numbers) for _ in range(2))
    return first.to(device, _TYPES[precision]), second.to(device, _TYPES[precision])


def _by_blas(precision: Precision, device: torch.device, size: int) -> Product:
    first, second = _matrices(precision, device, size)
    return lambda: first @ second


def _by_convolution(precision: Precision, device: torch.device, size: int) -> Product:
    first, second = _matrices(precision, device, size)
    return lambda: convolve(first, second, None)


def _by_numpy(precision: Precision, device: torch.device, size: int) -> Product:
    first, second = (matrix.numpy() for matrix in _matrices(precision, device, size))
    return lambda: first @ second


def _integers(precision: Precision, device: torch.device, size: int) -> Product:
    numbers = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(-127, 128, (size, size), generator=numbers, dtype=torch.int8).to(device)
        for _ in range(2)
    )
    return lambda: torch._int_mm(first, second)
