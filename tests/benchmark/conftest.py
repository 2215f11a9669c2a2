"""A benchmark of seconds: a tiny model, and no processes of its own for memory."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from conformer_vision.benchmark import BenchmarkConfig, run
from conformer_vision.benchmark.config import Runtime
from conformer_vision.benchmark.measure import Ratio
from conformer_vision.benchmark.probe import Probe
from conformer_vision.benchmark.result import Row
from conformer_vision.benchmark.subjects import Subject

NANO = "conformer_nano_patch8_64"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> BenchmarkConfig:
    """What to measure, with a known ceiling and memory instead of measured ones."""

    def probe(subject: Subject, *, shape: Sequence[int], batches: Sequence[int], threads: int) -> Probe:
        return Probe(0.5, 0.25, 100.0, {batch: 100.0 + batch for batch in batches})

    monkeypatch.setattr(run, "probe", probe)
    monkeypatch.setattr(run, "measure_ceilings", lambda precisions, device: {"fp32": 1e12})
    return BenchmarkConfig(
        models=(NANO,), runtimes=("eager", "folded"), batch=(2,), peers=(), repeats=2, threads=1, size=32
    )


def make_row(**changes: object) -> Row:
    """A row of round numbers."""
    values: dict[str, object] = {
        "model": NANO,
        "runtime": "folded",
        "precision": "fp32",
        "peer": False,
        "batch": 8,
        "rounds": 2,
        "images_per_second": 100.0,
        "latency_ms": {"p50": 80.0, "p90": 81.0, "p99": 82.0},
        "ratio": Ratio(2.0, 1.9, 2.1),
        "baseline": "reference",
        "difference": 1e-6,
        "wrong": False,
        "parameters": 6_500_000,
        "macs": 2_000_000_000,
        "share_of_ceiling": None,
        "import_memory_mb": 300.0,
        "peak_memory_mb": 450.0,
        "load_seconds": 0.5,
        "first_answer_seconds": 0.25,
        "times_ms": (79.0, 81.0),
    }
    return Row(**values | changes)  # type: ignore[arg-type]


def make_subject(kind: str, folder: Path, **changes: object) -> Subject:
    """One whose file is not there."""
    return Subject(**{"model": NANO, "runtime": Runtime(kind), "path": str(folder / "x")} | changes)  # type: ignore[arg-type]
