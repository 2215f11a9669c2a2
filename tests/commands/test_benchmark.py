"""The subcommand benchmark: mistakes in one line, what it prints and writes, its exit status."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import one_line, run
from conformer_vision import benchmark as package
from conformer_vision.benchmark import BenchmarkConfig, BenchmarkResult, Row
from conformer_vision.benchmark.machine import Machine

EAGER = Row("eager", 8, 5, 400.0, 420.0, 20.0, 1.0, 24.0, 2e-7, False, (400.0,))
INT8 = Row("onnx-int8", 8, 5, 160.0, 170.0, 50.0, 2.5, 6.5, 2e-2, False, (160.0,))
RESULT = BenchmarkResult(
    model="runs/photos",
    input_size=(3, 224, 224),
    machine=Machine("Linux x86_64", "A processor", 2, 2, "cpu", None),
    versions={"torch": "2.6.0"},
    date="2026-01-01T00:00:00+00:00",
    rows=(EAGER, INT8),
    left_out=("openvino: openvino is not installed: pip install 'conformer-vision[export]'",),
)


class Benchmark:
    """Stands in for the benchmark and keeps its configurations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, result: BenchmarkResult = RESULT) -> None:
        self.result = result
        self.configs: list[BenchmarkConfig] = []
        monkeypatch.setattr(package, "benchmark", self.benchmark)

    def benchmark(self, config: BenchmarkConfig, *, say: object) -> BenchmarkResult:
        self.configs.append(config)
        say("preparing eager")  # type: ignore[operator]
        return self.result


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nothing.safetensors"], "nothing.safetensors does not exist"),
        (["x", "--forms", "eager", "onx"], "forms onx: must be one of"),
        (["x", "--forms", "onnx-bf16"], "forms onnx-bf16: must be one of"),
        (["x", "--batch", "0"], "batch 0: must be 1 or more"),
        (["x", "--batch", "x"], "batch"),
        (["x", "--repeats=0"], "repeats 0"),
        (["x", "--seconds=nan"], "seconds nan"),
        (["x", "--device=foo"], "device 'foo'"),
        (["x", "--json=none/figures.json"], "cannot write none/figures.json: the folder none does not exist"),
        (["x", "--batches=1"], "did you mean --batch?"),
        ([], "model is missing"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    arguments: list[str], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert wanted in one_line(run("benchmark", *arguments))


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Benchmark(monkeypatch)
    run("benchmark", "runs/photos")
    run(
        *("benchmark", "runs/photos", "--forms", "folded", "onnx-int8", "--batch", 1, 4, "--repeats", 7),
        *("--seconds", 9, "--threads", 2, "--device", "cpu"),
    )
    forms = ("folded", "onnx-int8")
    assert stand_in.configs == [
        BenchmarkConfig("runs/photos"),
        BenchmarkConfig("runs/photos", forms, (1, 4), repeats=7, seconds=9.0, threads=2, device="cpu"),
    ]


def test_prints_the_table_and_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Benchmark(monkeypatch)
    figures = tmp_path / "figures.json"
    done = run("benchmark", "runs/photos", f"--json={figures}")
    assert (done.status, done.err) == (0, "preparing eager\n")
    assert "A processor, 2 threads on 2 cores, torch 2.6.0" in done.out
    for text in (
        "160.0",
        "170.0",
        "50.0",
        "2.50",
        "6.5",
        "2e-02",
        "not possible here: openvino: openvino is",
    ):
        assert text in done.out, text
    assert "int8 is calibrated on two photos here" in done.out
    assert "conformer-vision export runs/photos --format onnx --precision int8\n" in done.out
    assert json.loads(figures.read_text())["rows"][1]["times_ms"] == [160.0]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_wrong_logits_are_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    Benchmark(monkeypatch, replace(RESULT, rows=(EAGER, replace(INT8, difference=0.6, wrong=True))))
    done = run("benchmark", "runs/photos")
    assert done.status == 1
    assert "WRONG 6e-01" in done.out
    assert "wrong: onnx-int8, batch 8: logits differ by 6.0e-01" in done.err
    assert "fastest with batch 8: eager" in done.out
    assert "conformer-vision export" not in done.out
