"""Heat maps of a batch: one table of methods, one function.

Shapes: B images of H x W pixels, T classes asked for per image, K classes of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformer_vision.errors import UserError, nearest
from conformer_vision.explain.base import Activation, at_image_size
from conformer_vision.explain.by_torchcam import by_torchcam
from conformer_vision.explain.class_activation import attention_cam, cam, token_cam
from conformer_vision.explain.occlusion import occlusion
from conformer_vision.explain.rollout import gradient_rollout, rollout
from conformer_vision.models import Conformer
from conformer_vision.runtime.views import View, Views

__all__ = [
    "METHODS",
    "ONE_BRANCH",
    "HeatMapOptions",
    "HeatMaps",
    "Method",
    "compute_heat_maps",
    "heat_maps",
    "method_of",
    "one_branch_method",
]

Compute = Callable[[nn.Module, Tensor, Tensor, Sequence[int] | None], Activation]


class Method(NamedTuple):
    """One way to a heat map."""

    compute: Compute
    """(model, images (B, C, H, W), classes (B, T), blocks) to an `Activation`."""
    head: str
    """The head whose answer it explains: conv, trans or fused."""
    summary: str
    """For people, in one line."""
    threshold: float = 0.5
    """Share of the strongest evidence at which boxes and masks are cut by default: between those that fit
    several networks best in docs/results.md, which differ much."""
    signed: bool = True
    """Whether zero means no evidence and less is evidence against; else only differences count."""
    takes_blocks: bool = False
    conformer_only: bool = False


METHODS: dict[str, Method] = {
    "cam": Method(cam, "conv", "class maps of the convolution head, exact"),
    "token-cam": Method(
        token_cam,
        "conv",
        "class maps weighed by what the class token attends to",
        threshold=0.2,
        takes_blocks=True,
        conformer_only=True,
    ),
    "attention-cam": Method(
        attention_cam,
        "conv",
        "class maps spread by the attention of the transformer branch",
        signed=False,
        takes_blocks=True,
        conformer_only=True,
    ),
    "rollout": Method(
        rollout,
        "trans",
        "attention over all blocks, the same for every class",
        threshold=0.35,
        signed=False,
    ),
    "gradient-rollout": Method(
        gradient_rollout,
        "trans",
        "attention that raises the transformer head's logit",
        threshold=0.2,
        signed=False,
    ),
    "occlusion": Method(occlusion, "fused", "loss of the logit when a part is covered; slow"),
    "gradcam": Method(by_torchcam("GradCAM"), "fused", "last map weighed by mean gradients"),
    "gradcam++": Method(by_torchcam("GradCAMpp"), "fused", "the same for several objects of a class"),
    "xgradcam": Method(by_torchcam("XGradCAM"), "fused", "last map weighed by gradients times activations"),
    "layercam": Method(by_torchcam("LayerCAM"), "fused", "last map weighed by gradients cell by cell"),
}


ONE_BRANCH = ("cam", "gradient-rollout", "occlusion")
"""Methods for networks without two branches, of which the first that a network has is taken."""


@dataclass(frozen=True)
class HeatMapOptions:
    """How heat maps are made.

    Args:
        method: A name of `METHODS`.
        views: The scales and sides at which the images are looked at; maps and scores are averaged.
        blocks: Numbers, from 1, of the blocks whose attention ``token-cam`` and ``attention-cam`` take; all
            by default.
    """

    method: str = "cam"
    views: Views = field(default_factory=Views)
    blocks: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, method: str, *, scales: Sequence[float], flip: bool, blocks: Sequence[int] | None
    ) -> HeatMapOptions:
        """Return what the options of the functions and commands say.

        Raises:
            UserError: A scale is not a positive number.
        """
        return cls(method, Views(tuple(scales), flip), None if blocks is None else tuple(blocks))


class HeatMaps(NamedTuple):
    """Where the evidence for some classes lies."""

    maps: Tensor
    """(B, T, H, W), in the method's own unit; higher is more evidence, below zero is evidence against."""
    scores: Tensor
    """(B, T): the logit of each class, from the head that the method explains."""


