"""Converting for another runtime: under one contract, and when, where and whether it is done."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import run as command
from conformer_vision import Predictor, evaluate
from conformer_vision.ensemble import write_ensemble
from conformer_vision.errors import UserError
from conformer_vision.inference.conversion import computing, convert, kept, onnx
from conformer_vision.inference.conversion.kept import MANIFEST, Slot, find_kept, keep
from conformer_vision.inference.runtimes import WeightsRuntime
from conformer_vision.runs import ModelSource, find_model
from conformer_vision.weights import load_model, save_model
from contracts.conversion import IMAGES, ConversionContract, Model, assert_same
from exports import WITH_EXPORTS, make_run, shared_graphs
from rejecting import calibrated, noise

pytestmark = WITH_EXPORTS


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of its own, and one graph per network."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch, shared_graphs():
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def marked_run(folder: Path, weights: Path | None = None) -> Path:
    """A run folder as training leaves it, without thresholds; with other weights if they are given."""
    make_run(folder)
    (folder / "config.yaml").write_text("# A run of conformer-vision\ndata: digits\nval_fraction: 0.1\n")
    if weights is not None:
        (folder / "best.safetensors").write_bytes(weights.read_bytes())
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, resnet_run: Path) -> dict[str, Path]:
    """Models of every kind by name; ``other`` is of the architecture of ``resnet``, and has images."""
    folder = tmp_path_factory.mktemp("models")
    run = marked_run(folder / "conformer")
    os.replace(calibrated(run, folder), run / "best.safetensors")
    network, spec = load_model(run)
    several, other = folder / "several.safetensors", folder / "other"
    save_model(network, replace(spec, multilabel=True, thresholds=None), several)
    (folder / "resnet").mkdir()
    resnet = calibrated(resnet_run, folder / "resnet")
    network, spec = load_model(resnet_run)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.01)
    save_model(network, spec, marked_run(other) / "best.safetensors")
    for number, image in enumerate(noise(40, seed=8)):
        place = folder / "photos" / spec.classes[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")
    config = f"# A run of conformer-vision\ndata: {folder / 'photos'}\nval_fraction: 0.2\n"
    (other / "config.yaml").write_text(config)
    folds = folder / "ensemble.safetensors"
    write_ensemble([resnet_run, other], folds, fitted=spec)
    return {"conformer": run, "several": several, "other": other, "folds": folds, "resnet": resnet}


@pytest.fixture
def model(models: dict[str, Path], resnet_run: Path, tmp_path: Path) -> Model:
    """A model by name.

    ``fresh`` is a run of this test's own, which nothing was converted from: of ``resnet``'s weights without
    thresholds, as a small network is enough for what is kept. ``fresh conformer`` is one of the digits.
    """

    def found(name: str) -> Path:
        if name == "fresh":
            return marked_run(tmp_path / "fresh", resnet_run / "best.safetensors")
        return marked_run(tmp_path / "fresh") if name == "fresh conformer" else models[name]

    return found


class TestOnnx(ConversionContract):
    runtime = "onnx"


class TestOpenVino(ConversionContract):
    runtime = "openvino"


# ---- when it pays ------------------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """PyTorch takes a second per image; the number of images in each batch that it was timed with."""
    timed: list[int] = []

    def time_of(runtime: object, images: torch.Tensor) -> float:
        timed.append(len(images))
        return float(len(images))

    monkeypatch.setattr(computing, "time_of", time_of)
    return timed


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each conversion that is opened from now on may be made; none is there."""
    calls: list[bool] = []
    monkeypatch.setattr(convert, "open_conversion", lambda *_, make, **__: calls.append(make))
    return calls


def repeated(number: int) -> list[Any]:
    return [IMAGES[0]] * number


def test_few_images_are_left_to_pytorch(models: dict[str, Path], slow: list[int], opened: list[bool]) -> None:
    Predictor(models["conformer"], device="cpu").predict(repeated(99))
    assert (slow, opened) == ([], [])


