"""Choosing the precision of a run by measuring a few steps in float32 and in bfloat16."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.plugins.precision import Precision as Plugin
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import machine_error
from .groups import HardwareConfig, Precision

FASTER = 1.2
"""Times as fast as in float32 that a step must be in bfloat16."""
FEWEST_STEPS = 50
"""Optimizer steps of a run that is worth the measurement, which takes about twenty."""
FLOAT32: Precision = "32"
BFLOAT16: Precision = "bf16-mixed"
_ROUNDS = 5
_LONG = 1.0
"""Seconds of a step above which the measured batch does not grow."""
_HOPELESS = 4.0
"""Times as long as in float32 that the first step may take in bfloat16; it prepares the later ones."""

MakeOptimizer = Callable[[nn.Module, Precision], Optimizer]


class Choice(NamedTuple):
    """The precision of a run."""

    precision: Precision
    line: str | None = None
    """Why, for the user."""
    seconds: float = 0.0
    """What the measurement took."""


def where_open(hardware: HardwareConfig, precision: Precision = FLOAT32) -> HardwareConfig:
    """Fill in the precision where it is left open."""
    return replace(hardware, precision=precision) if hardware.precision == "auto" else hardware


def as_before(hardware: HardwareConfig, decided: HardwareConfig) -> HardwareConfig:
    """Fill in what is left open with what was decided for another run, or for this one before."""
    linear = decided.linear if hardware.linear == "auto" else hardware.linear
    return replace(where_open(hardware, decided.precision), linear=linear)


def choose_precision(
    model: nn.Module,
    image_shape: tuple[int, ...],
    *,
    images: int,
    steps: float,
    device: torch.device,
    optimizer: MakeOptimizer,
    channels_last: bool = False,
) -> Choice:
    """Choose bfloat16 where a few steps in it are faster by `FASTER`, else float32.

    A step is forward, backward and optimizer, on a copy of the network and images of noise. The network, the
    random numbers and everything else stay as they are. Takes from a second to half a minute.

    Args:
        model: as it will be trained, but for its device and for torch.compile.
        image_shape: (C, H, W).
        images: per forward pass, of which fewer are taken where they take long.
        steps: of the run; a short one is trained in float32.
        device: where the run computes.
        optimizer: makes the optimizer that the run will have in a precision.
        channels_last: as in `HardwareConfig`.
    """
    if steps < FEWEST_STEPS or device.type not in ("cpu", "cuda"):
        return Choice(FLOAT32)
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Choice(FLOAT32, f"precision: {FLOAT32}, as this GPU has no bfloat16")
    began = time.perf_counter()
    generators = [torch.cuda.current_device()] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(generators):
            steps_of = _Steps(model, image_shape, device, optimizer, channels_last=channels_last)
            ratio, size = steps_of.compare(images), steps_of.size
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    of = f"a step of {size} images"
    if ratio >= FASTER:
        line = f"precision: {BFLOAT16}, {ratio:.2f} times as fast as {FLOAT32} in {of}"
    else:
        line = f"precision: {FLOAT32}; {BFLOAT16} is {ratio:.2f} times as fast in {of}"
    chosen = BFLOAT16 if ratio >= FASTER else FLOAT32
    return Choice(chosen, line, time.perf_counter() - began)


class _Steps:
    """Steps of a copy of a network in either precision."""

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, ...],
        device: torch.device,
        optimizer: MakeOptimizer,
        *,
        channels_last: bool,
    ) -> None:
        self.model = deepcopy(model).to(device).train()
        self.size = 2
        self._shape = image_shape
        self._device = device
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._optimizers = {each: optimizer(self.model, each) for each in (FLOAT32, BFLOAT16)}
        self._contexts = {each: plugin_of(each, device).forward_context for each in (FLOAT32, BFLOAT16)}

    def compare(self, most: int) -> float:
        """Return how many times as fast bfloat16 is, in steps of `most` images or of fewer."""
        self.size = min(self.size, most)
        images = self._noise(self.size)
        self._seconds(FLOAT32, images)
        full = self._seconds(FLOAT32, images)
        while self.size < most and full < _LONG:
            size = min(2 * self.size, most)
            try:
                larger = self._noise(size)
                self._seconds(FLOAT32, larger)
                full = self._seconds(FLOAT32, larger)
            except RuntimeError as error:
                if machine_error(error) is None:
                    raise
                break  # float32 does not fit into memory, but bfloat16 may
            self.size, images = size, larger
        half = self._seconds(BFLOAT16, images)
        if half > _HOPELESS * full:
            return full / half
        times = [(self._seconds(FLOAT32, images), self._seconds(BFLOAT16, images)) for _ in range(_ROUNDS)]
        return median(full for full, _ in times) / median(half for _, half in times)

    def _noise(self, size: int) -> Tensor:
        return torch.randn(size, *self._shape, device=self._device).contiguous(memory_format=self._layout)

    def _seconds(self, precision: Precision, images: Tensor) -> float:
        """Take one step and return its seconds."""
        optimizer = self._optimizers[precision]
        self._wait()
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with self._contexts[precision]():
            output = self.model(images)
        heads = [output] if isinstance(output, Tensor) else list(output)
        torch.stack([logits.float().square().mean() for logits in heads]).sum().backward()
        optimizer.step()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def plugin_of(precision: Precision, device: torch.device) -> Plugin:
    """Return what lightning makes of a precision, float32 or bfloat16."""
    return Plugin() if precision == FLOAT32 else MixedPrecision("bf16-mixed", device.type)


class SharedPrecision(Callback):
    """Gives every process the precision that the first one has chosen, before training.

    Args:
        precision: of this process, which counts in the first one.
        optimizer: makes the optimizer of the run in a precision.
    """

    def __init__(self, precision: Precision, *, optimizer: MakeOptimizer) -> None:
        self.precision = precision
        self.optimizer = optimizer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.precision = trainer.strategy.broadcast(self.precision)
        trainer.strategy.precision_plugin = plugin_of(self.precision, trainer.strategy.root_device)
        module: Any = pl_module
        module.optimizer = lambda model: self.optimizer(model, self.precision)
