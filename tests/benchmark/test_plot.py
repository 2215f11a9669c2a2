"""The image of speed over multiply-adds."""

import contextlib
import itertools
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from conformer_vision.benchmark import BenchmarkResult, draw_plot, plot
from conformer_vision.benchmark.result import Machine, Row
from conformer_vision.errors import UserError

from .conftest import make_row


def make_result(*rows: Row) -> BenchmarkResult:
    return BenchmarkResult(
        machine=Machine("Linux x86_64", "A processor", 2, 2, "cpu", None),
        versions={"torch": "2.6.0"},
        date="2026-01-01T00:00:00+00:00",
        command="conformer-vision benchmark",
        shape=(3, 224, 224),
        ceilings={"fp32": 1e12, "int8": 4e12},
        rows=rows,
        left_out=(),
        notes=(),
    )


def test_draws_a_panel_per_batch(tmp_path: Path) -> None:
    rows = [
        make_row(batch=batch, **changes)
        for batch in (1, 8)
        for changes in (
            {},
            {"runtime": "onnx-int8", "precision": "int8", "images_per_second": 300.0},
            {"runtime": "onnx", "precision": None},
            {"model": "resnet50", "runtime": "eager", "peer": True, "macs": 4_100_000_000},
            {"model": "of unknown cost", "macs": None},
        )
    ]
    widths = []
    for count in (5, 10):
        draw_plot(make_result(*rows[:count]), tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as image:
            assert image.format == "PNG"
            widths.append(image.width)
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
    assert widths[1] > 1.3 * widths[0]
    draw_plot(make_result(make_row(macs=None)), tmp_path / "empty.png")


def test_names_lie_over_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = [
        make_row(model=f"a_model_with_a_long_name_{n}", macs=int(4e9 * 1.02**n), images_per_second=20.0 + n)
        for n in range(6)
    ]
    monkeypatch.setattr(plot, "atomic_path", contextlib.nullcontext)
    draw_plot(make_result(*rows), tmp_path / "plot.png")
    boxes = [text.get_window_extent() for text in drawn[0].axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        draw_plot(make_result(make_row()), tmp_path / "none" / "plot.png")