@pytest.mark.parametrize(
    ("seconds", "asked"), [(0.05, []), (0.07, [False]), (0.59, [False]), (0.6, [True])], ids=str
)
def test_it_depends_on_the_time_of_pytorch(
    seconds: float,
    asked: list[bool],
    models: dict[str, Path],
    opened: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(computing, "time_of", lambda runtime, images: seconds * len(images))
    predictor = Predictor(models["conformer"], device="cpu")
    for _ in range(2):  # what is not there the first time is not looked for again, but may be made
        predictor.predict(repeated(100))
    assert opened == asked * (2 if asked == [True] else 1)


def test_each_network_of_an_ensemble_has_to_pay(
    models: dict[str, Path], opened: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, asked in ((0.7, False), (1.3, True)):
        monkeypatch.setattr(computing, "time_of", lambda _, images, each=seconds: each * len(images))
        Predictor(models["folds"], device="cpu").predict(repeated(100))
        assert opened.pop() == asked


def test_streams_are_left_to_pytorch_unless_a_conversion_is_kept(
    models: dict[str, Path], opened: list[bool]
) -> None:
    Predictor(models["conformer"], device="cpu").predict(iter(repeated(1000)))
    assert opened == [False]


def test_each_view_is_timed(models: dict[str, Path], slow: list[int], opened: list[bool]) -> None:
    Predictor(models["conformer"], device="cpu", tta="flip").predict(repeated(100))
    assert slow == [4, 4]


def test_auto_converts_once_and_answers_alike(
    model: Model, slow: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run = model("fresh conformer")
    many = [*IMAGES, *repeated(100 - len(IMAGES))]
    expected = Predictor(run, device="cpu", runtime="torch")(many)
    predictor = Predictor(run, device="cpu")
    start, found = threading.Barrier(3), {}

    def work(number: int) -> None:
        start.wait(20)
        found[number] = predictor(many)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found.values():
        assert_same(each, expected)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"runtime openvino: converting {run / 'best.safetensors'} once, checked and kept"
    done = command("evaluate", run, "--data", "digits", "--json")
    line = f"runtime openvino: the conversion of {run / 'best.safetensors'} that is kept"
    assert done.status == 0 and done.err.splitlines()[-1] == line
    plain = command("evaluate", run, "--data", "digits", "--runtime", "torch")
    assert plain.status == 0 and "runtime" not in plain.err


def test_weights_without_a_run_are_kept_in_the_cache(caches: Path, models: dict[str, Path]) -> None:
    Predictor(models["resnet"], device="cpu", runtime="onnx")
    found = list((caches / "conformer-vision" / "conversions").glob("copied-*/copied-onnx-fp32-40x32-*"))
    assert len(found) == 1
    assert not list(models["resnet"].parent.glob("conversions"))


# ---- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["it cannot be exported", "its answers differ"])
def test_a_model_that_cannot_be_converted_stays_with_pytorch(
    problem: str,
    model: Model,
    slow: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, many = model("fresh"), repeated(100)
    expected = Predictor(run, device="cpu", runtime="torch")(many)

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise UserError("model x cannot be exported")

    if problem == "it cannot be exported":
        monkeypatch.setattr(onnx, "build_graph", broken)
        reason = "model x cannot be exported"
    else:
        monkeypatch.setattr(WeightsRuntime, "plain", lambda runtime: load_model(model("other"))[0].eval())
        reason = "the fp32 file's logits differ from the model's"
    predictor = Predictor(run, device="cpu")
    assert_same(predictor(many), expected)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("once, checked and kept")
    assert second.startswith(f"PyTorch computes instead: {reason}")
    predictor(many)
    assert capsys.readouterr().err == "", "it is not tried again"
    assert list((run / "conversions").iterdir()) == []
    with pytest.raises(UserError, match=reason):
        Predictor(run, device="cpu", runtime="openvino")


def test_an_operator_that_onnx_lacks(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no such operator\nwith a stack trace")

    runtime = WeightsRuntime(find_model(models["conformer"]), "cpu")
    monkeypatch.setattr(torch.onnx, "export", broken)
    build: Any = onnx.build_graph
    with pytest.raises(UserError, match=r"cannot be exported to ONNX \(no such operator\)$"):
        build.__wrapped__(runtime.plain(), runtime.spec, "fp32", features=True)


def test_folders_that_cannot_be_written(
    model: Model,
    tmp_path: Path,
    slow: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = model("fresh")
    (run / "conversions").write_text("in the way")  # as root may write into any folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Predictor(run, device="cpu", runtime="onnx")
    assert (
        len(list((tmp_path / "cache" / "conformer-vision" / "conversions").glob("best-*/best-onnx-*"))) == 1
    )
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written \(.*\); set XDG_CACHE_HOME to a folder that can"):
        Predictor(run, device="cpu", runtime="onnx")
    capsys.readouterr()
    assert Predictor(run, device="cpu")(repeated(100))[0].labels
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"PyTorch computes instead: {tmp_path / 'file'}") and "XDG_CACHE_HOME" in line


def test_without_the_libraries(
    models: dict[str, Path],
    slow: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("conformer_vision.extras.find_spec", lambda name: None)
    assert Predictor(models["conformer"], device="cpu")(repeated(100))
    assert capsys.readouterr().err == ""
    pip = r"is not installed: pip install 'conformer-vision\[export\]'"
    for options in ({"runtime": "onnx"}, {"runtime": "openvino"}, {"precision": "int8"}):
        with pytest.raises(UserError, match=pip):
            Predictor(models["conformer"], device="cpu", **options)  # type: ignore[arg-type]


def test_without_openvino_onnxruntime_computes(
    models: dict[str, Path], opened: list[bool], slow: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conformer_vision.extras.find_spec", lambda name: None if name == "openvino" else 1)
    entries: list[str] = []
    monkeypatch.setattr(
        convert, "open_conversion", lambda original, entry, *_, **__: entries.append(entry.name)
    )
    Predictor(models["conformer"], device="cpu").predict(repeated(100))
    assert entries == ["onnx"]


NOT_ON_CUDA = "device 'cuda' cannot be used here (OpenVINO files run on the CPU); 'cpu' always can"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            "--runtime onnx --precision bf16",
            "precision bf16: the format onnx has fp32, fp16, int8; bf16 is in openvino",
        ),
        (
            "--runtime torch --precision int8",
            "--precision int8: the runtime torch has fp32; int8 is in openvino, onnx",
        ),
        ("--runtime openvino --device cuda", NOT_ON_CUDA),
        ("--precision int8 --device cuda", NOT_ON_CUDA),
    ],
)
def test_what_a_runtime_does_not_have(options: str, line: str, models: dict[str, Path], images: Path) -> None:
    done = command("predict", models["conformer"], images, *options.split())
    assert (done.status, done.out, done.err) == (2, "", f"error: {line}\n")


def test_unknown_names(models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="runtime='tensorrt': must be one of auto, torch, onnx, openvino"):
        Predictor(models["conformer"], runtime="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="precision='fp8': must be one of fp32, fp16, bf16, int8"):
        evaluate(models["conformer"], "digits", precision="fp8")  # type: ignore[arg-type]


def test_bfloat16_that_the_processor_lacks(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "has_bfloat16", lambda: False)
    with pytest.raises(UserError, match="precision='bf16': this processor has no arithmetic in bfloat16"):
        Predictor(models["conformer"], device="cpu", precision="bf16")


def test_int8_without_images(models: dict[str, Path]) -> None:
    message = (
        "precision int8 needs images to calibrate with, and no config.yaml beside .*copied.safetensors"
        " names any; conformer_vision.export with data writes a file to give instead"
    )
    with pytest.raises(UserError, match=message):
        Predictor(models["resnet"], device="cpu", precision="int8")


def test_exported_files_keep_their_own(exported: Path) -> None:
    """Their runtime and precision may be named, and no other ones."""
    for file, kind, other in (("model.xml", "openvino", "onnx"), ("model.onnx", "onnx", "openvino")):
        path = exported / file
        named = Predictor(path, device="cpu", runtime=kind, precision="fp32")  # type: ignore[arg-type]
        assert_same(named(IMAGES), Predictor(path, device="cpu")(IMAGES))
        for runtime in (other, "torch"):
            with pytest.raises(UserError, match=f"runtime='{runtime}': .*{file} is a file for {kind}; leave"):
                Predictor(path, device="cpu", runtime=runtime)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"precision='int8': .*{file} computes in fp32; leave it out"):
            Predictor(path, device="cpu", precision="int8")


# ---- keeping -----------------------------------------------------------------------------------------


SLOT = Slot("best-onnx-fp32", "0123456789abcdef" * 4, ("model.onnx",))


def source_in(folder: Path) -> ModelSource:
    return find_model(marked_run(folder))


def write_model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"model")


def test_the_slower_of_two_processes_takes_what_is_there(tmp_path: Path) -> None:
    source = source_in(tmp_path / "run")

    def write_while_another_does(folder: Path) -> None:
        write_model(folder)
        faster.append(keep(source, SLOT, write_model))

    faster: list[Path] = []
    place = keep(source, SLOT, write_while_another_does)
    assert place == faster[0] == find_kept(source, SLOT)
    assert [path.name for path in place.parent.iterdir()] == [SLOT.folder]


def test_nothing_is_left_of_one_that_fails(tmp_path: Path) -> None:
    source = source_in(tmp_path / "run")

    def fail(folder: Path) -> None:
        write_model(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(source, SLOT, fail)
    assert list((tmp_path / "run" / "conversions").iterdir()) == []

    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write into .*conversions: No space left on device"):
        keep(source, SLOT, full)
    assert find_kept(source, SLOT) is None


def test_what_is_tidied_up(tmp_path: Path) -> None:
    """Older ones of the same name, and leftovers of a day ago; no others."""
    source = source_in(tmp_path / "run")
    folder = tmp_path / "run" / "conversions"
    key = "f" * 16
    names = (f"best-onnx-fp32-{key}", f"best-onnx-fp32-48x48-{key}", ".a", ".b")
    older, other, dead, alive = (folder / name for name in names)
    for each in (older, other, dead, alive):
        each.mkdir(parents=True)
    os.utime(dead, (0, 0))
    place = keep(source, SLOT, write_model)
    assert {path.name for path in folder.iterdir()} == {place.name, other.name, alive.name}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"key": 1}', '{"key": "KEY", "files": {}}', "[" * 5000, '{"key": "KEY"}']
)
def test_damaged_manifests(text: str, tmp_path: Path) -> None:
    source = source_in(tmp_path / "run")
    place = keep(source, SLOT, write_model)
    assert find_kept(source, SLOT) == place
    (place / MANIFEST).write_text(text.replace("KEY", SLOT.key))
    assert find_kept(source, SLOT) is None
    assert keep(source, SLOT, write_model) == place == find_kept(source, SLOT)


def test_a_digest_depends_on_every_weight(models: dict[str, Path]) -> None:
    first, second, other = (
        WeightsRuntime(find_model(models[name]), "cpu") for name in ("conformer", "conformer", "resnet")
    )
    assert first.digest() == second.digest() != other.digest()
    network = first.plain()
    assert not any("InPlace" in type(module).__name__ for module in network.modules())
    for name, tensor in network.state_dict().items():
        before, last = first.digest(), (-1,) * tensor.ndim
        with torch.no_grad():
            tensor[last] += 1  # the memory is that of the runtime
            assert first.digest() != before, name
            tensor[last] -= 1


def test_where_conversions_may_be(tmp_path: Path, caches: Path) -> None:
    run = marked_run(tmp_path / "run")
    (run / "top").mkdir()
    top = run / "top" / "epoch.safetensors"
    top.write_bytes((run / "best.safetensors").read_bytes())
    for path in (run / "best.safetensors", top):
        first, second = kept.folders_for(find_model(path))
        assert first == run / "conversions"
        assert second.parent == caches / "conformer-vision" / "conversions"
    (only,) = kept.folders_for(find_model("conformer_nano_patch8_64"))
    assert only.name.startswith("conformer_nano_patch8_64-")
