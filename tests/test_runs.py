"""What a path to a model means, `load` for each kind of it, and the configuration of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import conformer_vision
from conformer_vision import load
from conformer_vision.errors import UserError
from conformer_vision.models import VARIANTS, ConformerConfig
from conformer_vision.models.checkpoints import to_official, to_openmmlab
from conformer_vision.models.variants import SHIPPED
from conformer_vision.runs import find_model, is_model, is_run_folder, mark_config, read_run_config
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model, save_model
from exports import SPEC, make_run

TINY = "conformer_tiny_patch16_224"
SMALL = ConformerConfig(channel_ratio=0.25, embed_dim=8, num_heads=1, depths=(2, 1, 2), stem_width=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def refused(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_arch(path: str | Path, arch: str) -> str:
    return refused(lambda: load(path, arch=arch))


def test_load_gives_model_spec_and_transform(run: Path) -> None:
    model, spec, transform = load(run)
    assert not model.training and not model.folded  # type: ignore[truthy-function]
    assert spec == SPEC and spec.version == conformer_vision.__version__
    image = Image.new("RGB", (50, 40), (200, 10, 60))
    by_timm = timm.data.create_transform(spec.input_size, mean=spec.mean, std=spec.std, crop_pct=1.0)
    torch.testing.assert_close(transform(image), by_timm(image), rtol=1e-5, atol=1e-5)
    assert model(transform(image)[None]).shape == (1, 10)
    assert load(str(run / "best.safetensors")).spec == spec


def test_a_runs_own_checkpoint(run: Path, tmp_path: Path) -> None:
    """As lightning writes it; how to build the network is in the weights beside it."""
    model, spec = load_model(run)
    weights = {name: torch.rand_like(value) for name, value in model.state_dict().items() if value.ndim > 1}
    state = {f"model.{name}": value for name, value in (model.state_dict() | weights).items()}
    torch.save({"pytorch-lightning_version": "2.6", "state_dict": state}, tmp_path / "last.ckpt")
    save_model(model, spec, tmp_path / "last.safetensors")
    loaded = load(tmp_path / "last.ckpt")
    assert loaded.spec == spec
    for name, value in weights.items():
        assert torch.equal(loaded.model.state_dict()[name], value)


# ---- checkpoints of others --------------------------------------------------------------------------


@pytest.fixture
def published() -> Iterator[dict[str, Tensor]]:
    """The weights of a small network, to which Conformer-Ti and two with the same parameters shrink."""
    small = dict.fromkeys((TINY, "conformer_tiny_patch4_32", "conformer_nano_patch4_32"), SMALL)
    # Building the others takes long; that they differ is tested below. The order is restored as well.
    with patch.dict(VARIANTS, small, clear=True):
        torch.manual_seed(0)
        model = timm.create_model(TINY, num_classes=1000)
        yield {name: torch.rand_like(v) if v.ndim > 1 else v for name, v in model.state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: to_official(weights),
        lambda weights: {"meta": {"mmcls_version": "0.20.0"}, "state_dict": to_openmmlab(weights)},
        lambda weights: {"arch": TINY, "epoch": 3, "state_dict": weights},
    ],
    ids=["official", "openmmlab", "timm"],
)
def test_a_checkpoint_whose_variant_can_be_told(
    wrap: Callable[[dict[str, Tensor]], Any], published: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(wrap(published), tmp_path / "weights.pth")
    model, spec, transform = load(tmp_path / "weights.pth")
    assert (spec.model, spec.num_classes, spec.classes[0]) == (TINY, 1000, "n01440764")
    assert spec.labels[281].startswith("tabby")
    for name, value in published.items():
        assert torch.equal(model.state_dict()[name], value), name
    assert transform(Image.new("RGB", (300, 400))).shape == (3, 224, 224)


def test_a_checkpoint_that_could_be_of_several_variants(published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(published, path)
    assert f"weights.pth fits several variants ({TINY}, " in (line := refused(load, path)) and "arch" in line
    assert load(path, arch="conformer_tiny_patch4_32").spec.input_size == (3, 32, 32)
    line = refused_arch(path, "conformer_tiny_patch16_225")
    assert line == f"arch='conformer_tiny_patch16_225' is no model of timm; did you mean {TINY}?"


@pytest.mark.usefixtures("published")
def test_classes_of_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those it names, those beside it, or numbers."""
    weights = timm.create_model(TINY, num_classes=3).state_dict()
    path = tmp_path / "weights.pth"
    names = ("ant", "bee", "cat")
    for meta in (
        {"CLASSES": names},
        {"dataset_meta": {"classes": list(names)}},
        {"dataset_meta": {"CLASSES": names}},
    ):
        torch.save({"meta": meta | {"epoch": 3}, "state_dict": to_openmmlab(weights)}, path)
        assert load(path).spec.classes == names
    assert not caplog.messages
    for meta in ({"CLASSES": names[:2]}, {"CLASSES": ("ant", "ant", "bee")}, {"CLASSES": 7}, None):
        torch.save({"meta": meta, "state_dict": to_openmmlab(weights)}, path)
        assert load(path).spec.classes == ("0", "1", "2")
    assert "the names of the 3 classes" in caplog.text and "classes.txt" in caplog.text
    (tmp_path / "classes.txt").write_text("x\ny\n")  # of another model
    assert load(path).spec.classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("x\ny\n犬\n", encoding="utf-8")
    assert load(path).spec.classes == ("x", "y", "犬")


