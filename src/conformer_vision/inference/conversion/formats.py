"""The formats that onnxruntime and OpenVINO run. Nothing here imports torch: the command line reads it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from conformer_vision.errors import UserError
from conformer_vision.extras import check_installed

if TYPE_CHECKING:
    from conformer_vision.runs import Kind

Precision = Literal["fp32", "fp16", "bf16", "int8"]
CALIBRATION_IMAGES = 128
"""Number of images that int8 is calibrated on, where none is given."""
_ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Format:
    """A kind of file that a model is exported to.

    Its module has ``write(model, spec, path, *, precision, calibration)``, which returns the
    parts that int8 leaves in float; a format that no runtime reads back has ``read(path)`` as well.
    """

    name: str
    module: str
    """Its whole name."""
    suffix: str
    precisions: tuple[Precision, ...]
    """Of the arithmetic; for ``folded`` of the stored weights alone."""
    runtime: Kind | None
    """How `open_runtime` reads the file back; None where only other programs do."""
    libraries: tuple[str, ...] = ()
    """Libraries of the extra ``export`` that writing needs."""
    companion: str | None = None
    """Suffix of the second file beside the first, where there is one."""
    folder: bool = False
    """Whether it is a folder of files; it then has no suffix, and its temperature is in the heads."""

    def check(self, precision: Precision, *, among: Iterable[Format]) -> None:
        """Refuse what cannot be written here.

        Args:
            precision: The precision.
            among: The formats that the user may choose from.

        Raises:
            UserError: A precision that the format does not have, or a library that is not installed.
        """
        if precision not in get_args(Precision):
            raise UserError(f"precision {precision!r}: must be one of {', '.join(get_args(Precision))}")
        if precision not in self.precisions:
            others = ", ".join(other.name for other in among if precision in other.precisions)
            raise UserError(
                f"precision {precision}: the format {self.name} has {', '.join(self.precisions)};"
                f" {precision} is in {others}"
            )
        check_installed(*self.libraries)

    def files(self, path: Path) -> list[Path]:
        """Return the files of an export whose main file, or folder, is ``path``."""
        if self.folder:
            return sorted(path.iterdir())
        return [path] if self.companion is None else [path, path.with_suffix(self.companion)]


_HERE = __name__.rpartition(".")[0]
# onnxruntime has no bfloat16 convolution
ONNX = Format("onnx", f"{_HERE}.onnx", ".onnx", ("fp32", "fp16", "int8"), "onnx", _ONNX)
OPENVINO = Format(
    "openvino",
    f"{_HERE}.openvino",
    ".xml",
    ("fp32", "fp16", "bf16", "int8"),
    "openvino",
    (*_ONNX, "openvino"),
    ".bin",
)
