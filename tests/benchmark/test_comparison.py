"""The laboratory in `benchmarks/comparison`: its statistics, and one comparison of a tiny model."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from comparison import ComparisonConfig, ceiling, compare, draw_plot, run
from comparison.ceiling import measure_ceilings
from comparison.measure import percentiles, ratio, share_of_ceiling
from comparison.plot import draw_figure
from comparison.prepare import prepare
from comparison.probe import Probe, probe
from comparison.subjects import Subject
from conformer_vision.errors import UserError

NANO = "conformer_nano_patch8_64"
CONFIG = ComparisonConfig(
    models=(NANO,),
    runtimes=("eager", "folded"),
    batch=(2,),
    peers=("resnet18",),
    repeats=1,
    threads=1,
    size=32,
)


def test_percentiles_ratio_and_share() -> None:
    assert percentiles(list(range(101))) == {"p50": 50, "p90": 90, "p99": 99}
    found = ratio([1, 1, 1, 1, 1], [9, 1, 2, 3, 4])
    assert (found.median, found.low, found.high) == (3, 2, 4)
    assert share_of_ceiling(2_000_000_000, 20.0, 80e9) == pytest.approx(0.5)


def test_ceilings_are_of_what_is_asked_for_and_float32() -> None:
    rates = measure_ceilings(["bf16", "bf16", "int8"], torch.device("cpu"), sizes=(32, 64))
    assert rates.keys() - {"int8"} == {"fp32", "bf16"}
    assert all(rate > 1e5 for rate in rates.values())


def test_the_ceiling_is_of_the_fastest_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(precision: str, device: torch.device, size: int) -> Callable[[], object]:
        return lambda: time.sleep(0.02)

    fastest = measure_ceilings([], torch.device("cpu"), sizes=(32,))["fp32"]
    for name in ("_by_blas", "_by_convolution"):
        monkeypatch.setattr(ceiling, name, slow)
    assert measure_ceilings([], torch.device("cpu"), sizes=(32,))["fp32"] > 32**3 / 0.02 < fastest
    monkeypatch.setattr(ceiling, "_by_numpy", slow)
    assert measure_ceilings([], torch.device("cpu"), sizes=(32,))["fp32"] <= 32**3 / 0.02


def test_a_conformer_beside_its_plain_formulation_and_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(subject: Subject, *, shape: Sequence[int], batches: Sequence[int], threads: int) -> Probe:
        return Probe(0.5, 0.25, 100.0, dict.fromkeys(batches, 150.0))

    monkeypatch.setattr(run, "probe", quick)
    monkeypatch.setattr(run, "measure_ceilings", lambda precisions, device: {"fp32": 1.0})
    result = compare(CONFIG)
    assert [(row.model, row.runtime, row.baseline) for row in result.rows] == [
        (NANO, "reference", "reference"),
        (NANO, "eager", "reference"),
        (NANO, "folded", "reference"),
        ("resnet18", "eager", "eager"),
    ]
    reference, eager, *_ = result.rows
    assert reference.macs and eager.macs and eager.macs < reference.macs
    assert eager.difference is not None and 0 < eager.difference < 1e-5
    assert (eager.memory_mb, eager.wrong) == (50.0, False)
    json.loads(result.to_json())
    # The measured ceiling was lower than what every row reached, as that of a disturbed machine is.
    shares = [row.share_of_ceiling or 0.0 for row in result.rows]
    assert max(shares) == pytest.approx(1.0) and min(shares) > 0
    draw_plot(result, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.format == "PNG"

    slow = [replace(row, batch=1, images_per_second=row.images_per_second / 1000) for row in result.rows]
    fast = [replace(row, batch=9, images_per_second=row.images_per_second * 1000) for row in result.rows]
    every = replace(result, rows=(*slow, *result.rows, *fast))
    for axes in draw_figure(every).axes:
        bottom, top = axes.get_ylim()
        left, right = axes.get_xlim()
        points = [line.get_xydata()[0] for line in axes.lines if line.get_linestyle() == "None"]
        assert len(points) == 4
        assert all(left < x < right and bottom < y < top for x, y in points)


def test_memory_and_load_time_come_from_a_process_of_its_own(tmp_path: Path) -> None:
    config = replace(CONFIG, runtimes=("folded",), peers=(), reference=False)
    (subject,) = prepare(config, tmp_path, device=torch.device("cpu"), say=lambda line: None).subjects
    found = probe(subject, shape=(3, 32, 32), batches=(4, 1), threads=1)
    assert found.load_seconds > 0 and found.first_answer_seconds > 0
    assert found.import_memory_mb < found.peak_memory_mb[1] <= found.peak_memory_mb[4]


def test_what_was_named_has_to_work() -> None:
    with pytest.raises(UserError, match="resnet18 folded: only Conformers are folded"):
        compare(replace(CONFIG, models=("resnet18",), peers=()))
    with pytest.raises(UserError, match="did you mean conformer_nano_patch8_64"):
        compare(replace(CONFIG, models=("conformer_nan_patch8_64",)))
