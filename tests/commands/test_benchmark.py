"""The subcommand benchmark: mistakes in one line, what it prints and writes, its exit status."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from command_line import one_line, run
from conformer_vision import benchmark as package
from conformer_vision.benchmark import BenchmarkConfig, BenchmarkResult
from conformer_vision.benchmark.measure import Ratio
from conformer_vision.benchmark.result import Machine, Row

ROW = Row(
    model="conformer_tiny_patch16_224",
    runtime="folded",
    precision="fp32",
    peer=False,
    batch=8,
    rounds=5,
    images_per_second=50.0,
    latency_ms={"p50": 160.0, "p90": 170.0, "p99": 180.0},
    ratio=Ratio(1.5, 1.4, 1.6),
    baseline="reference",
    difference=2e-6,
    wrong=False,
    parameters=23_500_000,
    macs=5_000_000_000,
    share_of_ceiling=0.25,
    import_memory_mb=400.0,
    peak_memory_mb=650.0,
    load_seconds=0.5,
    first_answer_seconds=0.75,
    times_ms=(160.0,),
)
RESULT = BenchmarkResult(
    machine=Machine("Linux x86_64", "A processor", 2, 2, "cpu", None),
    versions={"torch": "2.6.0"},
    date="2026-01-01T00:00:00+00:00",
    command="conformer-vision benchmark",
    shape=(3, 224, 224),
    ceilings={"fp32": 1e12},
    rows=(ROW, replace(ROW, batch=1, ratio=None, difference=None, macs=None, peak_memory_mb=None)),
    left_out=(),
    notes=("Accuracy is not measured here.",),
)


class Measured:
    """Stands in for the measurement, and keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, result: BenchmarkResult = RESULT) -> None:
        self.result = result
        self.configs: list[BenchmarkConfig] = []
        monkeypatch.setattr(package, "benchmark", self.benchmark, raising=False)

    def benchmark(self, config: BenchmarkConfig, *, say: object) -> BenchmarkResult:
        self.configs.append(config)
        say("preparing")  # type: ignore[operator]
        return self.result


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["conformer_nan_patch8_64"], "did you mean conformer_nano_patch8_64?"),
        (["nothing.onnx"], "models nothing.onnx: neither a model of timm nor a file"),
        (["--runtimes", "eager", "onx"], "runtimes onx: must be one of"),
        (["--runtimes", "folded-int8"], "onnx-int8 and openvino-int8 have"),
        (["--peers", "resnet5O"], "peers resnet5O: timm knows no such model"),
        (["--batch", "0"], "batch 0: must be 1 or more"),
        (["--batch", "x"], "batch"),
        (["--repeats=0"], "repeats 0"),
        (["--device=foo"], "device 'foo' cannot be used here"),
        (["--json=none/figures.json"], "cannot write none/figures.json: there is no folder none"),
        (["--plot=."], "cannot write .: it is a folder"),
        (["--batches=1"], "did you mean --batch?"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(
    arguments: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wanted in one_line(run("benchmark", *arguments))


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Measured(monkeypatch)
    run("benchmark", "--peers", "none", "--reference", "false")
    run(
        *("benchmark", "conformer_tiny_patch16_224", "run", "--runtimes", "folded-bf16", "onnx-int8"),
        *("--batch", 1, 8, "--peers", "resnet50", "--peer-runtimes", "onnx", "--repeats", 7),
        *("--seconds", 9, "--threads", 2, "--device", "cpu", "--size", 64),
    )
    run("benchmark")
    assert measured.configs == [
        BenchmarkConfig(peers=(), reference=False),
        BenchmarkConfig(
            models=("conformer_tiny_patch16_224", "run"),
            runtimes=("folded-bf16", "onnx-int8"),
            batch=(1, 8),
            peers=("resnet50",),
            peer_runtimes=("onnx",),
            repeats=7,
            seconds=9.0,
            threads=2,
            device="cpu",
            size=64,
        ),
        BenchmarkConfig(),
    ]


def test_prints_a_table_and_writes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Measured(monkeypatch)
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    done = run("benchmark", f"--json={figures}", f"--plot={plot}")
    assert (done.status, done.err) == (0, "preparing\n")
    assert "A processor, 2 threads on 2 cores" in done.out
    assert "fp32 1,000" in done.out
    batches = done.out.split("batch 8, ")
    for text in ("50.0", "160.0", "170.0", "180.0", "1.50", "25%", "250", "1.2", "2e-06", "23.5", "5.00"):
        assert text in batches[1], text
    assert "–" in batches[0]
    assert "Accuracy is not measured here." in done.out
    assert str(figures) in done.out and str(plot) in done.out
    assert json.loads(figures.read_text())["rows"][0]["ratio"] == {"median": 1.5, "low": 1.4, "high": 1.6}
    with Image.open(plot) as image:
        assert image.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "plot.png"]


def test_wrong_answers_are_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (ROW, replace(ROW, runtime="onnx", difference=0.5, wrong=True))
    Measured(monkeypatch, replace(RESULT, rows=rows))
    done = run("benchmark")
    assert done.status == 1
    assert "WRONG 5e-01" in done.out
    assert "wrong: conformer_tiny_patch16_224 onnx, batch 8: its logits differ by 5.0e-01" in done.err
