"""Gradient checkpointing that updates BatchNorm statistics once per step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["recompute"]


@contextmanager
def _keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm in training mode normalise by the batch without updating its running statistics."""
    norms = [
        m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _keep_running_statistics(module)


def recompute(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Call a module with two outputs without storing what is inside it; backward runs it a second time.

    The second run would update BatchNorm's running statistics again, so it is kept from that.
    Under ``torch.compile`` the compiler traces the module once and does not accept such a context.
    """
    if torch.compiler.is_compiling():
        outputs: tuple[Tensor, Tensor] = checkpoint(module, *inputs, use_reentrant=False)
    else:
        outputs = checkpoint(module, *inputs, use_reentrant=False, context_fn=partial(_contexts, module))
    return outputs
