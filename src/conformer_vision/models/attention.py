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


def recording_attention(model: Model) -> tuple[Model, Callable[[int], Tensor]]:
    """Return a double of a Conformer that records its attention, and a function that gives a block's weights.

    The double shares every parameter, hook and module except those between the model and its attention, so
    the model itself stays as it is, for other threads too. Its attention takes timm's plain path, whose
    numbers are those of the fused one up to rounding.

    Raises:
        ValueError: A block's attention does not show its weights (when the function is called).
    """
    double: Any = _double(model)
    double.grad_checkpointing = "off"  # a second forward pass would record weights without a graph
    recorders: dict[int, _Recorder] = {}
    blocks = _double(double.blocks)
    double._modules["blocks"] = blocks
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
        attn: Any = _double(block.transformer.attn)
        if isinstance(getattr(attn, "attn_drop", None), nn.Module):
            recorders[index + 1] = attn._modules["attn_drop"] = _Recorder(attn.attn_drop)
        attn.fused_attn = False
        transformer = _double(block.transformer)
        transformer._modules["attn"] = attn
        outer = _double(block)
        outer._modules["transformer"] = transformer
        blocks._modules[str(index)] = outer

    def weights_of(number: int) -> Tensor:
        recorder = recorders.get(number)
        if recorder is None or recorder.weights is None:
            raise ValueError(
                f"block {number}: its attention ({type(model.blocks[number - 1].transformer.attn).__name__}) "  # type: ignore[index, union-attr]
                "does not pass its weights through 'attn_drop'; use timm's Attention"
            )
        return recorder.weights

    return double, weights_of


def _double(module: nn.Module) -> Any:
    """Return a module of the same class with the same contents, whose own entries can be replaced."""
    double = module.__new__(type(module))
    double.__dict__ = module.__dict__ | {"_modules": dict(module._modules)}
    double.__dict__["_compiled_call_impl"] = None  # what compiled the module would run the module itself
    return double
