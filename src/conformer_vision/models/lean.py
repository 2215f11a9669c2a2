"""Training with less memory: what is cheap to compute is computed again in the backward pass, not kept.

Those are the outputs of LayerNorm, GELU and of BatchNorm with ReLU, and the map that a fusion bottleneck
adds FCUUp's to. Each is a pass over data that is kept anyway, beside the convolutions and matrix products
around it. Gradients are bit for bit those of the plain computation, of any order.

Only in eager mode and while gradients are recorded; under ``torch.compile`` the compiler decides what to
keep.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["again_norm_relu", "keeping_everything", "may_rebuild", "rebuilding"]

_keep: ContextVar[bool] = ContextVar("keep", default=False)


@contextmanager
def keeping_everything() -> Iterator[None]:
    """Compute plainly inside: for gradient checkpointing, which keeps nothing and needs the same twice."""
    token = _keep.set(True)
    try:
        yield
    finally:
        _keep.reset(token)


@torch.jit.unused  # scripted, it is never asked
def may_rebuild(x: Tensor) -> bool:
    """Whether the backward pass of what is now computed from ``x`` may compute things again."""
    plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or not isinstance(x, Tensor)
    return torch.is_grad_enabled() and not plain and not _keep.get()


class rebuilding(saved_tensors_hooks):  # noqa: N801 - a context manager, named as such
    """Inside, operations that would keep ``tensor`` for their backward pass keep ``build`` in its place.

    Args:
        tensor: must not be changed in place afterwards, unless ``build`` gives what it is changed to.
        build: computes the tensor from others that live on; it runs in the backward pass, once for all
            operations inside. None keeps everything.
    """

    def __init__(self, tensor: Tensor, build: Callable[[], Tensor] | None) -> None:
        numel, layout = tensor.numel(), tensor.stride()
        recipe = None if build is None else _Recipe(build)
        memory = 0
        try:
            memory = tensor.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # no memory of its own, as inside torch.func: keep it
            recipe = None
        self._entered = False

        def pack(kept: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
            if recipe is None or kept.untyped_storage().data_ptr() != memory or kept.numel() != numel:
                return kept
            recipe.uses += 1
            return kept.shape, kept.stride()

        def unpack(kept: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
            if recipe is None or isinstance(kept, Tensor):
                return cast(Tensor, kept)
            built = recipe.build()
            if built.shape == kept[0]:
                return built
            if built.stride() != layout:
                built = built.new_empty_strided(built.shape, layout).copy_(built)
            return built.as_strided(*kept)

        super().__init__(pack, unpack)

    def __enter__(self) -> None:
        with suppress(RuntimeError):  # torch.func has no such hooks: it keeps everything
            super().__enter__()
            self._entered = True

    def __exit__(self, *error: object) -> None:
        if self._entered:
            super().__exit__(*error)


class _Recipe:
    """Builds a tensor for all of its uses in one backward pass, and forgets it after the last."""

    def __init__(self, build: Callable[[], Tensor]) -> None:
        self._build = build
        self._built: Tensor | None = None
        self._left = 0
        self.uses = 0

    def build(self) -> Tensor:
        # Gradients of gradients: backward records what it does, and so does the building.
        if self._built is None or torch.is_grad_enabled():
            self._built = self._build()
            self._left = self.uses
        built = self._built
        self._left -= 1
        if self._left <= 0:
            self._built = None
        return built


def again_norm_relu(norm: nn.Module, x: Tensor) -> Callable[[], Tensor] | None:
    """ReLU of BatchNorm of ``x``, to be computed again without touching the running statistics.

    None where that is not possible: SyncBatchNorm and others that are not simply BatchNorm.
    """
    if type(norm) is not nn.BatchNorm2d:
        return None
    batch = norm.training or norm.running_mean is None

    def build() -> Tensor:
        mean, var = (None, None) if batch else (norm.running_mean, norm.running_var)
        return F.relu(F.batch_norm(x, mean, var, norm.weight, norm.bias, batch, 0.0, norm.eps))

    return build
