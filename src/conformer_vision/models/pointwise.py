"""Linear layers computed as 1×1 convolutions, where PyTorch has a faster kernel for those.

Both are the same sums of the same products. On the CPU PyTorch leaves a float32 Linear to the BLAS library it
was built with, which on some processors uses half of the machine, and a convolution to oneDNN. Which one is
faster is measured, because neither the processor's name nor its instructions tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

WORTH = 1.3
"""The convolution is taken where it is this much faster: equal kernels stay below, a slow BLAS is beyond."""
_ROWS = 512
_ROUNDS = 7


class PointwiseLinear(nn.Linear):
    """A Linear layer that computes as a 1×1 convolution: (…, in) to (…, out)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in nn.Linear
        """Compute the outputs, differentiably."""
        return convolve(input, self.weight, self.bias)


def convolve(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `functional.linear` as a 1×1 convolution.

    Rows of contiguous memory are the pixels of one channels-last image, so nothing is copied.

    Args:
        rows: (…, in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (…, out).
    """
    if not rows.numel():
        return functional.linear(rows, weight, bias)
    pixels = rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)
    found = functional.conv2d(pixels, weight[:, :, None, None], bias)
    return found.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], weight.shape[0])


def use_pointwise(model: nn.Module) -> None:
    """Let every plain Linear layer compute as a convolution, in place.

    The modules stay the same objects with the same parameters, names and hooks. Subclasses of `nn.Linear`,
    parametrised layers among them, keep their own way.
    """
    for module in _plain_linears(model):
        module.__class__ = PointwiseLinear


def pointwise_is_faster(model: nn.Module, *, backward: bool = False) -> bool:
    """Measure whether the largest plain Linear layer is faster as a convolution, by `WORTH` at least.

    Takes a few hundredths of a second, draws no global random numbers, and leaves the model as it is.

    Args:
        model: On the CPU, with float32 weights; of any other the answer is no.
        backward: Measure a training step of the layer, gradients included.
    """
    layer = max(_plain_linears(model), key=lambda each: each.weight.numel(), default=None)
    if layer is None or layer.weight.device.type != "cpu" or layer.weight.dtype != torch.float32:
        return False
    numbers = torch.Generator().manual_seed(0)
    weight = torch.randn(layer.weight.shape, generator=numbers).requires_grad_(backward)
    bias = torch.zeros(layer.out_features)
    rows = torch.randn(_ROWS, layer.in_features, generator=numbers).requires_grad_(backward)
    above = torch.ones(_ROWS, layer.out_features)

    def run(compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
        begin = time.perf_counter()
        found = compute(rows, weight, bias)
        if backward:
            torch.autograd.grad(found, (rows, weight), above)
        return time.perf_counter() - begin

    with torch.inference_mode(False), torch.set_grad_enabled(backward):
        run(functional.linear), run(convolve)  # what is built or allocated only once
        taken = [(run(functional.linear), run(convolve)) for _ in range(_ROUNDS)]
    # What else runs makes single times longer, so it must win every round, and by much in the best.
    wins = all(plain > convolution for plain, convolution in taken)
    return wins and min(times[0] for times in taken) >= WORTH * min(times[1] for times in taken)


def _plain_linears(model: nn.Module) -> list[nn.Linear]:
    """Return the layers that are `nn.Linear` itself: a subclass may compute something else."""
    return [module for module in model.modules() if type(module) is nn.Linear]
