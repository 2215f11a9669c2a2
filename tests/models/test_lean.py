"""Training that keeps less: the same gradients, of any order, from fewer tensors."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from conformer_pairs import build_pair
from conformer_vision import Conformer
from conformer_vision.models.blocks import Bottleneck
from conformer_vision.models.lean import keeping_everything, may_rebuild, rebuilding

SHALLOW = {"depths": (2, 1, 2), "zero_init_last": False}


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Of both heads' mean loss, with what the step does to the statistics."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    conv, trans = model.forward_branches(images)  # type: ignore[operator]
    target = torch.arange(len(images)) % conv.shape[1]
    ((F.cross_entropy(conv, target) + F.cross_entropy(trans, target)) / 2).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {**found, **dict(model.named_buffers())}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


OPTIONS: list[dict[str, object]] = [
    {},
    {"upsample": "bilinear"},
    {"drop_path_rate": 0.4, "conv_drop_path_rate": 0.4},
    {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_rate": 0.3},
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_gradients_bit_for_bit(options: dict[str, object], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = timm.create_model("conformer_nano_patch8_64", num_classes=5, **SHALLOW, **options).train()
    model.to(memory_format=layout)
    images = torch.randn(3, 3, 50, 66).contiguous(memory_format=layout)
    plain = copy.deepcopy(model)
    with keeping_everything():
        expected = gradients(plain, images)
    assert_same(gradients(model, images), expected)


@pytest.mark.parametrize("name", ["conformer_tiny_patch16_224", "conformer_small_patch16_224"])
def test_a_quarter_less_memory_than_the_plain_formulation(name: str) -> None:
    model, reference = build_pair(name, seed=1, num_classes=5)
    images = torch.randn(2, 3, 224, 224)
    ours, theirs = (peak_bytes(network.train(), images) for network in (model, reference))
    assert ours < 0.75 * theirs, f"{ours / theirs:.0%} of the plain formulation's"


def peak_bytes(model: nn.Module, images: Tensor) -> int:
    """Memory that torch has allocated at most during a step, weights and images left out."""
    call = getattr(model, "forward_branches", model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        conv, trans = call(images)
        (conv.logsumexp(1).mean() + trans.logsumexp(1).mean()).backward()
    results = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_gradients_of_gradients() -> None:
    torch.manual_seed(0)
    model = timm.create_model("conformer_nano_patch8_64", num_classes=3, **SHALLOW).double().train()
    model.set_fused_attention(False)  # the fused one has no second derivative
    images = torch.randn(2, 3, 33, 40, dtype=torch.float64, requires_grad=True)

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
        value: Tensor = slope.square().sum()
        return value

    # Not ReLU's kinks but BatchNorm over the batch makes the second derivative.
    actual = torch.autograd.grad(penalty(), list(model.parameters()), allow_unused=True)
    with keeping_everything():
        expected = torch.autograd.grad(penalty(), list(model.parameters()), allow_unused=True)
    assert any(bool(value.abs().max() > 0) for value in expected if value is not None)
    for ours, plain in zip(actual, expected, strict=True):
        assert (ours is None) == (plain is None)
        if ours is not None:
            torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_a_second_backward_pass() -> None:
    torch.manual_seed(0)
    model = timm.create_model("conformer_nano_patch8_64", num_classes=3, **SHALLOW).train()
    loss = model(torch.randn(2, 3, 64, 64)).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("freeze", ["statistics", "one layer"])
def test_with_frozen_norms(freeze: str) -> None:
    torch.manual_seed(0)
    model: Conformer = timm.create_model("conformer_nano_patch8_64", num_classes=3, **SHALLOW).train()
    images = torch.randn(3, 3, 64, 64)
    gradients(model, images)  # statistics other than those of the beginning
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and freeze == "statistics":
            module.eval()
    if freeze == "one layer":
        model.blocks[1].bottleneck.requires_grad_(False)
    plain = copy.deepcopy(model)
    with keeping_everything():
        expected = gradients(plain, images)
    actual = gradients(model, images)
    assert {k for k, v in actual.items() if v is None} == {k for k, v in expected.items() if v is None}
    for name, value in expected.items():
        assert value is None or torch.equal(actual[name], value), name


def test_under_autocast() -> None:
    torch.manual_seed(0)
    model = timm.create_model("conformer_nano_patch8_64", num_classes=5, **SHALLOW).train()
    images = torch.randn(3, 3, 64, 64)
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        with keeping_everything():
            expected = gradients(plain, images)
        assert_same(gradients(model, images), expected)


def test_other_norms_are_kept_whole() -> None:
    """SyncBatchNorm would have to talk to other processes again."""
    bottleneck = Bottleneck(8, 8)
    bottleneck.bn1 = nn.InstanceNorm2d(2, affine=True)
    images = torch.randn(2, 8, 6, 6, requires_grad=True)
    bottleneck(images)[0].sum().backward()
    assert images.grad is not None and bool(images.grad.abs().max() > 0)


def test_functional_transforms() -> None:
    torch.manual_seed(0)
    model = timm.create_model("conformer_nano_patch8_64", num_classes=3, **SHALLOW).eval()
    weights = dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        value: Tensor = torch.func.functional_call(model, (weights, buffers), (image[None],)).sum()
        return value

    images = torch.randn(2, 3, 64, 64)
    per_image = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, images)
    loss(weights, images[1]).backward()
    name = "stem.conv.weight"
    torch.testing.assert_close(per_image[name][1], weights[name].grad, rtol=1e-3, atol=1e-4)


def test_where_everything_is_kept() -> None:
    x = torch.ones(2, requires_grad=True)
    assert may_rebuild(x)
    with torch.no_grad():
        assert not may_rebuild(x)
    with keeping_everything():
        assert not may_rebuild(x)
    assert not may_rebuild(object())  # type: ignore[arg-type]  # as symbolic tracing has them


def test_what_is_built_is_what_was_there() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    built = []

    def build() -> Tensor:
        built.append(1)
        return x.exp()

    y = x.exp()
    with rebuilding(y, build):
        z = (y * y.flatten().view(4, 3)).sum() + (y @ y.T).sum()
    assert not built
    z.backward()
    assert built == [1], "once for all uses"
    expected = torch.autograd.grad((x.exp().square().sum() + (x.exp() @ x.exp().T).sum()), x)[0]
    torch.testing.assert_close(x.grad, expected)