def test_channels_suffixes_and_other_networks(published: dict[str, Tensor], tmp_path: Path) -> None:
    grey = timm.create_model(TINY, num_classes=1000, in_chans=1)
    torch.save({"model": to_official(grey.state_dict())}, tmp_path / "grey.pth.tar")
    model, spec, transform = load(tmp_path / "grey.pth.tar")
    assert spec.input_size == (1, 224, 224) and spec.mean == (pytest.approx(0.449),)
    assert model(transform(Image.new("RGB", (40, 50)))[None]).shape == (1, 1000)

    official = to_official(published)
    save_file({name: value.contiguous() for name, value in official.items()}, tmp_path / "bare.safetensors")
    (tmp_path / "bare.pth").write_bytes((tmp_path / "bare.safetensors").read_bytes())
    torch.save(official, tmp_path / "pickled.safetensors")
    for name in ("bare.safetensors", "bare.pth", "pickled.safetensors"):
        assert load(tmp_path / name).spec.model == TINY

    resnet = timm.create_model("test_resnet", num_classes=5, in_chans=3)
    torch.save({"arch": "test_resnet", "state_dict": resnet.state_dict()}, tmp_path / "resnet.pth")
    assert load(tmp_path / "resnet.pth").spec.model == "test_resnet"
    torch.save({f"module.{name}": value for name, value in resnet.state_dict().items()}, tmp_path / "bare.pt")
    loaded = load(tmp_path / "bare.pt", arch="test_resnet")
    assert loaded.spec.num_classes == 5
    assert torch.equal(loaded.model.state_dict()["fc.weight"], resnet.state_dict()["fc.weight"])
    assert "weights of another model than resnet18" in refused_arch(tmp_path / "bare.pt", "resnet18")
    assert "has no classifier head" in refused_arch(tmp_path / "bare.pt", "test_vit")


def test_where_an_architecture_has_no_effect(run: Path, tmp_path: Path) -> None:
    assert load(run, arch=SPEC.model).spec == SPEC
    assert f"is a {SPEC.model}; leave arch='{TINY}' out" in refused_arch(run, TINY)
    assert "leave it out" in refused_arch(SHIPPED, TINY)
    (tmp_path / "model.onnx").touch()
    assert "leave it out" in refused_arch(tmp_path / "model.onnx", TINY)


