"""Views of images: the answers over several are those of a plain loop; what cannot be looked at."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from conformer_vision import export
from conformer_vision.errors import UserError
from conformer_vision.inference import Predictor
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runtime.views import SCALES, View, Views, parse_views
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model, save_model


def test_what_is_asked_for() -> None:
    assert parse_views(None) == Views() and list(Views()) == [View()]
    assert parse_views("flip") == Views(flip=True)
    assert parse_views("scales") == Views(SCALES)
    assert parse_views("flip+scales") == parse_views("scales + flip") == Views(SCALES, flip=True)
    assert parse_views("scales=0.5,1,2") == Views((0.5, 1.0, 2.0))
    assert parse_views(Views((2.0,))) == Views((2.0,))
    assert list(Views((1.0, 2.0), flip=True)) == [
        View(1.0), View(1.0, mirrored=True), View(2.0), View(2.0, mirrored=True)
    ]  # fmt: skip
    assert len(Views((1.0, 2.0), flip=True)) == 4
    assert Views((1.0, 2.0), flip=True).cost == "4 forward passes per image, 10.0 times the pixels"


@pytest.mark.parametrize(
    "text", ["", "flop", "flip,scales", "scales=", "scales=a", "flip=1", "rotate", "scales=1;2"]
)
def test_what_is_no_view(text: str) -> None:
    with pytest.raises(UserError, match=f"tta {text!r}: "):
        parse_views(text)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0,), (math.nan,), (1.0, math.inf)])
def test_scales_that_cannot_be(scales: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"scales .*: give one or more positive numbers"):
        Views(scales)
    with pytest.raises(UserError, match="scales"):
        parse_views(f"scales={','.join(map(str, scales))}")


def test_the_answer_is_the_mean_over_a_plain_loop(conformer_run: Path, colours: Image.Image) -> None:
    """Of the logits of every head and of the pooled features, with the network as it is loaded."""
    model, spec = load_model(conformer_run)
    trained = TrainedModel(conformer_run, device="cpu", views=Views((1.0, 1.5), flip=True))
    array = trained.transform(colours)[None]
    image = torch.from_numpy(array)
    logits = {"conv": 0.0, "trans": 0.0, "fused": 0.0}
    features = torch.zeros(1)
    height, width = spec.input_size[1:]
    with torch.inference_mode():
        for size in ((height, width), (round(1.5 * height), round(1.5 * width))):
            seen = image
            if size != (height, width):
                seen = torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True)
            for view in (seen, torch.flip(seen, [3])):
                branches = model.forward_branches(view)
                logits["conv"] = logits["conv"] + branches.conv / 4
                logits["trans"] = logits["trans"] + branches.trans / 4
                logits["fused"] = logits["fused"] + model(view) / 4
                features = features + model.forward_head(model.forward_features(view), pre_logits=True) / 4
    found = trained.outputs(array)
    for head, expected in logits.items():
        np.testing.assert_allclose(found.logits[head], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-5)
    (answer,) = Predictor(conformer_run, device="cpu", tta="flip+scales=1,1.5")(colours)
    assert answer.probabilities[0] == pytest.approx(float(logits["fused"].softmax(1).max()), rel=1e-4)


def test_a_mirrored_image_gets_the_same_answer(resnet_run: Path, colours: Image.Image) -> None:
    mirrored = colours.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    one, other = Predictor(resnet_run, device="cpu", tta="flip")([colours, mirrored])
    assert one.labels == other.labels
    assert np.allclose(one.probabilities, other.probabilities, atol=1e-5)
    plain, turned = Predictor(resnet_run, device="cpu")([colours, mirrored])
    assert not np.allclose(plain.probabilities, turned.probabilities, atol=1e-5)


def test_sizes_that_the_network_cannot_take(conformer_run: Path, tmp_path: Path) -> None:
    """Too small for any network, of a network of a fixed size, and of an export with one."""
    with pytest.raises(UserError, match=r"cannot take 16x16, .*\(each edge must be 32 pixels or more\)"):
        Predictor(conformer_run, device="cpu", tta="scales=0.5,1")
    fixed = tmp_path / "fixed.safetensors"
    small = {"embed_dim": 16, "depth": 1, "num_heads": 1, "img_size": [64, 64]}
    spec = ModelSpec("vit_tiny_patch16_224", small, ("a", "b"), (3, 64, 64))
    save_model(timm.create_model(spec.model, num_classes=2, **small), spec, fixed)
    pytest.importorskip("onnxruntime")
    exported = export(fixed, format="onnx", output=tmp_path / "fixed.onnx").path
    for path in (fixed, exported):
        with pytest.raises(
            UserError, match=r"^tta: .* cannot take 96x96, .*; give other scales, or flip alone$"
        ):
            Predictor(path, device="cpu", tta="scales=1,1.5")
        assert Predictor(path, device="cpu", tta="flip").notes == [
            "test-time augmentation: 2 forward passes per image, 2.0 times the pixels"
        ]


def test_memory_is_that_of_the_largest_view(conformer_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def check(network: object, compute: object, shape: tuple[int, ...], *, batches: int) -> None:
        shapes.append(shape)

    monkeypatch.setattr("conformer_vision.inference.runtimes.weights.check_batch", check)
    trained = TrainedModel(conformer_run, device="cpu", views=Views((1.0, 2.0)))
    trained.check_batch(3)
    height, width = trained.spec.input_size[1:]
    assert shapes == [(3, 3, 2 * height, 2 * width)]
    assert replace(Views(), flip=True) == Views(flip=True)
