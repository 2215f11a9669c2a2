"""Heat maps against plain formulations of their papers, under what users do to a model."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from conformer_vision import Conformer, load
from conformer_vision.errors import UserError
from conformer_vision.explain import METHODS, heat_maps
from conformer_vision.explain.base import Cells, at_centres, at_image_size
from conformer_vision.tensors import evaluation_pipeline

NAME = "conformer_nano_patch8_64"
SMALL: dict[str, Any] = {
    "depths": (2, 1, 2),
    "channel_ratio": 0.375,
    "embed_dim": 40,
    "num_classes": 5,
    "zero_init_last": False,
}
LAST_STRIDE = 16  # of this variant's last map
PATCH = 8


def build(**options: Any) -> Conformer:
    torch.manual_seed(0)
    model = timm.create_model(NAME, **SMALL | options)
    assert isinstance(model, Conformer)
    for norm in model.modules():  # statistics as after training, so that folding has something to fold
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Conformer:
    return build()


def images(batch: int = 2, height: int = 48, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def attention_of(model: Conformer, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The attention of all blocks and the transformer head's logits, through hooks on timm's plain path."""
    plain = build()
    plain.load_state_dict(model.state_dict())
    plain.set_fused_attention(False)
    kept: list[Tensor] = []
    for block in plain.blocks:
        block.transformer.attn.attn_drop.register_forward_hook(lambda *call: kept.append(call[2]))
    logits = plain.forward_branches(x).trans
    return kept, logits


def test_the_mean_of_an_exact_map_and_the_bias_are_the_logit(model: Conformer) -> None:
    x = images()
    found = heat_maps(model, x, range(5))
    logits = model.forward_branches(x).conv
    torch.testing.assert_close(found.scores, logits)
    # At the size of the image the border weighs a little more; between centres nothing is invented.
    coarse = F.conv2d(
        model.forward_intermediates(x, intermediates_only=True)[-1], model.conv_head.weight[..., None, None]
    )
    assert found.maps.shape == (2, 5, 48, 64)
    half = LAST_STRIDE // 2
    torch.testing.assert_close(
        found.maps[:, :, half::LAST_STRIDE, half::LAST_STRIDE],
        at_image_size(coarse, Cells(LAST_STRIDE, 7.5), (48, 64))[:, :, half::LAST_STRIDE, half::LAST_STRIDE],
    )
    torch.testing.assert_close(coarse.mean((2, 3)) + model.conv_head.bias, logits)


@pytest.mark.parametrize("size", [(48, 64), (33, 70)])
def test_attention_cam_is_the_product_of_its_paper(model: Conformer, size: tuple[int, int]) -> None:
    x = images(1, *size)
    kept, _ = attention_of(model, x)
    rows, columns = -(-size[0] // PATCH), -(-size[1] // PATCH)
    for numbers in (None, [2, 5]):
        found = heat_maps(model, x, 3, method="attention-cam", blocks=numbers).maps[0, 0]
        mean = sum(kept[number - 1][0, :, 1:, 1:].mean(0) for number in numbers or range(1, 6)) / len(
            numbers or kept
        )
        coarse = model.class_maps(x).conv[:, 3:4].clamp(min=0)
        at_tokens = at_centres(coarse, Cells(LAST_STRIDE, 7.5), Cells(PATCH, 3.5), (rows, columns)).flatten()
        expected = torch.stack(
            [sum(mean[p, q] * at_tokens[q] for q in range(rows * columns)) for p in range(rows * columns)]
        )  # type: ignore[misc]
        expected = at_image_size(expected.view(1, 1, rows, columns), Cells(PATCH, 3.5), size)[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 64), (33, 70)])
