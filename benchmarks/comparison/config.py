"""What to measure."""

from __future__ import annotations

import difflib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from conformer_vision.errors import UserError
from conformer_vision.export.formats import FORMATS
from conformer_vision.inference.conversion.formats import Precision

COMPILE_MODES = {
    "compiled": "default",
    "folded-compiled": "default",
    "folded-reduce-overhead": "reduce-overhead",
    "folded-max-autotune": "max-autotune",
}
"""Kinds that ``torch.compile`` makes faster, with its mode; the last two record CUDA graphs on a GPU."""
TORCH_KINDS = ("reference", "eager", "folded", *COMPILE_MODES)
"""What PyTorch runs in its own process, from weights; the reference is the plain formulation."""
KINDS = (
    *TORCH_KINDS,
    *(
        name
        for name, entry in FORMATS.items()
        if entry.runtime is not None and not entry.folder and name not in TORCH_KINDS
    ),
)
DEFAULT_RUNTIMES = ("eager", "compiled", "folded", "onnx", "openvino")
DEFAULT_PEERS = (
    "resnet50",
    "deit_small_patch16_224",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "nextvit_small",
    "coat_lite_small",
    "maxvit_tiny_tf_224",
)
"""Models of timm between 79 and 84 % top-1 on ImageNet at 224 pixels."""
_EXACT: Precision = "fp32"
_CONFORMERS_ALONE = tuple(kind for kind in TORCH_KINDS if kind not in ("eager", "compiled"))


@dataclass(frozen=True)
class Runtime:
    """What runs a network, and in which arithmetic.

    Args:
        kind: one of `KINDS`.
        precision: of the arithmetic.
    """

    kind: str
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        """As `parse_runtime` reads it."""
        return self.kind if self.precision == "fp32" else f"{self.kind}-{self.precision}"


def parse_runtime(text: str) -> Runtime:
    """``onnx`` or ``onnx-int8``: a kind, and a precision where it is not fp32.

    Raises:
        UserError: there is no such kind, or PyTorch's own kinds have no such precision.
    """
    kind, precision = text, _EXACT
    for name in get_args(Precision):
        if text.endswith(f"-{name}"):
            kind, precision = text.removesuffix(f"-{name}"), name
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(
            f"runtimes {text}: must be one of {', '.join(KINDS)}, with -bf16, -fp16 or -int8 behind it for"
            f" another precision{hint}"
        )
    if kind in TORCH_KINDS and precision == "int8":
        raise UserError(f"runtimes {text}: PyTorch has no int8 here; onnx-int8 and openvino-int8 have")
    return Runtime(kind, precision)


@dataclass(frozen=True)
class ComparisonConfig:
    """What `compare` measures.

    Args:
        models: names in timm's registry, which get random weights, run folders or weights files.
        runtimes: what runs the models, as `parse_runtime` reads it; None means `DEFAULT_RUNTIMES` as far as
            they can be had here, while what is named has to work.
        batch: images at once.
        peers: models of timm to measure beside; None means `DEFAULT_PEERS` as far as they take the size.
        peer_runtimes: what runs the peers.
        reference: measure the plain formulation of every Conformer too; times are compared with it.
        repeats: rounds, in each of which everything takes one turn.
        seconds: no further round of a batch size begins after them, once there are three.
        threads: CPU threads of every runtime; None leaves PyTorch's number.
        device: ``auto`` or a torch device.
        size: side of the images in pixels; None means that of the first model.

    Raises:
        UserError: a value that cannot be; the line names it.
    """

    models: tuple[str, ...] = ("conformer_small_patch16_224",)
    runtimes: tuple[str, ...] | None = None
    batch: tuple[int, ...] = (1, 8, 32)
    peers: tuple[str, ...] | None = None
    peer_runtimes: tuple[str, ...] = ("eager",)
    reference: bool = True
    repeats: int = 30
    seconds: float = 600.0
    threads: int | None = None
    device: str = "auto"
    size: int | None = None

    def __post_init__(self) -> None:
        for name in ("models", "batch", "peer_runtimes", "runtimes"):
            if getattr(self, name) == ():
                raise UserError(f"{name}: give at least one")
        for size in self.batch:
            _at_least(1, "batch", size)
        _at_least(1, "repeats", self.repeats)
        for name in ("threads", "size"):
            if (value := getattr(self, name)) is not None:
                _at_least(1, name, value)
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UserError(f"seconds {self.seconds}: must be a number above 0")
        for text in self.runtimes or ():
            parse_runtime(text)
        for text in self.peer_runtimes:
            if parse_runtime(text).kind in _CONFORMERS_ALONE:
                raise UserError(f"peer_runtimes {text}: is for Conformers; peers have eager and the exports")

    @property
    def own_runtimes(self) -> list[Runtime]:
        """Those of the models, the reference first where it is wanted, each once."""
        names = DEFAULT_RUNTIMES if self.runtimes is None else self.runtimes
        return _parse_all(("reference", *names) if self.reference else names)

    @property
    def runtimes_of_peers(self) -> list[Runtime]:
        """Those of the peers, each once."""
        return _parse_all(self.peer_runtimes)

    @property
    def own_peers(self) -> tuple[str, ...]:
        """Models to measure beside, less those that are measured anyway."""
        peers = DEFAULT_PEERS if self.peers is None else self.peers
        return tuple(name for name in dict.fromkeys(peers) if name not in self.models)

    def is_strict(self, *, peer: bool) -> bool:
        """Whether what cannot be measured is an error: what was named, not what is measured by default."""
        return (self.peers if peer else self.runtimes) is not None


def check_target(path: Path) -> None:
    """Says before the long part that a file cannot be written after it.

    Raises:
        UserError: it is a folder, or nothing can be written where it shall lie.
    """
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; make it")
    try:
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _parse_all(names: Sequence[str]) -> list[Runtime]:
    return [parse_runtime(name) for name in dict.fromkeys(names)]


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise UserError(f"{name} {value}: must be {least} or more")