def heat_maps(
    model: nn.Module,
    images: Tensor,
    classes: Tensor | Sequence[int] | int,
    *,
    method: str = "cam",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    blocks: Sequence[int] | None = None,
) -> HeatMaps:
    """Return heat maps at the size of the images.

    Args:
        model: A Conformer, folded or not, or another timm model, in eval mode.
        images: Normalised images (B, C, H, W) of any size that the model takes.
        classes: Class numbers: one or several for all images, or (B, T) for each its own.
        method: A name of `METHODS`.
        scales: Sizes at which the images are looked at, as multiples of their own; maps and scores are
            averaged.
        flip: Look at the mirrored images too, at every scale.
        blocks: Numbers, from 1, of the blocks whose attention ``token-cam`` and ``attention-cam`` take; all
            by default.

    Raises:
        UserError: No such method, class or block, a model that the method cannot explain, or one in training
            mode, whose answers are random.
    """
    return compute_heat_maps(
        model, images, classes, HeatMapOptions.of(method, scales=scales, flip=flip, blocks=blocks)
    )


def compute_heat_maps(
    model: nn.Module, images: Tensor, classes: Tensor | Sequence[int] | int, options: HeatMapOptions
) -> HeatMaps:
    """Compute heat maps as `heat_maps` does."""
    chosen = _method(options.method, model, options.blocks)
    if model.training:
        raise UserError("the model is in training mode, where its answers are random; call model.eval()")
    with torch.inference_mode(False):  # what is made in that mode has no gradients, which some methods need
        numbers = _class_numbers(classes, len(images), getattr(model, "num_classes", None)).to(images.device)
        images = images.clone() if images.is_inference() else images
        found = [
            _look(chosen.compute, model, images, numbers, options.blocks, view=view) for view in options.views
        ]
        maps, scores = (torch.stack(each).mean(0) for each in zip(*found, strict=True))
    return HeatMaps(maps, scores)


def _look(
    compute: Compute,
    model: nn.Module,
    images: Tensor,
    numbers: Tensor,
    blocks: Sequence[int] | None,
    *,
    view: View,
) -> HeatMaps:
    """Look at the images once; return maps at their own size and side."""
    seen = _seen(images, view)
    found = compute(model, seen, numbers, blocks)
    full = at_image_size(found.maps, found.cells, (seen.shape[2], seen.shape[3]))
    full = full.flip(3) if view.mirrored else full
    if view.scale != 1:
        full = F.interpolate(full, images.shape[2:], mode="bilinear")
    return HeatMaps(full, found.scores)


def _seen(images: Tensor, view: View) -> Tensor:
    """Return the view of images (B, C, H, W), as `predict` looks at them."""
    if view == View():
        return images
    return torch.from_numpy(view.of(images.float().cpu().numpy())).to(images)


def one_branch_method(model: nn.Module, image: Tensor) -> str:
    """Return the first of `ONE_BRANCH` that a network has; the last, which every network has, is not tried.

    Args:
        model: The network, in eval mode.
        image: Any image (1, C, H, W) that it takes.
    """
    *others, last = ONE_BRANCH
    for method in others:
        try:
            heat_maps(model, image, 0, method=method)
        except UserError:
            continue
        return method
    return last


def method_of(name: str) -> Method:
    """Return a method by its name.

    Raises:
        UserError: There is no such method.
    """
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise UserError(f"method {name!r}: must be one of {known}{nearest(name, METHODS)}")
    return METHODS[name]


def _method(name: str, model: nn.Module, blocks: Sequence[int] | None) -> Method:
    """Return the method, once it is known to suit the model."""
    method = method_of(name)
    if method.conformer_only and not isinstance(model, Conformer):
        kind = type(model).__name__
        raise UserError(
            f"method {name} needs the two branches of a Conformer, not {kind}; use cam or gradcam"
        )
    if blocks is not None and not method.takes_blocks:
        takers = ", ".join(name for name, each in METHODS.items() if each.takes_blocks)
        raise UserError(f"method {name} has no choice of blocks; leave it out, or use {takers}")
    depth = len(model.blocks) if isinstance(model, Conformer) else 0
    for number in blocks or ():
        if not 1 <= number <= depth:
            raise UserError(f"blocks {list(blocks or ())}: there is no block {number}; use 1 to {depth}")
    return method


def _class_numbers(classes: Tensor | Sequence[int] | int, images: int, outputs: int | None) -> Tensor:
    """Return class numbers (B, T)."""
    numbers = torch.as_tensor(classes).long()
    if numbers.ndim < 2:
        numbers = numbers.reshape(1, -1).expand(images, -1)
    if numbers.ndim != 2 or len(numbers) != images or not numbers.numel():
        raise UserError(
            f"classes {tuple(numbers.shape)}: give numbers for all {images} images, or a row for each"
        )
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or (outputs is not None and high >= outputs):
        wrong = low if low < 0 else high
        raise UserError(f"class {wrong}: the model has the classes 0 to {(outputs or 0) - 1}")
    return numbers
