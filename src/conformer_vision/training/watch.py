"""Watching losses and gradients without waiting for the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .seeding import Step


class Pass(NamedTuple):
    """What a forward pass was, as far as the host knows it."""

    epoch: int
    """From 1."""
    step: int
    """Optimizer steps done before."""
    lr: float
    indices: Tensor | None
    """Numbers of the images in their source (B,), where the batch says them."""
    seeds: Step | None


class Found(NamedTuple):
    """The first pass that was not finite, or the last one if all were."""

    bad: bool
    at: Pass
    images: Tensor
    """(B, C, H, W) that the network saw."""
    parameter: str | None
    """The first parameter whose gradient was not finite, if the loss was finite."""


class Watch:
    """Keeps on the device whether a loss or a gradient was not finite, and the first pass in which it was.

    After such a pass the images and the weights of that pass are kept, whatever later steps make of them. All
    of it is computed where the network is: the host waits in `found` alone. It takes the memory of two copies
    of the weights that learn, and of one batch.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew; every pass so far was finite."""
        self.passes: list[Pass] = []
        self._bad: Tensor | None = None  # () bool: a pass was not finite
        self._spoiled: Tensor | None = None  # () bool: and its optimizer step was taken
        self._at: Tensor | None = None  # () int64: which of the passes
        self._images: Tensor | None = None
        self._norms: Tensor | None = None  # of the gradients by parameter
        self._names: list[str] = []
        self._weights: Tensor | None = None  # before the optimizer step, all in one
        self._learning: list[nn.Parameter] = []

    def loss(self, at: Pass, images: Tensor, loss: Tensor) -> None:
        """Look at the loss of a pass, before its backward pass."""
        images, finite = images.detach(), torch.isfinite(loss.detach()).all()
        self.passes.append(at)
        number = len(self.passes) - 1
        if self._bad is None or self._at is None or self._images is None:
            self._bad, self._images = ~finite, images
            self._spoiled, self._at = (
                torch.zeros_like(self._bad),
                torch.zeros_like(self._bad, dtype=torch.int64),
            )
            return
        if self._images.shape == images.shape and self._images.dtype == images.dtype:
            self._images = torch.where(self._bad, self._images, images)
        elif not bool(self._bad):  # images of another size are rare enough to wait for it
            self._images = images
        # Given the number itself, torch would copy it to the device and wait.
        self._at = torch.where(self._bad, self._at, torch.full_like(self._at, number))
        self._bad = self._bad | ~finite

    def gradients(self, network: nn.Module) -> None:
        """Look at the gradients of all parameters, before the optimizer step."""
        assert self._bad is not None
        found = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
        norms = torch.stack([norm.to(self._bad.device) for norm in torch._foreach_norm(list(found.values()))])
        if self._names != list(found):  # the first step, or other layers learn from now on
            if self._names and bool(self._bad):
                return
            self._norms, self._names = torch.zeros_like(norms), list(found)
        assert self._norms is not None
        self._norms = torch.where(self._bad, self._norms, norms)
        self._bad = self._bad | ~torch.isfinite(norms).all()

    @torch.no_grad()
    def before_step(self, network: nn.Module) -> None:
        """Keep the weights, as the host will learn only later whether the step spoils them."""
        assert self._bad is not None and self._spoiled is not None
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        known = set(map(id, self._learning))
        if self._weights is not None and known == set(map(id, learning)):
            torch.where(self._spoiled, self._weights, _joined(self._learning), out=self._weights)
        elif self._weights is None or not bool(self._spoiled):
            self._weights, self._learning = _joined(learning), learning
        elif new := [parameter for parameter in learning if id(parameter) not in known]:
            self._weights = torch.cat([self._weights, _joined(new)])  # no step has spoiled these yet
            self._learning = [*self._learning, *new]
        self._spoiled = self._bad

    @torch.no_grad()
    def found(self) -> Found:
        """Wait for the device and return what was found; at least one pass must have been watched.

        If it is bad, the weights are put back to what they were in that pass.
        """
        assert self._bad is not None and self._images is not None and self._at is not None
        if not bool(self._bad):
            return Found(False, self.passes[-1], self._images, None)
        if bool(self._spoiled) and self._weights is not None:
            sizes = [parameter.numel() for parameter in self._learning]
            for parameter, values in zip(self._learning, self._weights.split(sizes), strict=True):
                parameter.copy_(values.view_as(parameter))
        finite = [] if self._norms is None else torch.isfinite(self._norms).tolist()
        bad = [name for name, each in zip(self._names, finite, strict=True) if not each]
        return Found(True, self.passes[int(self._at)], self._images, bad[0] if bad else None)


def _joined(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in parameters])
