"""Weights taken by name: those that come with the package, and ImageNet's, with a file for the download."""

import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from conformer_vision import evaluate, load_checkpoint
from conformer_vision.cli import main
from conformer_vision.errors import UserError
from conformer_vision.models import ConformerConfig, variants
from conformer_vision.models.checkpoints import to_openmmlab
from conformer_vision.models.variants import SHIPPED
from conformer_vision.spec import METADATA_KEY, ModelSpec
from conformer_vision.weights import load_model
from take_images import take_images

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = "conformer_tiny_patch16_224"
WNIDS = ("n01440764", "n02123045", "n03126707")
"""The folders' names of tench, tabby and crane, the machine."""


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection can be made."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def shipped_spec() -> ModelSpec:
    with safe_open(timm.get_pretrained_cfg(SHIPPED).file, framework="pt") as file:
        return ModelSpec.from_json(file.metadata()[METADATA_KEY])


@pytest.mark.usefixtures("offline")
def test_what_ships_loads_without_a_network() -> None:
    """By timm and with its spec: the same network, whose preprocessing timm knows too."""
    model, spec = load_model(SHIPPED)
    by_timm = timm.create_model(SHIPPED, pretrained=True).eval()
    assert timm.create_model(SHIPPED.partition(".")[0], pretrained=True).pretrained_cfg["tag"]
    x = torch.randn(2, *spec.input_size)
    with torch.no_grad():
        torch.testing.assert_close(model(x), by_timm(x))
    data = timm.data.resolve_model_data_config(by_timm, use_test_size=True)
    assert all(data[name] == value for name, value in asdict(spec.preprocessing).items())
    assert spec.num_classes == by_timm.num_classes == len(spec.descriptions)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 8e6
    assert Path(timm.get_pretrained_cfg(SHIPPED).file).stat().st_size <= 17e6


@pytest.mark.usefixtures("offline")
def test_what_ships_begins_a_training_of_other_classes() -> None:
    model = timm.create_model("conformer_nano_patch8_64", pretrained=True, num_classes=3, in_chans=1)
    shipped = timm.create_model(SHIPPED, pretrained=True).state_dict()
    own = model.state_dict()
    changed = {name for name, value in own.items() if not torch.equal(value, shipped[name])}
    assert changed == {
        "stem.conv.weight",
        *(f"{h}_head.{p}" for h in ("conv", "trans") for p in ("weight", "bias")),
    }
    torch.testing.assert_close(
        own["stem.conv.weight"], shipped["stem.conv.weight"].sum(1, keepdim=True), rtol=1e-3, atol=1e-3
    )


def test_what_ships_is_as_good_as_its_spec_says(shared_dir: Path, tmp_path: Path) -> None:
    """On the images that its accuracy was measured on, none of which it was trained on."""
    test = tmp_path / "tiny20-val.parquet"
    classes = (BENCHMARKS / "tiny_imagenet_20.txt").read_text(encoding="utf-8").splitlines()
    source = shared_dir / "data" / "tiny-imagenet-200" / "val.parquet"
    assert take_images(str(source), test, classes=classes) == 1000
    measured = evaluate(SHIPPED, test, split="all", device="cpu")
    stored = BENCHMARKS / "results" / "shipped--conformer-nano-patch8-64--0.json"
    stated = json.loads(stored.read_text(encoding="utf-8"))["top1"]
    assert set(stated) == {"conv", "trans", "fused"}
    for head, top1 in stated.items():  # the run's weights were measured, what ships are their halves
        assert measured.heads[head].top1.value == pytest.approx(top1, abs=0.005), head


# ---- ImageNet --------------------------------------------------------------------------------------


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint as OpenMMLab's of a small network, given where Conformer-Ti's is to be downloaded."""
    small = ConformerConfig(channel_ratio=0.25, embed_dim=8, num_heads=1, depths=(2, 1, 2), stem_width=8)
    monkeypatch.setitem(variants.VARIANTS, TINY, small)
    torch.manual_seed(0)
    weights = timm.create_model(TINY, num_classes=1000).state_dict()
    weights = {k: torch.randn_like(v) * 0.3 if v.ndim > 1 else v for k, v in weights.items()}
    file = tmp_path / "weights.pth"
    torch.save({"meta": {"mmcls_version": "0.20.0"}, "state_dict": to_openmmlab(weights)}, file)

    def fetch(url: str, **_: Any) -> Path:
        assert url.startswith("https://download.openmmlab.com/") and "conformer-tiny-p16" in url
        return file

    monkeypatch.setattr(variants, "fetch_pretrained", fetch)
    return file


@pytest.fixture
def imagenet_val(tmp_path: Path) -> Path:
    """A folder in ImageNet's layout: WordNet numbers, of which only three are there."""
    rng = np.random.default_rng(0)
    for wnid in WNIDS:
        (tmp_path / "imagenet" / "val" / wnid).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(rng.integers(0, 256, (90 + number, 120, 3), dtype=np.uint8))
            image.save(tmp_path / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG")
    return tmp_path / "imagenet" / "val"


def test_imagenet_weights_are_measured_on_imagenet(
    published: Path, imagenet_val: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, against timm's own transform and the numbers of the classes in ImageNet."""
    command = ["evaluate", TINY, "--data", str(imagenet_val), "--split", "all", "--device", "cpu", "--json"]
    assert main(command) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["samples"] == 9

    model = timm.create_model(TINY, num_classes=1000).eval()
    load_checkpoint(model, published)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    losses = []
    for wnid, number in zip(WNIDS, (0, 281, 517), strict=True):
        for path in sorted((imagenet_val / wnid).iterdir()):
            with torch.no_grad(), Image.open(path) as image:
                logits = model(transform(image.convert("RGB"))[None])[0]
            losses.append(float(-logits.log_softmax(0)[number]))
    assert measured["heads"]["fused"]["log_loss"]["value"] == pytest.approx(sum(losses) / 9, rel=1e-4)


def test_imagenet_classes_have_english_names(published: Path) -> None:
    _, spec = load_model(TINY)
    assert spec.classes[281] == "n02123045"
    assert spec.labels[281].startswith("tabby")
    assert spec.labels[517] == "crane (n03126707)"
    assert len(set(spec.labels)) == 1000


def test_what_is_not_published() -> None:
    with pytest.raises(UserError, match="conformer_nano_patch4_32 has no published weights"):
        load_model("conformer_nano_patch4_32")
