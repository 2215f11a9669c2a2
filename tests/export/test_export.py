"""Every format against the weights it comes from, in this process and in one without torch."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch

from command_line import one_line, run
from conformer_vision import Evaluation, Predictor, evaluate
from conformer_vision.errors import UserError
from conformer_vision.export import Exported, write_network
from conformer_vision.export import run as export_run
from conformer_vision.export.formats import FORMATS
from conformer_vision.export.run import export, open_written
from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.models.variants import SHIPPED
from conformer_vision.spec import METADATA_KEY, ModelSpec
from conformer_vision.weights import load_model
from exports import FILES, SPEC, WITH_EXPORTS, shared_graphs

pytestmark = WITH_EXPORTS

PLAIN = [name for name in FILES if name != "folded"]


def test_torch_export_in_a_program_of_ones_own(exported: Path) -> None:
    """Any number and size of images; the other formats are under the contract of runtimes."""
    model, _ = load_model(exported)
    extra = {METADATA_KEY: ""}
    program = torch.export.load(exported / FILES["torch-export"], extra_files=extra).module()
    for batch, height, width in ((1, 32, 32), (3, 47, 61), (2, 33, 130)):
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))
        with torch.inference_mode():
            branches = model.forward_branches(images)  # type: ignore[operator]
            expected = (model.fuse_logits(branches), *branches)  # type: ignore[operator]
            for actual, logits in zip(program(images), expected, strict=True):
                torch.testing.assert_close(actual, logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    assert ModelSpec.from_json(extra[METADATA_KEY]) == SPEC


@pytest.fixture(scope="module")
def expected(exported: Path) -> Evaluation:
    """The evaluation of the run itself."""
    return evaluate(exported, "digits", batch_size=50)


@pytest.mark.parametrize("name", ["folded", "onnx", "openvino"])
def test_evaluated_and_used_like_a_run(name: str, exported: Path, images: Path, expected: Evaluation) -> None:
    file = exported / FILES[name]
    actual = evaluate(file, "digits", batch_size=50)
    assert actual.confusion == expected.confusion
    for head, figures in actual.heads.items():
        assert figures.top1.value == pytest.approx(expected.heads[head].top1.value)
        assert figures.ece.value == pytest.approx(expected.heads[head].ece.value, abs=1e-4)
    ours, theirs = (Predictor(what)([images]) for what in (exported, file))
    assert [answer.labels for answer in theirs] == [answer.labels for answer in ours]
    assert [answer.error is None for answer in theirs] == [False, True, True]
    if name == "onnx":
        done = run("predict", file, images, "--json")
        assert done.status == 1, "one of the images is broken"
        assert json.loads(done.out)[1]["labels"] == list(ours[1].labels[:3])


WITHOUT_TORCH = """
import json, sys
import numpy as np
path, images, output = sys.argv[1:]
images = np.load(images)
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    spec = json.loads(session.get_modelmeta().custom_metadata_map["conformer_vision"])
    logits = session.run(["logits"], {"images": images})[0]
else:
    import openvino
    core = openvino.Core()
    model = core.read_model(path)
    spec = json.loads(model.get_rt_info(["conformer_vision", "spec"]).value)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled({"images": images})["logits"]