def test_token_cam_is_the_product_of_map_and_attention(model: Conformer, size: tuple[int, int]) -> None:
    x = images(1, *size)
    kept, _ = attention_of(model, x)
    grid = -(-size[0] // PATCH), -(-size[1] // PATCH)
    for numbers in (None, [2, 5]):
        found = heat_maps(model, x, 3, method="token-cam", blocks=numbers)
        coarse = model.class_maps(x).conv[:, 3:4]
        expected = at_centres(coarse, Cells(LAST_STRIDE, 7.5), Cells(PATCH, 3.5), grid)[0, 0]
        mean = np.mean(
            [kept[n - 1][0, :, 0, 1:].detach().numpy() for n in numbers or range(1, 6)], axis=(0, 1)
        )
        expected = expected * torch.from_numpy(mean).view(grid)
        expected = at_image_size(expected[None, None], Cells(PATCH, 3.5), size)[0, 0]
        torch.testing.assert_close(found.maps[0, 0], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            found.scores[0, 0], model.branch_logits(model.forward_features(x)).conv[0, 3]
        )


def test_rollout_is_the_product_of_its_paper(model: Conformer) -> None:
    x = images()
    kept, _ = attention_of(model, x)
    for index in range(2):
        joint = np.eye(kept[0].shape[-1])
        for weights in kept:
            one = weights[index].detach().double().numpy().mean(0) + np.eye(len(joint))
            joint = (one / one.sum(1, keepdims=True)) @ joint
        expected = at_image_size(torch.from_numpy(joint[0, 1:]).view(1, 1, 6, 8), Cells(PATCH, 3.5), (48, 64))
        found = heat_maps(model, x, [1, 4], method="rollout")
        torch.testing.assert_close(found.maps[index, 0], expected[0, 0].float(), rtol=1e-4, atol=1e-7)
        assert torch.equal(found.maps[:, 0], found.maps[:, 1])


def test_gradient_rollout_is_that_of_its_paper(model: Conformer) -> None:
    x = images()
    found = heat_maps(model, x, torch.tensor([[1, 4], [2, 0]]), method="gradient-rollout")
    for index, column, number in ((0, 0, 1), (0, 1, 4), (1, 0, 2), (1, 1, 0)):
        kept, logits = attention_of(model, x[index : index + 1])
        slopes = torch.autograd.grad(logits[0, number], kept)
        relevance = torch.eye(kept[0].shape[-1])
        for weights, slope in zip(kept, slopes, strict=True):
            positive = torch.stack([(a * g).clamp(min=0) for a, g in zip(weights[0], slope[0], strict=True)])
            relevance = relevance + positive.mean(0) @ relevance
        expected = at_image_size(relevance[0, 1:].view(1, 1, 6, 8), Cells(PATCH, 3.5), (48, 64))[0, 0]
        torch.testing.assert_close(found.maps[index, column], expected, rtol=1e-3, atol=1e-7)
        assert float(found.scores[index, column]) == pytest.approx(logits[0, number].item(), abs=1e-4)


def test_gradcam_is_that_of_its_paper(model: Conformer) -> None:
    x = images()
    kept: list[Tensor] = []
    plain = build()
    plain.cam_layer().register_forward_hook(lambda *call: kept.append(call[2]))
    logits = plain(x)
    (slopes,) = torch.autograd.grad(logits[:, 2].sum(), kept)
    coarse = (slopes.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).clamp(min=0)
    found = heat_maps(model, x, 2, method="gradcam")
    torch.testing.assert_close(found.maps, at_image_size(coarse, Cells(LAST_STRIDE, 7.5), (48, 64)).detach())
    torch.testing.assert_close(found.scores[:, 0], logits[:, 2].detach())


def test_occlusion_finds_the_only_part_that_counts(model: Conformer) -> None:
    class Corner(nn.Module):
        num_classes = 2

        def forward(self, x: Tensor) -> Tensor:
            patch = x[:, :, 8:24, 40:56].mean((1, 2, 3))
            return torch.stack([patch, -patch], 1)

    x = torch.zeros(1, 3, 48, 64)
    x[:, :, 8:24, 40:56] = 1
    found = heat_maps(Corner().eval(), x, [0, 1], method="occlusion").maps[0]
    row, column = divmod(int(found[0].argmax()), 64)
    assert 8 <= row < 24 and 40 <= column < 56
    torch.testing.assert_close(found[0], -found[1])
    assert float(found[0, 40:, :24].abs().max()) == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_image_and_class_stands_alone(model: Conformer, method: str) -> None:
    """A batch with classes of its own gives what one image and one class give; also folded."""
    x = images(2, 37, 50)
    rows = torch.tensor([[1, 4], [2, 2]])
    together = heat_maps(model, x, rows, method=method)
    assert together.maps.shape == (2, 2, 37, 50) and together.scores.shape == (2, 2)
    assert torch.isfinite(together.maps).all() and not together.maps.requires_grad
    alone = heat_maps(model, x[1:], [2], method=method)
    torch.testing.assert_close(together.maps[1, 0], alone.maps[0, 0], rtol=1e-3, atol=1e-6)
    folded = heat_maps(model.fold(), x, rows, method=method)
    torch.testing.assert_close(
        together.maps, folded.maps, rtol=1e-2, atol=1e-4 * float(together.maps.abs().max()) + 1e-9
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_stays_as_it_was(method: str, mode: Any) -> None:
    model = build()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    likely = int(model.class_maps(images(1)).conv.mean((0, 2, 3)).argmax())
    calls: list[str] = []
    model.blocks[1].register_forward_hook(lambda *call: calls.append("block"))
    with mode():
        found = heat_maps(model, images(1), likely, method=method)
    assert torch.isfinite(found.maps).all() and float(found.maps.std()) > 0
    assert calls, "hooks of users are called"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert [len(module._forward_hooks) for module in model.modules() if module._forward_hooks] == [1]
    assert not model.training and model.blocks[0].transformer.attn.fused_attn


def test_mirrored_images_have_mirrored_maps(model: Conformer) -> None:
    x = images()
    for method in ("cam", "token-cam", "attention-cam", "rollout", "gradient-rollout"):
        found = heat_maps(model, x, 1, method=method, flip=True).maps
        mirrored = heat_maps(model, x.flip(3), 1, method=method, flip=True).maps
        torch.testing.assert_close(mirrored.flip(3), found, rtol=1e-3, atol=1e-6)


def test_several_sizes_are_averaged(model: Conformer) -> None:
    x = images()
    one, other = (heat_maps(model, x, 1, scales=[scale]) for scale in (1, 1.5))
    both = heat_maps(model, x, 1, scales=[1, 1.5])
    torch.testing.assert_close(both.maps, (one.maps + other.maps) / 2)
    torch.testing.assert_close(both.scores, (one.scores + other.scores) / 2)
    assert not torch.allclose(one.maps, other.maps, atol=1e-3)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "occlusion"])
