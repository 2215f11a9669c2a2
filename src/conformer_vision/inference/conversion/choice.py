"""Which runtime computes a model, and in which precision. Nothing here imports torch or a runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from conformer_vision.errors import UserError, option
from conformer_vision.extras import MissingExtraError, check_installed
from conformer_vision.runs import ModelSource

from .formats import ONNX, OPENVINO, Format, Precision

RuntimeName = Literal["auto", "torch", "onnx", "openvino"]
CONVERTED: tuple[Format, ...] = (OPENVINO, ONNX)
"""The formats of the other runtimes, the fastest first (docs/performance.md)."""

LEAST_IMAGES = 100
"""With fewer images PyTorch computes: finding out how long that takes would cost too much of the time."""
CONVERTING_PAYS = 60.0
"""Seconds that PyTorch has to take for the images, per network, before a conversion pays.

OpenVINO takes about two thirds of PyTorch's time in float32 (docs/performance.md), so that twenty seconds are
saved, which is what a conversion costs.
"""
OPENING_PAYS = 6.0
"""The same, before it pays to open a conversion that is kept."""


@dataclass(frozen=True)
class RuntimeChoice:
    """What was asked for.

    Raises:
        UserError: An unknown name, or a precision that the runtime does not have.
    """

    runtime: RuntimeName = "auto"
    precision: Precision | None = None
    """None for float32, and for an exported file for its own."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("runtime", self.runtime, get_args(RuntimeName)),
            ("precision", self.precision, (None, *get_args(Precision))),
        ):
            if value not in known:
                choices = ", ".join(str(each) for each in known if each is not None)
                raise UserError(f"{option(name, value)}: must be one of {choices}")
        if self.runtime == "torch" and self.precision not in (None, "fp32"):
            others = ", ".join(each.name for each in CONVERTED if self.precision in each.precisions)
            name = option("precision", self.precision)
            raise UserError(f"{name}: the runtime torch has fp32; {self.precision} is in {others}")

    @property
    def is_asked_for(self) -> bool:
        """Whether another runtime than PyTorch is to compute, however many images there are."""
        return self.runtime in ("onnx", "openvino") or self.precision not in (None, "fp32")

    def find_format(self) -> Format | None:
        """Return the format of the runtime that may compute; None for PyTorch alone.

        Raises:
            UserError: One is asked for that is not installed, or does not have the precision.
        """
        if self.runtime == "torch":
            return None
        precision = self.precision or "fp32"
        if self.runtime != "auto":
            entry = next(each for each in CONVERTED if each.name == self.runtime)
            entry.check(precision, among=CONVERTED)
            return entry
        possible = [each for each in CONVERTED if precision in each.precisions]
        installed = [each for each in possible if _is_installed(each)]
        if not installed and self.is_asked_for:
            check_installed(*possible[0].libraries)
        return installed[0] if installed else None


def check_export(choice: RuntimeChoice, source: ModelSource, *, precision: str) -> None:
    """Refuse a choice for an exported file that is not the file's own runtime and precision.

    Raises:
        UserError: It is another.
    """
    remedy = "leave it out, or give what the file was exported from"
    if choice.runtime not in ("auto", source.kind):
        name = option("runtime", choice.runtime)
        raise UserError(f"{name}: {source.path} is a file for {source.kind}; {remedy}")
    if choice.precision not in (None, precision):
        name = option("precision", choice.precision)
        raise UserError(f"{name}: {source.path} computes in {precision}; {remedy}")


def _is_installed(entry: Format) -> bool:
    try:
        check_installed(*entry.libraries)
    except MissingExtraError:
        return False
    return True
