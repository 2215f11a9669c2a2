"""A whole benchmark in small."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conformer_vision.benchmark import BenchmarkConfig, benchmark, prepare, run
from conformer_vision.benchmark.run import relative_difference, with_share
from conformer_vision.benchmark.subjects import Subject
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

from .conftest import NANO, make_row


def test_measures_everything_in_one_run(quick: BenchmarkConfig) -> None:
    threads = torch.get_num_threads()
    lines: list[str] = []
    result = benchmark(replace(quick, batch=(3, 1, 3), peers=("resnet18",)), say=lines.append)
    assert torch.get_num_threads() == threads
    assert [(row.model, row.runtime, row.batch) for row in result.rows] == [
        (model, runtime, batch)
        for batch in (1, 3)
        for model, runtime in [(NANO, "reference"), (NANO, "eager"), (NANO, "folded"), ("resnet18", "eager")]
    ]
    assert result.shape == (3, 32, 32)
    assert not result.wrong
    for row in result.rows:
        assert row.rounds == len(row.times_ms) == 2
        assert row.images_per_second == pytest.approx(1e3 * row.batch / row.latency_ms["p50"])
        assert row.share_of_ceiling == pytest.approx((row.macs or 0) * row.images_per_second / 1e12)
        assert (row.memory_mb, row.load_seconds, row.first_answer_seconds) == (row.batch, 0.5, 0.25)
        assert row.peer == (row.model == "resnet18")
        assert row.baseline == ("eager" if row.peer else "reference")
        assert row.difference is not None
        assert row.difference < 1e-5
        assert row.ratio is not None
    reference, eager, folded, _ = result.rows[:4]
    assert reference.ratio is not None and reference.ratio.median == 1
    assert folded.ratio is not None
    assert folded.ratio.median == pytest.approx(reference.latency_ms["p50"] / folded.latency_ms["p50"])
    assert (reference.macs or 0) > (eager.macs or 0) == (folded.macs or 0) > 0
    assert reference.parameters == folded.parameters
    assert any("random weights" in note for note in result.notes)
    assert "batch 1: 4 in turns" in lines

    values = json.loads(result.to_json())
    assert values["machine"]["threads"] == 1
    assert values["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert values["date"] and values["command"]
    assert values["ceilings"] == {"fp32": 1e12}
    assert len(values["rows"]) == 8


def test_without_a_reference_eager_is_the_baseline(quick: BenchmarkConfig) -> None:
    result = benchmark(replace(quick, reference=False))
    assert [(row.runtime, row.baseline) for row in result.rows] == [("eager", "eager"), ("folded", "eager")]
    result = benchmark(replace(quick, reference=False, runtimes=("folded",)))
    assert [(row.baseline, row.ratio, row.difference) for row in result.rows] == [(None, None, None)]


def test_other_precisions_may_differ_more(quick: BenchmarkConfig) -> None:
    result = benchmark(replace(quick, runtimes=("folded-bf16",)))
    row = result.rows[-1]
    assert (row.runtime, row.precision) == ("folded-bf16", "bf16")
    assert row.difference is not None and 1e-4 < row.difference < 0.1
    assert row.share_of_ceiling is None, "that of bfloat16 was not measured"
    assert not result.wrong


@pytest.mark.parametrize(
    ("runtime", "change", "wrong"),
    [
        ("folded", lambda x: x * 1.001, True),
        ("folded", lambda x: x * (1 + 1e-6), False),
        ("folded-bf16", lambda x: x * 1.01, False),
        ("folded-bf16", lambda x: x * float("nan"), True),
    ],
)
def test_wrong_answers_are_found(
    runtime: str,
    change: Callable[[Tensor], Tensor],
    wrong: bool,
    quick: BenchmarkConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = run.open_subject

    def open_subject(subject: Subject) -> Callable[[Tensor], Tensor]:
        call = real(subject)
        return (lambda x: change(call(x))) if subject.runtime.kind == "folded" else call

    monkeypatch.setattr(run, "open_subject", open_subject)
    result = benchmark(replace(quick, runtimes=(runtime,)))
    assert [row.runtime for row in result.wrong] == [runtime] * wrong
    json.loads(result.to_json())


def test_relative_difference_is_the_worst_images() -> None:
    expected = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert relative_difference(expected + torch.tensor([[0.0, 0.5], [0.0, 0.4]]), expected) == pytest.approx(
        0.2
    )
    assert relative_difference(expected * float("nan"), expected) == float("inf")


def test_share_is_of_the_rows_own_arithmetic() -> None:
    ceilings = {"fp32": 1e12, "int8": 4e12}
    assert with_share(make_row(), ceilings).share_of_ceiling == pytest.approx(0.2)  # type: ignore[arg-type]
    for changes, share in [
        ({"runtime": "onnx-int8", "precision": "int8"}, pytest.approx(0.05)),
        ({"runtime": "openvino-fp16", "precision": "fp16"}, pytest.approx(0.2)),
        ({"runtime": "onnx-fp16", "precision": "fp16"}, None),
        ({"runtime": "onnx", "precision": None}, None),
        ({"macs": None}, None),
    ]:
        assert with_share(make_row(**changes), ceilings).share_of_ceiling == share  # type: ignore[arg-type]


# ---- exports -----------------------------------------------------------------------------------------


class Exports:
    """Stand-ins that write every format as weights, and remember what they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, broken: Sequence[str] = ()) -> None:
        self.calibration: dict[str, list[tuple[int, ...]]] = {}
        self.broken = broken
        monkeypatch.setattr(prepare, "check_supported", self.check_supported)
        monkeypatch.setattr(prepare, "write_network", self.write_network)

    def check_supported(self, format: str, precision: str) -> None:  # noqa: A002
        if format == "openvino":
            raise UserError("format openvino needs openvino: pip install 'conformer-vision[export]'")

    def write_network(
        self,
        model: nn.Module,
        spec: ModelSpec,
        path: Path,
        *,
        format: str,  # noqa: A002
        precision: str,
        calibration: Sequence[Tensor] = (),
    ) -> None:
        if format in self.broken:
            raise UserError(f"model {spec.model} cannot be exported (why)")
        self.calibration[f"{format}-{precision}"] = [tuple(batch.shape) for batch in calibration]
        save_model(model, spec, path.with_suffix(".safetensors"))
        path.touch()


