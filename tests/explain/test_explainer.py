"""Explanations of image files: where the network's input lies on them, and what it answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conformer_vision import Predictor, explain
from conformer_vision.errors import UserError
from conformer_vision.explain import Explainer, explained, overlay
from conformer_vision.explain.explainer import placed, relative
from conformer_vision.geometry import Box, seen_part
from conformer_vision.spec import ModelSpec, Preprocessing
from conformer_vision.tensors import evaluation_pipeline
from conformer_vision.weights import save_model

SIDES = st.integers(20, 250)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(SIDES, SIDES),
    target=st.tuples(st.integers(32, 120), st.integers(32, 120)) | st.integers(32, 120).map(lambda n: (n, n)),
    crop_pct=st.sampled_from([1.0, 0.95, 0.875, 0.6]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
)
def test_the_part_that_is_seen(
    size: tuple[int, int], target: tuple[int, int], crop_pct: float, crop_mode: str
) -> None:
    """Pixels that say where they are, through the transform itself, are the oracle."""
    width, height = size
    columns = np.tile(np.arange(width, dtype=np.uint8), (height, 1))
    rows = np.tile(np.arange(height, dtype=np.uint8)[:, None], (1, width))
    image = Image.fromarray(np.stack([columns, rows, np.full_like(rows, 255)], 2))
    values = Preprocessing((3, *target), (0.0,) * 3, (1.0,) * 3, "bilinear", crop_pct, crop_mode)
    found = (255 * evaluation_pipeline(values)(image)).numpy()
    left, top, right, bottom = seen_part(values, size)
    inside = found[2] > 254.5  # not the border that a crop mode adds
    for channel, (start, end, cells, pixels) in enumerate(
        ((left, right, target[1], width), (top, bottom, target[0], height))
    ):
        expected = start + (np.arange(cells) + 0.5) / cells * (end - start) - 0.5
        expected = expected if channel == 0 else expected[:, None]
        scale = (end - start) / cells
        away = (expected > 2 * scale + 1) & (expected < pixels - 2 * scale - 2) & inside  # edges are smoothed
        error = np.abs(found[channel] - expected)[np.broadcast_to(away, inside.shape)]
        assert error.size == 0 or error.max() < 1.5 + 0.02 * scale


def test_an_extremely_long_image_is_seen_in_its_middle() -> None:
    values = Preprocessing((3, 32, 32), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0, "squash")
    box = seen_part(values, (4000, 10))
    assert box == Box(2000 - 160, 0, 2000 + 160, 10)


def test_a_heat_map_is_laid_where_its_part_is() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1
    full = placed(heat, Box(20, 10, 60, 50), (100, 60))
    assert full.shape == (60, 100)
    row, column = np.unravel_index(full.argmax(), full.shape)
    assert 20 <= row < 30 and 40 <= column < 50  # the cell takes rows 20 to 30, columns 40 to 50
    assert not full[:10].any() and not full[50:].any() and not full[:, :20].any() and not full[:, 60:].any()
    assert placed(heat + 1, Box(-10, 0, 110, 60), (100, 60)).min() >= 1  # a border beyond the image


def test_evidence_goes_from_zero_to_one() -> None:
    maps = torch.tensor([[[-1.0, 0.0], [1.0, 2.0]], [[5.0, 5.0], [5.0, 5.0]], [[-1.0, -1.0], [-2.0, -1.0]]])
    assert relative(maps, signed=True)[0].tolist() == [[0, 0], [0.5, 1]]
    assert relative(maps, signed=True)[2].max() == 0, "evidence against the class is none for it"
    torch.testing.assert_close(relative(maps, signed=False)[0], torch.tensor([[0, 1 / 3], [2 / 3, 1]]))
    assert relative(maps, signed=False)[1].max() == 0, "what is the same everywhere points nowhere"
    assert relative(torch.full((2, 2), torch.nan), signed=True).max() == 0


@pytest.mark.parametrize("whole", [False, True])
def test_explanations_say_what_the_predictor_says(trained: Path, images: Path, whole: bool) -> None:
    done = explain(trained, images, top_k=2, whole=whole, device="cpu")
    predictions = Predictor(trained, device="cpu")(images, top_k=2)
    assert [each.name for each in done] == [each.name for each in predictions]
    assert done[0].error == predictions[0].error and done[0].error is not None
    for each, prediction in zip(done[1:], predictions[1:], strict=True):
        assert each.image is not None and each.error is None
        assert each.heat_map().shape == each.evidence().shape == each.image.size[::-1]
        assert tuple(answer.label for answer in each.classes) == prediction.labels
        shares = [answer.probabilities["fused"] for answer in each.classes]
        assert shares == pytest.approx(prediction.probabilities, abs=1e-4)
        assert prediction.conv is not None and prediction.trans is not None
        by_conv = max(each.top, key=lambda answer: answer.probabilities["conv"])
        assert by_conv.probabilities["conv"] == pytest.approx(prediction.conv.probability, abs=1e-4)
        assert explained(each).size == each.image.size
    with pytest.raises(UserError, match="so it has no heat map"):
        done[0].heat_map()
    with pytest.raises(UserError, match="class 'x' was not explained; these were: "):
        done[1].heat_map("x")


def test_a_whole_image_is_seen_in_its_proportions(trained: Path) -> None:
    explainer = Explainer(trained, whole=True, device="cpu")
    for size, edges in (
        ((300, 100), (32, 96)),
        ((100, 300), (96, 32)),
        ((640, 20), (32, 192)),
        ((50, 60), (32, 32)),
    ):
        batch, seen = explainer.prepare(Image.new("RGB", size))
        assert batch.shape[2:] == edges
        assert seen == pytest.approx((0, 0, *size))


def test_overlays_are_grey_without_evidence() -> None:
    image = Image.new("RGB", (6, 4), (200, 40, 10))
    evidence = np.zeros((4, 6), dtype=np.float32)
    evidence[1, 2] = 1
    drawn = np.asarray(overlay(image, evidence)).astype(int)
    grey = int(np.asarray(image.convert("L"))[0, 0])
    assert (drawn[0, 0] == grey).all() and (drawn[1, 2] != grey).any()
    assert drawn[1, 2].sum() > 3 * grey, "strong evidence is bright"


def test_a_class_that_is_not_there_scores_lower(tmp_path: Path) -> None:
    """The bundled weights know both things; the photos come from scikit-image."""
    import skimage.data

    photos = {"tabby": skimage.data.chelsea(), "espresso": skimage.data.coffee()}
    explainer = Explainer(device="cpu")
    for name, pixels in photos.items():
        (found,) = explainer.explain(Image.fromarray(pixels), classes=list(photos))
        here, other = name, next(each for each in photos if each != name)
        shares = {answer.label: answer.probabilities["conv"] for answer in found.classes}
        assert shares[here] > shares[other]
        assert found.heat_map(here).max() > found.heat_map(other).max()


def test_mistakes(trained: Path, tmp_path: Path) -> None:
    explainer = Explainer(trained, device="cpu")
    image = Image.new("RGB", (40, 40))
    with pytest.raises(UserError, match=r"has no class 'eleven'"):
        list(explainer.explain(image, classes=["eleven"]))
    with pytest.raises(UserError, match="no class is named"):
        list(explainer.explain(image, classes=[]))
    with pytest.raises(UserError, match="top_k 0: must be 1 or more"):
        list(explainer.explain(image, top_k=0))
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"")
    with pytest.raises(UserError, match="is an export, which hides what is inside"):
        Explainer(onnx)


@pytest.mark.parametrize(
    ("name", "folded", "cells"),
    [
        ("conformer_nano_patch8_64", False, {None: 4, 8: 8}),
        ("conformer_nano_patch8_64", True, {None: 4, 8: 8}),
        ("test_resnet", False, {None: 2, 16: 4, 8: 8}),
    ],
)
def test_a_finer_map_of_the_same_weights(
    name: str, folded: bool, cells: dict[int | None, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=2).eval()
    path = tmp_path / "weights.safetensors"
    written = model.fold() if folded else model
    save_model(written, ModelSpec(name, classes=("a", "b"), input_size=(3, 64, 64)), path)
    images = torch.rand(1, 3, 64, 64)
    for stride, edge in cells.items():
        explainer = Explainer(path, output_stride=stride)
        features = explainer.model.forward_features(images)
        assert features.shape[2:] == (edge, edge), stride
        state = explainer.model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in written.state_dict().items())
        options = {} if stride is None else {"output_stride": stride}
        built = timm.create_model(name, num_classes=2, **options).eval()
        built.load_state_dict(model.state_dict())
        torch.testing.assert_close(explainer.model(images), built(images), rtol=1e-4, atol=1e-5)
        (explanation,) = explainer.explain(Image.effect_noise((80, 50), 60).convert("RGB"))
        assert explanation.heat_map().shape == (50, 80)


def test_output_strides_that_change_nothing(tmp_path: Path) -> None:
    for stride, line in (
        (16, "the last map of this conformer_nano_patch8_64 is 1/16 of .* leave it out, or give 8$"),
        (32, "changes nothing"),
        (7, "use 32, 16 or 8"),
    ):
        with pytest.raises(UserError, match=f"output_stride={stride}.*{line}"):
            Explainer(output_stride=stride)
    path = tmp_path / "vit.safetensors"
    vit = timm.create_model("test_vit", num_classes=2)
    save_model(vit, ModelSpec("test_vit", classes=("a", "b"), input_size=(3, 160, 160)), path)
    with pytest.raises(UserError, match=r"^output_stride=8: test_vit cannot take it; leave it out$"):
        Explainer(path, output_stride=8)
