"""The benchmark of a tiny model: every form's figures, and what happens to forms that are not possible."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conformer_vision import extras
from conformer_vision.benchmark import BenchmarkConfig, benchmark, run
from conformer_vision.benchmark.forms import FORMS, Form, OpenForm
from conformer_vision.errors import UserError
from conformer_vision.weights import load_model, save_model
from exports import WITH_EXPORTS, make_run, shared_graphs

pytestmark = WITH_EXPORTS


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shallow Conformer with BatchNorm statistics that make folding work."""
    return make_run(tmp_path_factory.mktemp("benchmark") / "run") / "best.safetensors"


@pytest.fixture
def quick(weights: Path) -> BenchmarkConfig:
    return BenchmarkConfig(str(weights), forms=("eager", "folded"), batch=(2,), repeats=2, threads=1)


def test_speed_size_and_difference(quick: BenchmarkConfig) -> None:
    with shared_graphs():
        result = benchmark(replace(quick, forms=("eager", "folded", "folded-fp16", "onnx"), batch=(9, 1)))
    assert [row.batch for row in result.rows] == [1] * 4 + [9] * 4
    assert not any(row.wrong for row in result.rows)
    eager, folded, half, onnx = result.rows[:4]
    model, _ = load_model(quick.model)
    assert eager.file_mb == pytest.approx(sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6)
    assert half.file_mb < 0.6 * folded.file_mb < 0.7 * onnx.file_mb
    assert half.difference > 10 * max(folded.difference, onnx.difference)
    assert json.loads(result.to_json())["rows"][3]["form"] == "onnx"


def test_without_names_every_form_of_every_runtime_is_tried(
    quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_form(form: Form, model: nn.Module, *_: object, **__: object) -> OpenForm:
        return OpenForm(form, torch.inference_mode()(model), 1.0)

    monkeypatch.setattr(run, "open_form", open_form)
    lines: list[str] = []
    result = benchmark(replace(quick, forms=None, repeats=1), say=lines.append)
    assert [row.form for row in result.rows] == list(FORMS)
    assert {"eager", "folded", "onnx", "onnx-int8", "openvino-bf16"} < FORMS.keys()
    assert "torch-export" not in FORMS, "no runtime of ours reads it"
    assert lines == [*(f"preparing {name}" for name in FORMS), f"batch 2: {len(FORMS)} forms in turns"]


def test_figures_follow_from_the_times(quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [[10.0, 30.0, 20.0], [5.0, 5.0, 15.0]]
    monkeypatch.setattr(run, "take_turns", lambda calls, *, rounds, seconds: times)
    eager, folded = benchmark(quick).rows
    assert (eager.median_ms, eager.images_per_second, eager.speedup) == (20, 100, 1)
    assert (folded.median_ms, folded.images_per_second, folded.speedup) == (5, 400, 4)
    assert folded.p95_ms == pytest.approx(14)
    assert (folded.rounds, folded.times_ms) == (3, (5.0, 5.0, 15.0))


@pytest.mark.parametrize(
    ("change", "wrong"),
    [(lambda x: x * 1.001, True), (lambda x: x * (1 + 1e-6), False), (lambda x: x * math.nan, True)],
)
def test_wrong_logits_are_found(
    change: Callable[[Tensor], Tensor],
    wrong: bool,
    quick: BenchmarkConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = run.open_form

    def open_form(form: object, *arguments: object, **options: object) -> OpenForm:
        opened = real(form, *arguments, **options)  # type: ignore[arg-type]
        return replace(opened, call=lambda x: change(opened.call(x))) if form is FORMS["folded"] else opened

    monkeypatch.setattr(run, "open_form", open_form)
    result = benchmark(quick)
    assert [row.wrong for row in result.rows] == [False, wrong]
    json.loads(result.to_json())


def test_a_form_that_is_not_possible(quick: BenchmarkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name.startswith("on") else found(name))
    result = benchmark(replace(quick, forms=None))
    missing = "onnx is not installed: pip install 'conformer-vision[export]'"
    assert [row.form for row in result.rows] == ["eager", "folded", "folded-fp16", "folded-bf16"]
    assert result.left_out[0] == f"onnx: {missing}"
    assert len(result.left_out) == len(FORMS) - 4
    with pytest.raises(UserError, match=rf"^onnx-int8: {missing}".replace("[", r"\[").replace("]", r"\]")):
        benchmark(replace(quick, forms=("eager", "onnx-int8")))


def test_folded_weights_have_no_eager_form(
    quick: BenchmarkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spec = load_model(quick.model)
    save_model(model.fold(), spec, tmp_path / "folded.safetensors")  # type: ignore[operator]
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    result = benchmark(replace(quick, model=str(tmp_path / "folded.safetensors"), forms=None))
    assert (result.rows[0].form, result.rows[0].speedup) == ("folded", 1)
    assert result.left_out[0] == "eager: these weights are folded; give those that training wrote"


def test_an_export_and_a_missing_file_are_refused(quick: BenchmarkConfig, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="give the run folder or weights"):
        benchmark(replace(quick, model=str(tmp_path / "model.onnx")))
    with pytest.raises(UserError, match="does not exist"):
        benchmark(replace(quick, model=str(tmp_path / "nothing")))
