"""Linear layers as 1×1 convolutions, beside Linear itself, finite differences, hooks and compilers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from conformer_vision.models import pointwise
from conformer_vision.models.pointwise import (
    PointwiseLinear,
    convolve,
    pointwise_is_faster,
    use_pointwise,
)


def small() -> Any:
    return timm.create_model("conformer_nano_patch8_64", num_classes=3).eval()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=0, max_size=3),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_any_shape_and_layout(
    outer: list[int], inputs: int, outputs: int, has_bias: bool, turned: bool
) -> None:
    numbers = torch.Generator().manual_seed(inputs * 41 + outputs)
    rows = torch.randn(*outer, inputs, generator=numbers, dtype=torch.float64)
    if turned and outer:
        rows = torch.randn(inputs, *outer, generator=numbers, dtype=torch.float64).movedim(0, -1)
    weight = torch.randn(outputs, inputs, generator=numbers, dtype=torch.float64)
    bias = torch.randn(outputs, generator=numbers, dtype=torch.float64) if has_bias else None
    torch.testing.assert_close(convolve(rows, weight, bias), nn.functional.linear(rows, weight, bias))


def test_finite_differences() -> None:
    rows = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(convolve, (rows, weight, bias))
    assert torch.autograd.gradgradcheck(convolve, (rows, weight, bias))


def test_a_network_and_its_gradients() -> None:
    plain = small().train()
    other = copy.deepcopy(plain)
    use_pointwise(other)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for model in (plain, other):
        model(images).square().sum().backward()
        model.eval()
    torch.testing.assert_close(other(images), plain(images), rtol=1e-4, atol=1e-5)
    assert other.state_dict().keys() == plain.state_dict().keys()
    for (name, ours), theirs in zip(other.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None, name
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm().clamp_min(1e-6)
        assert error < 1e-3, name


def test_what_a_user_did_to_a_layer_stays() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Linear(4, 4), Doubled(4, 4), parametrizations.weight_norm(nn.Linear(4, 4)))
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    shared = model[0].weight
    rows = torch.randn(2, 4)
    expected = model(rows)
    kinds = [type(module) for module in model]
    use_pointwise(model)
    assert [type(module) for module in model] == [PointwiseLinear, *kinds[1:]]
    torch.testing.assert_close(model(rows), expected)
    torch.testing.assert_close(seen[1], seen[0])
    assert model[0].weight is shared
    with torch.no_grad():
        shared.mul_(2)
    torch.testing.assert_close(seen[0] * 2 - model[0].bias, model[0](rows))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compilers_take_it(dynamic: bool) -> None:
    layer = nn.Linear(6, 5)
    expected = layer(torch.ones(3, 6))
    use_pointwise(layer)
    compiled = torch.compile(layer, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(torch.ones(3, 6)), expected)
    program = torch.export.export(layer, (torch.ones(3, 6),))
    torch.testing.assert_close(program.module()(torch.ones(3, 6)), expected)


def test_autocast_computes_in_bfloat16_as_linear_does() -> None:
    layer = nn.Linear(8, 8)
    rows = torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(rows)
        use_pointwise(layer)
        assert layer(rows).dtype == expected.dtype == torch.bfloat16


@pytest.mark.parametrize("faster", ["linear", "convolution"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch, faster: str, backward: bool) -> None:
    now = [0.0]
    monkeypatch.setattr(pointwise.time, "perf_counter", lambda: now[0])

    def costing(compute: Any, seconds: float) -> Any:
        def run(*arguments: Tensor) -> Tensor:
            now[0] += seconds
            return compute(*arguments)

        return run

    costs = (1.0, 1.25) if faster == "linear" else (1.35, 1.0)
    linear, convolution = map(costing, (nn.functional.linear, convolve), costs)
    monkeypatch.setattr(pointwise.functional, "linear", linear)
    monkeypatch.setattr(pointwise, "convolve", convolution)
    model = nn.Linear(8, 8)
    before = torch.get_rng_state()
    assert pointwise_is_faster(model, backward=backward) == (faster == "convolution")
    assert torch.equal(before, torch.get_rng_state())
    assert type(model) is nn.Linear and model.weight.grad is None


def test_networks_that_it_is_not_for() -> None:
    assert not pointwise_is_faster(nn.Conv2d(3, 3, 1))
    assert not pointwise_is_faster(nn.Linear(64, 64).double())
    assert not pointwise_is_faster(nn.Linear(64, 64, device="meta"))
