"""What a benchmark found."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from conformer_vision.export.formats import Precision

from .measure import Ratio

TOLERANCE = 1e-4
"""From this difference of its logits on, relative to their norm, a float32 subject is wrong."""
_LIBRARIES = ("conformer-vision", "torch", "timm", "onnxruntime", "openvino", "numpy")


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    system: str
    processor: str
    cores: int
    """That this process may use."""
    threads: int
    """That every runtime used."""
    device: str
    """torch's name of the device."""
    gpu: str | None

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """This machine, with the number of threads that PyTorch is set to."""
        affinity = getattr(os, "sched_getaffinity", None)
        return cls(
            system=f"{platform.system()} {platform.machine()}",
            processor=_processor(),
            cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            device=str(device),
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        )


@dataclass(frozen=True)
class Row:
    """One subject with one size of batch."""

    model: str
    runtime: str
    """With the precision behind it where that is not fp32."""
    precision: Precision | None
    """None where an exported file does not say it."""
    peer: bool
    batch: int
    rounds: int
    images_per_second: float
    """Batch over the median latency."""
    latency_ms: Mapping[str, float]
    """``p50``, ``p90`` and ``p99`` of the rounds, of a whole batch."""
    ratio: Ratio | None
    """Times faster than the baseline in the same rounds."""
    baseline: str | None
    """Runtime of the same model that ``ratio`` and ``difference`` refer to."""
    difference: float | None
    """Norm of the logits' difference from the baseline's over their norm; the worst image's."""
    wrong: bool
    """Not finite, or float32 and further from the baseline than rounding explains."""
    parameters: int | None
    macs: int | None
    """Multiply-adds per image, of the network before it was compiled or exported."""
    share_of_ceiling: float | None
    """Of the machine's own matrix products in the subject's arithmetic."""
    import_memory_mb: float | None
    peak_memory_mb: float | None
    """From a process of its own, see `Probe`; with what the imports take."""
    load_seconds: float
    first_answer_seconds: float
    times_ms: tuple[float, ...]
    """One per round."""

    @property
    def memory_mb(self) -> float | None:
        """The peak without what the imports take."""
        if self.peak_memory_mb is None:
            return None
        return self.peak_memory_mb - (self.import_memory_mb or 0.0)


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` found."""

    machine: Machine
    versions: Mapping[str, str]
    date: str
    """In UTC, ISO 8601."""
    command: str
    shape: tuple[int, int, int]
    """(C, H, W) of every image."""
    ceilings: Mapping[Precision, float]
    """Precision -> multiply-adds per second in large matrix products."""
    rows: tuple[Row, ...]
    """By size of batch, in the order in which subjects were given."""
    left_out: tuple[str, ...]
    """What could not be measured here, and why."""
    notes: tuple[str, ...]

    @property
    def wrong(self) -> tuple[Row, ...]:
        """Rows whose answers are not those of the baseline."""
        return tuple(row for row in self.rows if row.wrong)

    def to_json(self) -> str:
        """As one JSON object; rates are per second, numbers that are not finite are null."""
        return json.dumps(_finite(asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)


def versions() -> dict[str, str]:
    """Of Python and the libraries that measure or are measured."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name; what Python says of it is often empty."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
