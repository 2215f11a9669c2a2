"""The attention weights of a forward pass, without changing the model that is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["recording_attention"]

Model = TypeVar("Model", bound=nn.Module)


class _Recorder(nn.Module):
    """The dropout of the attention weights, which keeps what it returns."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout
        self.weights: Tensor | None = None

    def forward(self, weights: Tensor) -> Tensor:
        self.weights = self.dropout(weights)
        return self.weights


def recording_attention(
    model: Model, path: str = "transformer.attn"
) -> tuple[Model, Callable[[int], Tensor]]:
    """Return a double of a model that records its attention, and a function that gives a block's weights.

    The double shares every parameter, hook and module except those between the model and its attention, so
    the model itself stays as it is, for other threads too. Its attention takes timm's plain path, whose
    numbers are those of the fused one up to rounding.

    Args:
        model: A Conformer, or another model with a list `blocks`.
        path: Where a block has its attention; timm's ViTs have it at ``attn``.

    Raises:
        ValueError: A block's attention does not show its weights (when the function is called).
    """
    double: Any = _double(model)
    if isinstance(getattr(model, "grad_checkpointing", None), str | bool):
        # A second forward pass would record weights without a graph.
        double.grad_checkpointing = "off" if isinstance(double.grad_checkpointing, str) else False
    recorders: dict[int, _Recorder] = {}
    blocks = _double(double.blocks)
    double._modules["blocks"] = blocks
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
        parent = blocks._modules[str(index)] = _double(block)
        *between, last = path.split(".")
        for name in between:
            parent._modules[name] = _double(parent._modules[name])
            parent = parent._modules[name]
        attn = parent._modules[last] = _double(parent._modules[last])
        if isinstance(getattr(attn, "attn_drop", None), nn.Module):
            recorders[index + 1] = attn._modules["attn_drop"] = _Recorder(attn.attn_drop)
        attn.fused_attn = False

    def weights_of(number: int) -> Tensor:
        recorder = recorders.get(number)
        if recorder is None or recorder.weights is None:
            kind = type(model.blocks[number - 1].get_submodule(path)).__name__  # type: ignore[index, union-attr]
            raise ValueError(
                f"block {number}: its attention ({kind}) does not pass its weights through 'attn_drop'; use "
                "timm's Attention"
            )
        return recorder.weights

    return double, weights_of


def _double(module: nn.Module) -> Any:
    """Return a module of the same class with the same contents, whose own entries can be replaced."""
    double = module.__new__(type(module))
    double.__dict__ = module.__dict__ | {"_modules": dict(module._modules)}
    double.__dict__["_compiled_call_impl"] = None  # what compiled the module would run the module itself
    return double