def test_other_weights_have_other_maps(
    trained_and_random: tuple[nn.Module, nn.Module], photos: Tensor, method: str
) -> None:
    """The sanity check of Adebayo et al. 2018: a map that stays is one of the image, not of the model."""
    one, other = (
        heat_maps(each, photos, each(photos).argmax(1, keepdim=True), method=method).maps.flatten(1)
        for each in trained_and_random
    )
    assert float(one.std(1).min()) > 0 and float(other.std(1).min()) > 0
    alike = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(one, other, strict=True)]
    assert sum(alike) / len(alike) < 0.6, alike


@pytest.fixture(scope="module")
def trained_and_random() -> tuple[nn.Module, nn.Module]:
    trained = timm.create_model(f"{NAME}.tiny_imagenet_20", pretrained=True).eval()
    torch.manual_seed(0)
    return trained, timm.create_model(NAME, num_classes=20, zero_init_last=False).eval()


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Four photos of 160 by 128 pixels as the bundled weights take them."""
    _, spec, _ = load(f"{NAME}.tiny_imagenet_20")
    take = evaluation_pipeline(replace(spec.preprocessing, input_size=(3, 128, 160), crop_mode="squash"))
    arrays = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket())
    return torch.stack([take(Image.fromarray(array)) for array in arrays])


def test_threads(model: Conformer) -> None:
    x = images()
    expected = {method: heat_maps(model, x, 1, method=method).maps for method in ("cam", "gradient-rollout")}
    wrong: list[str] = []

    def work(method: str) -> None:
        for _ in range(5):
            if not torch.allclose(heat_maps(model, x, 1, method=method).maps, expected[method], atol=1e-6):
                wrong.append(method)

    threads = [threading.Thread(target=work, args=(method,)) for method in [*expected] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- other networks ------------------------------------------------------------------------------


def test_a_resnet_has_class_maps() -> None:
    torch.manual_seed(0)
    resnet = timm.create_model("resnet18", num_classes=5).eval()
    x = images(2, 70, 90)
    found = heat_maps(resnet, x, range(5))
    torch.testing.assert_close(found.scores, resnet(x).detach(), rtol=1e-3, atol=1e-4)
    coarse = torch.einsum("bchw,kc->bkhw", resnet.forward_features(x), resnet.fc.weight).detach()
    torch.testing.assert_close(found.maps, at_image_size(coarse, Cells(32, 15.5), (70, 90)))


def test_a_vit_has_rollout() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=3).eval()
    x = images(1, 64, 64)
    found = heat_maps(vit, x, 1, method="rollout").maps
    for block in vit.blocks:
        block.attn.fused_attn = False
    kept: list[Tensor] = []
    for block in vit.blocks:
        block.attn.attn_drop.register_forward_hook(lambda *call: kept.append(call[2]))
    vit(x)
    joint = torch.eye(17)
    for weights in kept:
        joint = (weights[0].mean(0) + torch.eye(17)) / 2 @ joint
    expected = at_image_size(joint[0, 1:].view(1, 1, 4, 4), Cells(16, 7.5), (64, 64))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)


# ---- where cells lie ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_whole_cells_lie_as_torch_lays_them(size: tuple[int, int]) -> None:
    maps = torch.randn(1, 2, size[0] // 16, size[1] // 16)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(at_image_size(maps, Cells(16, 7.5), size), expected)


def test_what_is_padded_is_cut_off() -> None:
    """A cell stays where its pixels are, whatever the image ends with."""
    maps = torch.zeros(1, 1, 3, 3)
    maps[0, 0, 1, 1] = 1
    found = at_image_size(maps, Cells(16, 7.5), (40, 41))[0, 0]
    assert found.shape == (40, 41)
    rows, columns = torch.nonzero(found > 0.99).unbind(1)
    assert set(rows.tolist()) == set(columns.tolist()) == set() or (rows.min() >= 23 and rows.max() <= 24)
    assert divmod(int(found.argmax()), 41) in ((23, 23), (23, 24), (24, 23), (24, 24))


# ---- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"method": "cram"}, "method 'cram': must be one of cam, .*; did you mean cam?"),
        ({"classes": 5}, "class 5: the model has the classes 0 to 4"),
        ({"classes": [-1]}, "class -1: "),
        ({"classes": []}, "give numbers for all 2 images"),
        ({"classes": torch.zeros(3, 1)}, "give numbers for all 2 images, or a row for each"),
        ({"scales": []}, "give one or more positive numbers"),
        ({"scales": [1, -1]}, "give one or more positive numbers"),
        (
            {"blocks": [1]},
            "method cam has no choice of blocks; leave it out, or use token-cam, attention-cam",
        ),
        ({"method": "attention-cam", "blocks": [0]}, "there is no block 0; use 1 to 5"),
        ({"method": "attention-cam", "blocks": [6]}, "there is no block 6; use 1 to 5"),
    ],
)
def test_mistakes(model: Conformer, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        heat_maps(model, images(), **{"classes": 0} | options)


@pytest.mark.parametrize(
    ("name", "method", "line"),
    [
        ("resnet18", "rollout", "ResNet has no class token"),
        ("resnet18", "attention-cam", "needs the two branches of a Conformer, not ResNet"),
        ("vit_tiny_patch16_224", "cam", "VisionTransformer has no exact class maps"),
        ("mobilenetv3_small_050", "cam", "MobileNetV3 has no exact class maps"),
        ("convnext_atto", "cam", "ConvNeXt has no exact class maps"),
        ("vit_tiny_patch16_224", "gradcam", "VisionTransformer ends in no feature map"),
        ("swin_tiny_patch4_window7_224", "layercam", "SwinTransformer ends in no feature map"),
    ],
)
def test_methods_that_a_model_does_not_have(name: str, method: str, line: str) -> None:
    other = timm.create_model(name, num_classes=3).eval()
    with pytest.raises(UserError, match=line):
        heat_maps(other, torch.randn(1, 3, 224, 224), 0, method=method)


def test_a_model_in_training_mode() -> None:
    with pytest.raises(UserError, match=r"call model.eval\(\)"):
        heat_maps(build().train(), images(), 0)
