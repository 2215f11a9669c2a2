"""Folders of the Hugging Face Hub, without the libraries that read them; tests/clients has those."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from command_line import one_line, run
from conformer_vision import Predictor, load
from conformer_vision.errors import UserError
from conformer_vision.export import write_network
from conformer_vision.export.evaluated import add_results
from conformer_vision.export.hf import self_contained
from conformer_vision.export.run import export
from conformer_vision.models.variants import SHIPPED
from conformer_vision.runs import find_model, is_model
from conformer_vision.spec import ModelSpec
from conformer_vision.training.config import TrainConfig
from conformer_vision.training.network import build_model
from conformer_vision.training.start import settle
from exports import SPEC, write_run

CLASSES = ("cat", "dog", "owl", "fox", "bee")
CALIBRATED = replace(SPEC, classes=CLASSES, temperature=1.7)
SOURCE = Path(__file__).parents[2] / "src" / "conformer_vision"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("hf") / "run", CALIBRATED)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return export(trained, format="hf", output=tmp_path / "exported").path


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_by_the_command(trained: Path) -> None:
    done = run("export", trained, "--format", "hf")
    assert done.status == 0, done.err
    folder = trained / "model-hf"
    assert f"{folder}: hf, fp32, 0." in done.out and "the same answer for 100.0%" in done.out
    assert find_model(folder).kind == "hf" and is_model(folder)
    again = run("export", trained, "--format", "hf")
    assert again.status == 0 and config_of(folder)["architecture"] == SPEC.model
    assert not [path for path in trained.iterdir() if path.name.startswith(".")]


def test_the_temperature_is_in_both_heads(trained: Path, folder: Path) -> None:
    before, after = load_file(trained / "best.safetensors"), load_file(folder / "model.safetensors")
    heads = ("conv_head.weight", "conv_head.bias", "trans_head.weight", "trans_head.bias")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value / 1.7 if name in heads else value, rtol=1e-6, atol=0)
    _, spec, _ = load(folder)
    assert spec.temperature == 1 and spec.classes == CLASSES
    assert (spec.input_size, spec.crop_pct, spec.mean) == (SPEC.input_size, SPEC.crop_pct, SPEC.mean)


def test_predictor_answers_as_the_run_does(trained: Path, folder: Path, images: Path) -> None:
    photos = sorted(images.iterdir())[1:]
    for ours, theirs in zip(Predictor(trained)(photos), Predictor(folder)(photos), strict=True):
        assert ours.labels == theirs.labels
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    done = run("predict", folder, photos[0])
    assert done.status == 0, done.err


def test_the_configuration(folder: Path) -> None:
    """What transformers and timm need, and nothing of other weights or of this machine."""
    config = config_of(folder)
    assert config["label_names"] == list(CLASSES) and config["num_classes"] == 5
    assert "num_classes" not in config["model_args"], "transformers passes it a second time"
    assert config["image_processor_type"] == "TimmWrapperImageProcessor"
    assert config["model_args"]["depths"] == [2, 1, 2] and config["model_args"]["stem_stride"] == 2
    assert not {"tag", "url", "file", "label_names", "test_input_size"} & config["pretrained_cfg"].keys()
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    for place in (str(SOURCE), sysconfig.get_paths()["purelib"], str(folder.parent)):
        assert place.encode() not in content
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.pt*")), "safetensors alone"


def test_the_model_card(folder: Path) -> None:
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["pipeline_tag"] == "image-classification" and metadata["library_name"] == "transformers"
    assert "license" not in metadata, "who trained it says that"
    assert "Classes: cat, dog, owl, fox, bee" in text and "trust_remote_code=True" in text


def test_the_model_card_has_the_results_of_the_run(trained: Path, folder: Path, tmp_path: Path) -> None:
    figure = {"value": 0.875, "low": 0.75, "high": 0.9375}
    heads = {"fused": figure, "conv": figure | {"value": 0.5}, "trans": figure | {"value": None}}
    best = {"epoch": 1, "top1": heads}
    results = {"best": best, "images": {"val": 1200}, "data": "/home/somebody/birds"}
    card, source = tmp_path / "README.md", find_model(trained)
    plain = (folder / "README.md").read_text()
    hostile = [{}, results | {"best": None}, results | {"best": {"top1": 3}}, results | {"images": []}]
    undefined = results | {"best": {"top1": {"fused": {"value": None, "low": None, "high": None}}}}
    try:
        for wrong in [*hostile, undefined]:
            (trained / "results.json").write_text(json.dumps(wrong))
            card.write_text(plain)
            add_results(card, source, model="mine")
            assert card.read_text() == plain
        (trained / "results.json").write_text(json.dumps(results))
        add_results(card, source, model="mine")
    finally:
        (trained / "results.json").unlink()
    _, header, text = card.read_text().split("---\n", 2)
    (found,) = yaml.safe_load(header)["model-index"]
    assert found["name"] == "mine"
    assert found["results"] == [
        {
            "task": {"type": "image-classification"},
            "dataset": {"name": "birds", "type": "birds", "split": "validation"},
            "metrics": [{"type": "accuracy", "name": "Top-1", "value": 0.875}],
        }
    ]
    said = (
        "Top-1 on the 1,200 validation images of birds: 87.5% (95 % interval 75.0% to 93.8%); "
        "convolution head 50.0% alone."
    )
    assert said in text and "somebody" not in card.read_text()


def test_the_code_is_the_packages_own(folder: Path) -> None:
    """Line by line, except where it imports from the package."""
    files = sorted(folder.glob("*.py"))
    assert {"modeling_conformer.py", "conformer.py", "blocks.py", "config.py"} <= {
        file.name for file in files
    }
    for file in files:
        (own,) = [path for place in ("models", "export") if (path := SOURCE / place / file.name).exists()]
        ours, theirs = own.read_text().splitlines(), file.read_text().splitlines()
        assert len(ours) == len(theirs)
        for line, written in zip(ours, theirs, strict=True):
            if line != written:
                assert line.startswith("from conformer_vision.") and written.startswith("from .")
        assert "import conformer_vision" not in file.read_text()


ALONE = """
import json, sys
from importlib.util import find_spec
assert find_spec("conformer_vision") is None
import torch
from safetensors.torch import load_file, save_file
folder, name = sys.argv[1:]
sys.path.insert(0, folder)
from exported.config import ConformerConfig
from exported.conformer import Conformer
config = json.load(open(f"{folder}/{name}/config.json"))
model = Conformer(ConformerConfig(**config["model_args"]), config["num_classes"])
model.load_state_dict(load_file(f"{folder}/{name}/model.safetensors"))
print(json.dumps(model.eval()(torch.linspace(-1, 1, 3 * 40 * 50).reshape(1, 3, 40, 50)).tolist()))
"""


def test_the_code_runs_without_this_package(trained: Path, folder: Path) -> None:
    site = next(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        [sys.executable, "-S", "-c", ALONE, str(folder.parent), folder.name],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": site, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    model, _, _ = load(trained)
    with torch.inference_mode():
        expected = model(torch.linspace(-1, 1, 3 * 40 * 50).reshape(1, 3, 40, 50)) / 1.7
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), expected, rtol=1e-4, atol=1e-5)


def test_modules_of_one_name_would_not_overwrite_each_other() -> None:
    names = [path.name for place in ("models", "export") for path in (SOURCE / place).glob("*.py")]
    written = self_contained("conformer_vision.export.modeling_conformer").keys()
    assert all(names.count(name) == 1 for name in written)


def test_timm_reads_the_folder(trained: Path, folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.randn(1, 3, 40, 50)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), load(trained).model(x) / 1.7, rtol=1e-4, atol=1e-5)


def test_another_model_of_timm(tmp_path: Path) -> None:
    spec = ModelSpec("test_resnet", classes=("a", "b", "c"), input_size=(3, 64, 64), temperature=0.5)
    write_run(tmp_path / "run", spec)
    folder = export(tmp_path / "run", format="hf").path
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "auto_map" not in config_of(folder)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = load(tmp_path / "run").model(x) / 0.5
        torch.testing.assert_close(load(folder).model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["conformer_nano_patch8_64", "test_resnet"])
def test_a_run_starts_from_the_folder(name: str, tmp_path: Path) -> None:
    """Also from one that transformers has saved again, which has the names of its wrapper."""
    spec = ModelSpec(name, classes=("a", "b", "c"), input_size=(3, 64, 64))
    write_run(tmp_path / "run", spec)
    folder = export(tmp_path / "run", format="hf").path
    expected = load(folder).model.state_dict()
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    save_file({f"timm_model.{key}": value for key, value in expected.items()}, again / "model.safetensors")
    for each in (folder, again):
        start = settle(TrainConfig.from_options(data="digits", checkpoint=str(each), input_size=64))
        assert start.config.model.name == name
        found = build_model(start.config.model, 3).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


def test_the_bundled_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name; what is exported of the folder is named after it."""
    monkeypatch.chdir(tmp_path)
    folder = export(SHIPPED, format="hf").path
    assert folder == Path(f"{SHIPPED}-hf") and config_of(folder)["label_names"][0] == "goldfish"
    assert yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["license"] == "apache-2.0"
    assert load(folder).spec.classes == load(SHIPPED).spec.classes
    again = export(folder, format="folded").path
    assert again == Path(f"{SHIPPED}-hf-folded.safetensors")
    assert load(again).spec.labels[0] == "goldfish"


