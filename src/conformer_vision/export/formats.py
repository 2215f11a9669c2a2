"""The registry of export formats. Nothing here imports torch: the command line reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from conformer_vision.errors import UserError, reason_of
from conformer_vision.extras import check_installed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from conformer_vision.runs import Kind
    from conformer_vision.spec import ModelSpec

Precision = Literal["fp32", "fp16", "bf16", "int8"]
_ONNX = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Format:
    """A kind of file that a model is exported to.

    Its module in this package has ``write(model, spec, path, *, precision, calibration)``, which returns the
    parts that int8 leaves in float; a format that no runtime reads back has ``read(path)`` as well.
    """

    name: str
    module: str
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

    def check(self, precision: Precision) -> None:
        """Refuse what cannot be written here.

        Raises:
            UserError: A precision that the format does not have, or a library that is not installed.
        """
        if precision not in get_args(Precision):
            raise UserError(f"precision {precision!r}: must be one of {', '.join(get_args(Precision))}")
        if precision not in self.precisions:
            others = ", ".join(other.name for other in FORMATS.values() if precision in other.precisions)
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


FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("folded", "folded", ".safetensors", ("fp32", "fp16", "bf16"), "weights"),
        # onnxruntime has no bfloat16 convolution
        Format("onnx", "onnx", ".onnx", ("fp32", "fp16", "int8"), "onnx", _ONNX),
        Format(
            "openvino",
            "openvino",
            ".xml",
            ("fp32", "fp16", "bf16", "int8"),
            "openvino",
            (*_ONNX, "openvino"),
            ".bin",
        ),
        Format("torch-export", "torch_export", ".pt2", ("fp32", "fp16", "bf16"), None),
        Format("hf", "hf", "", ("fp32",), "hf", folder=True),
    )
}


def find_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in FORMATS:
        raise UserError(f"format {name!r}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def write_network(
    model: nn.Module,
    spec: ModelSpec,
    path: str | Path,
    *,
    format: str,  # noqa: A002 - the option's name
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] = (),
) -> tuple[str, ...]:
    """Write a model without checking what was written; `export` does both.

    Args:
        model: Any model of timm's registry; left as it was.
        spec: The model's specification, which goes into the file.
        path: The file, with the format's suffix, or the folder; not written atomically. A format of two
            files, as OpenVINO's, writes the second beside it.
        format: A name in `FORMATS`.
        precision: Precision of the arithmetic.
        calibration: For int8: prepared images (B, C, H, W), which give the ranges of the activations.

    Returns:
        The parts of the network that int8 leaves in float.

    Raises:
        UserError: As `Format.check`, int8 without images, a model that cannot be exported, or a full disk.
    """
    entry = find_format(format)
    entry.check(precision)
    module = import_module(f".{entry.module}", __package__)
    spec = replace(spec, folded=False)  # the weights inside are, and need no folding to be built
    try:
        kept: tuple[str, ...] = module.write(
            model, spec, Path(path), precision=precision, calibration=calibration
        )
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from error
    return kept