class WrittenNetwork:
    """What `Exports` wrote."""

    def __init__(self, path: str, device: str) -> None:
        from conformer_vision.weights import load_model

        self.model, self.spec = load_model(Path(path).with_suffix(".safetensors"))

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {"fused": self.model(images)}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformer_vision.benchmark.subjects.open_runtime", WrittenNetwork)


@pytest.mark.usefixtures("opened")
def test_exports_are_written_and_only_int8_is_calibrated(
    quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = Exports(monkeypatch)
    config = replace(quick, runtimes=("onnx", "onnx-int8"), peers=("resnet18",), peer_runtimes=("onnx",))
    result = benchmark(config)
    assert [row.runtime for row in result.rows] == ["reference", "onnx", "onnx-int8", "onnx"]
    assert exports.calibration == {"onnx-fp32": [], "onnx-int8": [(8, 3, 32, 32)] * 2}
    assert any("int8 is calibrated on 16 crops" in note for note in result.notes)
    assert result.rows[1].macs == result.rows[2].macs
    assert not result.wrong


@pytest.mark.usefixtures("opened")
def test_what_was_not_named_is_left_out_with_a_line(
    quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Exports(monkeypatch, broken=["torch-export"])
    monkeypatch.setattr(
        "conformer_vision.benchmark.config.DEFAULT_RUNTIMES", ("eager", "openvino", "torch-export")
    )
    monkeypatch.setattr("conformer_vision.benchmark.config.DEFAULT_PEERS", ("convnext_atto", "resnet18"))
    lines: list[str] = []
    result = benchmark(replace(quick, runtimes=None, peers=None, size=16), say=lines.append)
    assert [(row.model, row.runtime) for row in result.rows] == [
        (NANO, "reference"),
        (NANO, "eager"),
        ("resnet18", "eager"),
    ]
    said = [line.removeprefix("left out: ") for line in lines if line.startswith("left out: ")]
    assert said == list(result.left_out)
    assert "pip install 'conformer-vision[export]'" in said[0]
    assert said[1] == f"{NANO} torch-export: model {NANO} cannot be exported (why)"
    assert said[2].startswith("size 16x16: convnext_atto cannot take it")
    assert len(said) == 3


@pytest.mark.parametrize(
    ("runtimes", "line"),
    [
        (("eager", "openvino"), "pip install 'conformer-vision"),
        (("torch-export",), f"{NANO} torch-export: model {NANO} cannot be exported"),
    ],
)
def test_what_was_named_has_to_work(
    runtimes: tuple[str, ...], line: str, quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Exports(monkeypatch, broken=["torch-export"])
    with pytest.raises(UserError, match=line):
        benchmark(replace(quick, runtimes=runtimes))


def test_folded_is_for_conformers(quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="resnet18 folded: only Conformers are folded"):
        benchmark(replace(quick, models=("resnet18",)))
    monkeypatch.setattr("conformer_vision.benchmark.config.DEFAULT_RUNTIMES", ("eager", "folded"))
    result = benchmark(replace(quick, models=("resnet18",), runtimes=None))
    assert [row.runtime for row in result.rows] == ["eager"]
    assert result.left_out == ("resnet18 folded: only Conformers are folded",)


def test_nothing_left(quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(subject: Subject, **_: object) -> None:
        raise UserError(f"{subject.name}: its process was ended by signal 9; is memory short?")

    monkeypatch.setattr(run, "probe", fail)
    monkeypatch.setattr("conformer_vision.benchmark.config.DEFAULT_RUNTIMES", ("eager",))
    lines: list[str] = []
    with pytest.raises(UserError, match="nothing is left to measure"):
        benchmark(replace(quick, runtimes=None), say=lines.append)
    assert sum("signal 9" in line for line in lines) == 2