def test_weights_describe_themselves(trained: Path) -> None:
    """A run is not the bundled weights, whose variant it uses; those have label names."""
    cfg: Any = load(trained).model.pretrained_cfg
    assert cfg["num_classes"] == 5 and cfg["input_size"] == (3, 32, 32) and "tag" not in cfg
    bundled: Any = load(SHIPPED).model.pretrained_cfg
    name = SHIPPED.partition(".")[0]
    made: Any = timm.create_model(name, pretrained=True).pretrained_cfg
    for each in (bundled, made):
        assert each["tag"] == "tiny_imagenet_20" and len(each["label_names"]) == 20 and "file" not in each
        assert each["label_descriptions"][each["label_names"][0]] == "goldfish"
    scratch: Any = timm.create_model(name).pretrained_cfg
    assert not {"tag", "file", "label_names"} & scratch.keys()


# ---- what goes wrong -------------------------------------------------------------------------------


def test_mistakes_are_one_line(trained: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        return one_line(run("export", *arguments))

    output = ["--output", tmp_path / "there"]
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    assert "holds other files (notes.txt); give a new folder" in error(trained, "--format", "hf", *output)
    assert (tmp_path / "there" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert "is a file; format hf writes a folder" in error(
        trained, "--format", "hf", "--output", tmp_path / "file"
    )
    assert "the format hf has fp32" in error(trained, "--format", "hf", "--precision", "fp16")
    assert "only format hf is sent to the Hub" in error(
        trained, "--format", "folded", "--push_to_hub", "me/animals"
    )
    assert "give the repository as user/name" in error(
        trained, "--format", "hf", "--push_to_hub", "me/my animals"
    )
    folded = export(trained, format="folded", output=tmp_path / "folded.safetensors").path
    assert "are folded; give format hf those that training wrote" in error(folded, "--format", "hf")
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"")
    assert "give the run folder or weights" in error(onnx, "--format", "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file",
        "folded.safetensors",
        "model.onnx",
        "there",
    ]


def test_a_head_that_is_not_linear(tmp_path: Path) -> None:
    run_folder = write_run(tmp_path / "run", replace(CALIBRATED, model="test_resnet", model_kwargs={}))
    model, spec, _ = load(run_folder)
    model.fc = torch.nn.Sequential(model.fc)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot go into the head of test_resnet"):
        write_network(model, spec, tmp_path / "folder", format="hf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda config: "[", "is not JSON"),
        (lambda config: "[1]", "names no architecture"),
        (lambda config: json.dumps(config | {"architecture": "none"}), "timm knows no model 'none'"),
        (lambda config: json.dumps(config | {"label_names": ["a", "b"]}), "it says 5 classes and names 2"),
        (lambda config: json.dumps(config | {"pretrained_cfg": {"mean": 3}}), "is damaged|mean must be"),
        (lambda config: json.dumps(config | {"model_args": {"depths": 3}}), "cannot build"),
    ],
)
def test_a_damaged_configuration(folder: Path, damage: Callable[[Any], str], message: str) -> None:
    (folder / "config.json").write_text(damage(config_of(folder)))
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_disk_without_room(trained: Path, folder: Path) -> None:
    """What was there stays as it was."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        done = run("export", trained, "--format", "hf", "--output", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert f"error: cannot write {folder}" in one_line(done)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


# ---- the Hub ---------------------------------------------------------------------------------------


def test_push_to_hub(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, *, exist_ok: bool) -> None:
            sent["made"] = name, exist_ok

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            sent["files"] = repo_id, {path.name for path in folder_path.iterdir()}
            return f"address of {repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    output = tmp_path / "folder"
    done = run("export", trained, "--format", "hf", "--output", output, "--push_to_hub", "me/animals")
    assert done.status == 0 and "sent to address of me/animals" in done.err
    assert sent["made"] == ("me/animals", True)
    assert sent["files"] == ("me/animals", {path.name for path in output.iterdir()})


def test_without_a_network_the_folder_is_there(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = tmp_path / "folder"
    done = run("export", trained, "--format", "hf", "--output", output, "--push_to_hub", "me/animals")
    assert done.status == 2
    line = done.err.splitlines()[-1]
    assert line.startswith(f"error: {output} is written, but cannot be sent to me/animals on the Hub (")
    assert line.endswith("check the network and your login ('hf auth login'), then try again")
    assert (output / "model.safetensors").is_file()