@pytest.mark.usefixtures("published")
def test_files_that_are_no_checkpoint_of_a_network(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    assert "linear.pt has no model spec, and its parameters are" in refused(load, tmp_path / "linear.pt")
    (tmp_path / "cut.pth").write_bytes(b"PK")
    assert "damaged" in refused(load, tmp_path / "cut.pth")


# ---- what a path is -----------------------------------------------------------------------------------


def test_kinds_of_paths(run: Path, tmp_path: Path) -> None:
    for name, kind in {
        "a.safetensors": "weights",
        "a.ckpt": "checkpoint",
        "a.PTH": "checkpoint",
        "a.onnx": "onnx",
        "a.xml": "openvino",
        SHIPPED: "weights",  # a file there is wins over published weights; by its suffix it would be none
    }.items():
        path = tmp_path / (name if name != SHIPPED else f"{SHIPPED}.safetensors")
        path.touch()
        assert find_model(path).kind == kind
        assert is_model(path)
    assert find_model(run) == find_model(run / "best.safetensors")
    assert find_model(SHIPPED).kind == "published" and is_model("resnet50.a1_in1k")
    for name in ("photo.jpg", "resnet51", str(tmp_path), "x" * 5000, "a\0b"):
        assert not is_model(name)
        refused(find_model, name)
    (tmp_path / "photo.jpg").touch()
    assert "photo.jpg is no model; give a run folder" in refused(find_model, tmp_path / "photo.jpg")
    assert "nothing.onnx does not exist" in refused(find_model, tmp_path / "nothing.onnx")


def test_an_export_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert "Predictor" in refused(load, tmp_path / "model.onnx")


# ---- the configuration and the specification -----------------------------------------------------------


def test_config_of_a_run(run: Path, tmp_path: Path) -> None:
    assert read_run_config(run) == {"data": "digits", "val_fraction": 0.1, "seed": 0}
    assert "has no config.yaml" in refused(read_run_config, tmp_path)
    for text, reason in {
        "[1": "is not YAML",
        "- 1": "names with values",
        "a: &a [*a]": "is not YAML",
        "\x80": "is not YAML",
        "a: &x [1,2,3]\nb: " + str(["*x"] * 4000).replace("'", ""): "more than",
    }.items():
        (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
        assert reason in refused(read_run_config, tmp_path), text


def test_run_folders_are_marked(run: Path, tmp_path: Path) -> None:
    assert is_run_folder(run)  # its config.yaml was written by hand
    config = tmp_path / "config.yaml"
    assert (
        not is_run_folder(tmp_path) and not is_run_folder(tmp_path / "nothing") and not is_run_folder("a\0b")
    )
    config.write_text("epochs: 3\n")  # another program's
    assert not is_run_folder(tmp_path)
    config.write_text(mark_config("epochs: 3\n"))
    assert is_run_folder(str(tmp_path)) and read_run_config(tmp_path) == {"epochs": 3}
    config.unlink()
    (tmp_path / "best.safetensors").touch()  # shared weights among photos
    assert not is_run_folder(tmp_path)


def test_the_version_in_a_spec() -> None:
    """A file says which version wrote it; older files say nothing, and newer ones are read too."""
    spec = ModelSpec("test_resnet", classes=("a", "b"))
    text = spec.to_json()
    assert f'"version": "{conformer_vision.__version__}"' in text
    newer = ModelSpec.from_json(text.replace(f'"{conformer_vision.__version__}"', '"99.0"'))
    assert newer.version == "99.0" and newer == spec
    older = ModelSpec.from_json(text.replace(f', "version": "{conformer_vision.__version__}"', ""))
    assert older.version == "" and older == spec
    assert "version must be text" in refused(
        ModelSpec.from_json, text.replace(f'"{conformer_vision.__version__}"', "1")
    )


def test_variants_with_weights_can_be_told_apart() -> None:
    """No two variants with published weights have the same parameters."""
    shapes = set()
    for name in VARIANTS:
        if timm.get_pretrained_cfg(name).url:
            with torch.device("meta"):
                model = timm.create_model(name)
            shapes.add(tuple((key, tuple(value.shape)) for key, value in model.state_dict().items()))
    assert len(shapes) == 4
