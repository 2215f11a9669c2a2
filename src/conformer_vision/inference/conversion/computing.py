"""What computes a model: PyTorch, or its conversion once that pays."""

from __future__ import annotations

import threading
import time

import numpy as np
import torch

from conformer_vision.console import note
from conformer_vision.errors import UserError, first_line, option
from conformer_vision.runtime.base import Floats, Runtime
from conformer_vision.runtime.onnx import find_providers
from conformer_vision.runtime.openvino import check_device, has_bfloat16

from .choice import CONVERTING_PAYS, LEAST_IMAGES, OPENING_PAYS, RuntimeChoice
from .formats import ONNX, OPENVINO, Format
from .original import Original

_TIMED = 4
"""Images that PyTorch is timed with."""


class Computing:
    """Decides what computes a model, as soon as it is known for how many images; threads may share it.

    Args:
        original: The model in PyTorch, on the CPU if another runtime is asked for.
        choice: What was asked for.
        device: Where it computes, as for `open_runtime`.

    Raises:
        UserError: A runtime that is asked for and not installed, without the precision, or not for the
            device; or a precision that the processor does not have.
    """

    def __init__(
        self, original: Original, choice: RuntimeChoice, *, device: str | torch.device = "auto"
    ) -> None:
        self._original: Original | None = original
        self._choice, self._device = choice, device
        self._runtime: Runtime = original.runtime
        self._entry = choice.find_format()
        self._settled = self._entry is None
        self._looked = False
        self._seconds: float | None = None
        self._lock = threading.Lock()
        if choice.is_asked_for:
            assert self._entry is not None
            self._check(self._entry)
        elif not original.runtime.on_cpu:
            self._settled = True
        else:
            self._device = "cpu"

    def runtime_for(self, images: int | None, *, batch_size: int) -> Runtime:
        """Return what computes so many images; None for a stream of unknown length.

        A model is converted at most once; from then on its conversion computes all images.

        Raises:
            UserError: A runtime that is asked for cannot compute the model.
        """
        if not self._settled:
            with self._lock:
                if not self._settled:
                    self._decide(images, batch_size)
        return self._runtime

    def _check(self, entry: Format) -> None:
        if entry is ONNX:
            find_providers(self._device)
        if entry is OPENVINO:
            check_device(self._device)
            if self._choice.precision == "bf16" and not has_bfloat16():
                name = option("precision", "bf16")
                raise UserError(f"{name}: this processor has no arithmetic in bfloat16; leave it out")

    def _decide(self, images: int | None, batch_size: int) -> None:
        if self._choice.is_asked_for:
            self._convert(make=True)
            return
        make = False
        if images is not None:
            if images < LEAST_IMAGES:
                return
            seconds = images * self._seconds_per_network(batch_size)
            if seconds < OPENING_PAYS:
                return
            make = seconds >= CONVERTING_PAYS
        if self._looked and not make:
            return
        self._looked = True
        try:
            self._convert(make=make)
        except Exception as error:  # each library that takes part has its own; PyTorch can always compute
            note(f"PyTorch computes instead: {first_line(error)}")
            self._settled = True

    def _convert(self, *, make: bool) -> None:
        from .convert import open_conversion  # which takes as long to import as to export

        assert self._entry is not None
        assert self._original is not None
        found = open_conversion(
            self._original,
            self._entry,
            self._choice.precision or "fp32",
            device=self._device,
            make=make,
        )
        if found is not None:
            self._runtime = found
            self._original = None  # which may be as large as the memory allows
            self._settled = True

    def _seconds_per_network(self, batch_size: int) -> float:
        """Return the seconds that PyTorch takes for an image, per network, as each has to be converted."""
        if self._seconds is None:
            original, number = self._original, min(_TIMED, batch_size)
            assert original is not None
            views = [
                np.zeros((number, original.spec.in_chans, *edges), np.float32) for edges in original.views
            ]
            self._seconds = (
                sum(time_of(original.runtime, view) for view in views) / number / original.spec.members
            )
        return self._seconds


def time_of(runtime: Runtime, images: Floats) -> float:
    """Return the seconds that a runtime takes for images (B, C, H, W), the second time."""
    runtime(images[:1])
    start = time.perf_counter()
    runtime(images)
    return time.perf_counter() - start
