"""Libraries that explain a classifier: torchcam, pytorch-grad-cam and captum, on the layer of `cam_layer`."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from clients import WITHOUT, images

CLASS = 3


@pytest.fixture(scope="module")
def model() -> Any:
    """The bundled weights: heads that know something."""
    return timm.create_model("conformer_nano_patch8_64", pretrained=True).eval()


def exact(model: Any) -> torch.Tensor:
    """The exact class map of the convolution head, which Grad-CAM's of the last layer is, up to a factor."""
    with torch.inference_mode():
        maps: torch.Tensor = model.class_maps(images(1)).conv[:, CLASS]
    return maps.clamp(min=0) / maps.max()


def test_torchcam(model: Any) -> None:
    methods = pytest.importorskip("torchcam.methods", reason=WITHOUT)
    with methods.GradCAM(model, target_layer=model.cam_layer()) as extractor:
        (found,) = extractor(CLASS, model(images(1)))
    torch.testing.assert_close(found / found.max(), exact(model), rtol=1e-3, atol=1e-3)
    for block in (1, 5, 11):
        with methods.LayerCAM(model, target_layer=model.cam_layer(block)) as extractor:
            (found,) = extractor(CLASS, model(images(1)))
        assert found.isfinite().all() and found.std() > 0


def test_grad_cam(model: Any) -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason=WITHOUT)
    targets = [library.utils.model_targets.ClassifierOutputTarget(CLASS)]
    with library.GradCAM(model=model, target_layers=[model.cam_layer()]) as cam:
        found = torch.from_numpy(cam(input_tensor=images(1), targets=targets))
    assert found.shape == (1, 250, 333)
    expected = F.interpolate(exact(model)[None], size=(250, 333), mode="bilinear")[0]
    both = torch.stack([found.flatten(), expected.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99, "resized by another library"


def test_captum(model: Any) -> None:
    attr = pytest.importorskip("captum.attr", reason=WITHOUT)
    x = images(1)
    map_of_layer = attr.LayerGradCam(model, model.cam_layer()).attribute(
        x, target=CLASS, relu_attributions=True
    )
    torch.testing.assert_close(map_of_layer[0] / map_of_layer.max(), exact(model), rtol=1e-3, atol=1e-3)
    found, error = attr.IntegratedGradients(model).attribute(
        x, target=CLASS, n_steps=8, internal_batch_size=2, return_convergence_delta=True
    )
    with torch.inference_mode():
        change = (model(x) - model(torch.zeros_like(x)))[0, CLASS]
    # They sum up to the change of the logit, up to the error of the steps.
    assert (found.sum() - change).abs() < 1e-2 + error.abs() * 1.01
    assert found.shape == x.shape and found.std() > 0
