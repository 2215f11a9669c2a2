"""Gradient checkpointing: training with less memory, for more time.

Backward needs what forward computed. A checkpointed block keeps less of it and computes the rest again. The
gradients stay the same bit for bit, and BatchNorm's running statistics count each batch once.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

__all__ = ["Recompute", "parse_recompute", "run_again_in_backward"]

Recompute = Literal["off", "cheap", "full"]
"""What backward computes again: nothing; norms, activations and sums; or whole blocks."""

# The operators whose outputs "cheap" keeps, because they take long to compute. Their names differ between
# devices and releases of PyTorch; one that is unknown here does no harm.
_COSTLY = {
    *("convolution", "_convolution", "convolution_overrideable", "_slow_conv2d_forward"),
    *("mkldnn_convolution", "cudnn_convolution", "miopen_convolution", "_mps_convolution"),
    *("_conv_depthwise2d", "mm", "addmm", "bmm", "baddbmm", "matmul", "_addmm_activation", "_scaled_mm"),
    *("linear", "mkldnn_linear"),
}
_ATTENTION = "_scaled_dot_product_"  # "flash_attention", "efficient_attention" and others follow

# Graphs that PyTorch 2.6 and 2.8 compile of a checkpointed block update BatchNorm's statistics in forward and
# again in backward; those of 2.14 do so once. Before that release such blocks are left to eager mode.
_COMPILED_BLOCKS_ARE_RIGHT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)


def parse_recompute(value: bool | str) -> Recompute:
    """Return the mode that `value` names; timm passes True for "full" and False for "off".

    Raises:
        ValueError: There is no such mode.
    """
    mode = {True: "full", False: "off"}.get(value, value) if isinstance(value, bool) else value
    if mode not in ("off", "cheap", "full"):
        raise ValueError(f"grad_checkpointing={value!r} is unknown; use 'off', 'cheap' or 'full'")
    return cast(Recompute, mode)


def run_again_in_backward(block: nn.Module, *inputs: Tensor, mode: Recompute) -> tuple[Tensor, Tensor]:
    """Call `block`, a module with two outputs, and compute in backward again what `mode` says."""
    if torch.compiler.is_compiling():
        if not _COMPILED_BLOCKS_ARE_RIGHT:
            return cast(tuple[Tensor, Tensor], _call_eagerly(block, *inputs, mode=mode))
        # The compiler traces the block once, so the statistics are safe, and takes no other context.
        if mode == "full":
            return cast(tuple[Tensor, Tensor], checkpoint(block, *inputs, use_reentrant=False))
        contexts: Any = partial(create_selective_checkpoint_contexts, _policy)
    else:
        contexts = partial(_contexts, block, mode)
    outputs: tuple[Tensor, Tensor] = checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)
    return outputs


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _call_eagerly(block: nn.Module, *inputs: Tensor, mode: Recompute) -> tuple[Tensor, Tensor]:
    """Call `run_again_in_backward` outside the compiled graph."""
    return run_again_in_backward(block, *inputs, mode=mode)


def _policy(context: object, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Say whether an operator's output is kept.

    A random operator must run again, under the restored random state: one that were skipped would leave the
    state behind for those after it. That concerns attention with dropout.
    """
    name = getattr(operator, "__name__", "").partition(".")[0]
    attention = name.startswith(_ATTENTION) and _dropout_of_attention(operator, args, kwargs) == 0.0
    return CheckpointPolicy.MUST_SAVE if attention or name in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE


def _dropout_of_attention(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    names = [argument.name for argument in operator._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return float(given.get("dropout_p", 0.0))


def _contexts(
    block: nn.Module, mode: Recompute
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the forward run and of the run in backward."""
    if mode == "full":
        return nullcontext(), _keep_running_statistics(block)
    first, second = create_selective_checkpoint_contexts(_policy)
    return first, _second_run(block, second)


@contextmanager
def _second_run(block: nn.Module, selective: AbstractContextManager[Any]) -> Iterator[None]:
    with selective, _keep_running_statistics(block):
        yield


@contextmanager
def _keep_running_statistics(block: nn.Module) -> Iterator[None]:
    """Let BatchNorms in training mode normalise by the batch without updating their statistics."""
    norms = [
        norm
        for norm in block.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.track_running_stats
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
