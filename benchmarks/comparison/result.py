"""What a benchmark found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from conformer_vision.benchmark.machine import Machine
from conformer_vision.inference.conversion.formats import Precision

from .measure import Ratio

TOLERANCE = 1e-4
"""From this difference of its logits on, relative to their norm, a float32 subject is wrong."""


@dataclass(frozen=True)
class Row:
    """One subject with one size of batch."""

    model: str
    runtime: str
    """With the precision behind it where that is not fp32."""
    precision: Precision
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
    """Of the ceiling in the subject's arithmetic; at most 1."""
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
class ComparisonResult:
    """What `compare` found."""

    machine: Machine
    versions: Mapping[str, str]
    date: str
    """In UTC, ISO 8601."""
    command: str
    shape: tuple[int, int, int]
    """(C, H, W) of every image."""
    ceilings: Mapping[Precision, float]
    """Precision -> multiply-adds per second in large matrix products, or in a row that has more."""
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


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
