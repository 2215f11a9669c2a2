"""The compilers and exporters: one small form of each kind of stem, at sizes other than the traced one."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor

from conformer_vision.models import Conformer
from contracts.model import SMALL, images, use_trained_norms

NAMES = ["conformer_nano_patch8_64", "conformer_nano_patch16_224"]
SIZES = [(1, 3, 65, 65), (3, 3, 90, 121), (2, 3, 37, 79)]  # the last two are padded


def build(name: str = NAMES[0], **options: object) -> Conformer:
    torch.manual_seed(0)
    model: Conformer = timm.create_model(name, **SMALL | options)
    use_trained_norms(model)
    return model.eval()


def forms() -> list[Conformer]:
    model = build()
    return [model, model.fold()]


def assert_same(call: Callable[[Tensor], Tensor], model: Conformer, sizes: list[tuple[int, ...]]) -> None:
    for size in sizes:
        x = images(*size)
        with torch.no_grad():
            torch.testing.assert_close(call(x), model(x), rtol=1e-4, atol=1e-5)


def test_torch_compile_without_graph_breaks() -> None:
    """Of training; the test below compiles the backward pass."""
    model, x = build(), images(2, 3, 64, 64)
    assert_same(torch.compile(model, fullgraph=True, backend="aot_eager"), model, [(2, 3, 64, 64)])
    torch.compile(model.train(), fullgraph=True, backend="eager")(x).sum().backward()
    assert model.stem.conv.weight.grad is not None


@pytest.mark.parametrize("mode", ["cheap", "full"])
def test_torch_compile_with_grad_checkpointing(mode: str) -> None:
    model, expected, x = build().train(), build().train(), images(2, 3, 64, 64)
    expected(x).square().sum().backward()
    model.set_grad_checkpointing(mode)
    torch.compile(model, backend="aot_eager")(x).square().sum().backward()
    for (name, other), parameter in zip(expected.named_parameters(), model.parameters(), strict=True):
        if not name.endswith("fcu_up.proj.bias"):  # zero but for rounding: a BatchNorm follows
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-2)
    for (name, other), buffer in zip(expected.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(buffer[1], other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7),
    reason="torch.export of 2.6 cannot prove that padding is never negative; it takes Dim.AUTO (below)",
)
@pytest.mark.parametrize(("name", "folded"), [(NAMES[0], False), (NAMES[1], True)])
def test_torch_export_with_named_sizes(name: str, folded: bool) -> None:
    model = build(name).fold() if folded else build(name)
    sides = {2: torch.export.Dim("height", min=65, max=512), 3: torch.export.Dim("width", min=65, max=512)}
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (images(2, 3, 96, 128),), dynamic_shapes=(batch | sides,))
    assert_same(program.module(), model, [(1, 3, 65, 65), (3, 3, 90, 121), (2, 3, 66, 224)])
    values = [node.meta.get("val") for node in program.graph.nodes]
    ranks = [value.ndim for value in values if isinstance(value, Tensor)]
    assert max(ranks) <= 5, "CoreML takes no more dimensions"


def test_torch_export_with_automatic_sizes() -> None:
    model, dynamic = build(), torch.export.Dim.DYNAMIC
    shapes = {"x": {0: dynamic, 2: dynamic, 3: dynamic}}
    program = torch.export.export(model, (images(2, 3, 64, 96),), dynamic_shapes=shapes)
    assert_same(program.module(), model, SIZES)


@pytest.mark.filterwarnings("ignore")
def test_onnx_by_torchscript_at_other_sizes() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    for model in forms():
        file = io.BytesIO()
        torch.onnx.export(
            model, (images(2, 3, 64, 96),), file, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])

        def call(x: Tensor, session: object = session) -> Tensor:
            (logits,) = session.run(None, {"x": np.asarray(x)})  # type: ignore[attr-defined]
            return torch.from_numpy(logits)

        assert_same(call, model, SIZES)


@pytest.mark.filterwarnings("ignore")
def test_traced() -> None:
    for model in forms():
        traced = torch.jit.trace(model, images(2, 3, 64, 64))
        assert_same(traced, model, [(2, 3, 64, 64), (1, 3, 64, 64)])
        x = images(2, 3, 64, 64).requires_grad_()
        slopes = [torch.autograd.grad(call(x).sum(), x)[0] for call in (traced, model)]
        torch.testing.assert_close(*slopes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_survives_saving() -> None:
    pruned = build()
    pruned.prune_intermediate_layers([2])
    for model in [*forms(), pruned]:
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(model), buffer)
        buffer.seek(0)
        assert_same(torch.jit.load(buffer), model, SIZES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_features_are_scripted() -> None:
    getter = timm.create_model(NAMES[0], **SMALL, features_only=True, out_indices=(0, 2)).eval()
    x = images(2, 3, 37, 79)
    with torch.no_grad():
        for actual, expected in zip(torch.jit.script(getter)(x), getter(x), strict=True):
            torch.testing.assert_close(actual, expected)


def test_fx_is_bit_equal() -> None:
    x = images(2, 3, 64, 64)
    for model in forms():
        with torch.no_grad():
            assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
            last = f"blocks.{len(model.blocks) - 1}"
            level = create_feature_extractor(model, {last: "last"})(x)["last"]
            expected = model.forward_intermediates(x, indices=1, intermediates_only=True)
        assert torch.equal(level if isinstance(level, Tensor) else level[0], expected[0])


def test_functional_transforms() -> None:
    model = build()
    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], image: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(model, (weights, buffers), (image[None],))
        return logits.sum()

    x = images(2, 3, 64, 64)
    per_image = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    loss(weights, x[1]).backward()
    name = "stem.conv.weight"
    torch.testing.assert_close(per_image[name][1], weights[name].grad, rtol=1e-3, atol=1e-4)