assert "torch" not in sys.modules and "conformer_vision" not in sys.modules
np.save(output, logits)
keys = ("classes", "mean", "input_size", "crop_pct", "interpolation")
print(json.dumps([spec[key] for key in keys]))
"""


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_in_a_process_without_torch(name: str, exported: Path, tmp_path: Path) -> None:
    model, spec = load_model(exported)
    images = torch.randn(2, 3, 40, 64)
    np.save(tmp_path / "images.npy", images.numpy())
    arguments = [exported / FILES[name], tmp_path / "images.npy", tmp_path / "logits.npy"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = [list(spec.classes), list(spec.mean), list(spec.input_size), spec.crop_pct, spec.interpolation]
    assert json.loads(done.stdout) == expected
    with torch.inference_mode():
        logits = model(images)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_a_file_is_whole_and_names_no_place(name: str, exported: Path, tmp_path: Path) -> None:
    """It works after it is moved alone, and says nothing of the machine that wrote it."""
    file = exported / FILES[name]
    moved = tmp_path / file.name
    moved.write_bytes(file.read_bytes())
    content = file.read_bytes()
    if name == "openvino":
        moved.with_suffix(".bin").write_bytes(file.with_suffix(".bin").read_bytes())
    elif name != "onnx":
        with zipfile.ZipFile(file) as archive:
            content = b"".join(archive.read(entry) for entry in archive.namelist())
    open_written(moved, FORMATS[name])(np.zeros((1, 3, 32, 32), np.float32))
    for place in (str(Path(__file__).parents[2]), sysconfig.get_paths()["purelib"], str(exported.parent)):
        assert place.encode() not in content


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        ("folded", "fp16", 5e-3),
        ("onnx", "fp16", 2e-2),
        ("openvino", "fp16", 5e-3),
        ("torch-export", "bf16", 0.1),
    ],
)
def test_lower_precision(name: str, precision: str, tolerance: float, exported: Path, tmp_path: Path) -> None:
    target = tmp_path / f"low{Path(FILES[name]).suffix}"
    with shared_graphs():
        low = export(exported, format=name, precision=precision, output=target)  # type: ignore[arg-type]
    assert low.path == target
    assert 1e-6 < low.difference.relative < tolerance
    if name in ("folded", "openvino"):
        weights = target.with_suffix(".bin") if name == "openvino" else target
        assert weights.stat().st_size < 0.6 * (exported / FILES["folded"]).stat().st_size


@pytest.fixture(scope="module")
def int8(exported: Path) -> Exported:
    with shared_graphs(), pytest.MonkeyPatch.context() as patch:
        # test_quantize.py has the search for what stays in float
        patch.setattr("conformer_vision.inference.conversion.quantize.LARGEST_ERROR", 1.0)
        return export(exported, format="onnx", precision="int8", calibration_images=16)


def test_int8(int8: Exported, exported: Path, expected: Evaluation) -> None:
    assert int8.path == exported / "model-int8.onnx"
    proto = onnx.load(int8.path)
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("QuantizeLinear") > 20
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    scales = [
        weights[node.input[1]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in weights
    ]
    assert any(len(scale.dims) == 1 and scale.dims[0] > 1 for scale in scales), "weights per channel"
    assert int8.accuracy is not None
    before, after = int8.accuracy
    assert before.samples == after.samples == 181
    assert before.confusion == expected.confusion
    assert after.confusion == evaluate(int8.path, "digits").confusion
    assert int8.path.stat().st_size < (exported / "model.onnx").stat().st_size


def test_another_model_of_timm(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=3).eval()
    spec = ModelSpec("test_vit", classes=("a", "b", "c"), input_size=(3, 160, 160))
    images = torch.randn(3, 3, 160, 160)
    with torch.inference_mode():
        expected = model(images)
    with shared_graphs():
        for name in PLAIN:
            path = tmp_path / FILES[name]
            write_network(model, spec, path, format=name)
            heads = open_written(path, FORMATS[name])(images.numpy())
            assert list(heads) == ["fused"]
            np.testing.assert_allclose(heads["fused"], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="format folded is for Conformers"):
        write_network(model, spec, tmp_path / "m.safetensors", format="folded")


def test_published_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a run the file gets the name and lies where one is; what lies there is not looked at."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("data: of another run\n")
    done = run("export", SHIPPED, "--format", "folded")
    assert done.status == 0, done.err
    x = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    expected = open_runtime(SHIPPED, device="cpu")(x)
    network = open_runtime(tmp_path / f"{SHIPPED}-folded.safetensors", device="cpu")
    assert network.spec.labels[0] == "goldfish"
    for head, logits in network(x).items():
        np.testing.assert_allclose(logits, expected[head], rtol=1e-4, atol=1e-4)


# ---- what goes wrong -------------------------------------------------------------------------------


def test_a_file_with_other_answers_is_not_kept(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"what was there")

    def wrong(model: torch.nn.Module, *arguments: object, **options: object) -> tuple[str, ...]:
        with torch.no_grad():
            model.conv_head.bias += 0.01  # type: ignore[operator,union-attr]
        kept = write_network(model, *arguments, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            model.conv_head.bias -= 0.01  # type: ignore[operator,union-attr]
        return kept

    monkeypatch.setattr(export_run, "write_network", wrong)
    done = run("export", exported, "--format", "folded", "--output", target)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("error: the fp32 file's logits differ from the model's by")
    assert target.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", FILES)
def test_a_disk_without_room(exported: Path, tmp_path: Path, name: str) -> None:
    """Files that may not grow beyond 50 KB fail as on a full disk: at a write in the middle."""
    target = tmp_path / FILES[name]
    target.write_bytes(b"what was there")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with shared_graphs():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        try:
            done = run("export", exported, "--format", name, "--output", target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"error: cannot write {tmp_path / target.stem}." in one_line(done)
    assert target.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [target]


def test_mistakes_are_one_line(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*arguments: object) -> str:
        return one_line(run("export", *arguments))

    assert "onnx" in error(exported, "--format", "tensorrt")
    assert "bf16 is in folded, openvino" in error(exported, "--format", "onnx", "--precision", "bf16")
    assert "does not exist" in error(tmp_path / "none", "--format", "onnx")
    output = ["--output", tmp_path / "no" / "m.onnx"]
    assert f"the folder {tmp_path / 'no'} does not exist" in error(exported, "--format", "onnx", *output)
    assert "end in .onnx" in error(exported, "--format", "onnx", "--output", tmp_path / "m.pb")
    itself = ["--output", exported / "best.safetensors"]
    assert "is the model itself" in error(exported, "--format", "folded", *itself)
    (exported / "last.safetensors").write_bytes(b"the run's own")
    last = ["--output", exported / "last.safetensors"]
    assert "is a file of the run itself" in error(exported, "--format", "folded", *last)
    (exported / "last.safetensors").unlink()
    assert "must be 1 or more" in error(exported, "--format", "onnx", "--calibration_images", 0)

    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((exported / "best.safetensors").read_bytes())
    int8 = ["--format", "onnx", "--precision", "int8"]
    assert "names any; give --data" in error(alone, *int8)
    assert "does not exist" in error(alone, *int8, "--data", tmp_path / "nowhere")
    assert sorted(tmp_path.iterdir()) == [alone]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
        line = error(exported, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert "cannot be written; give another place with --output" in line
    monkeypatch.setattr("conformer_vision.extras.find_spec", lambda name: None)
    assert "pip install 'conformer-vision[export]'" in error(exported, "--format", "onnx")
