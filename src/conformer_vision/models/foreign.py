"""Checkpoints without a specification: which network they are of, and what its classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from conformer_vision.errors import UserError, nearest, option
from conformer_vision.models.layouts import convert_state_dict, unwrap_state_dict
from conformer_vision.models.variants import VARIANTS


class Foreign(NamedTuple):
    """What a checkpoint says of its network."""

    model: str
    """Name in timm's registry."""
    num_classes: int
    in_chans: int
    classes: tuple[str, ...]
    """Names of the classes; empty where it has none."""


def describe_checkpoint(checkpoint: Mapping[str, object], *, label: str, arch: str | None = None) -> Foreign:
    """Tell which network a checkpoint belongs to, by a name given or in it, or by its parameters' shapes.

    Variants for several image sizes have the same parameters. A checkpoint in the authors' or OpenMMLab's
    layout is then one of those they published.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        label: What an error calls it.
        arch: Name in timm's registry.

    Raises:
        UserError: No such name, or the parameters are those of no variant, or of several.
    """
    try:
        entries = convert_state_dict(checkpoint)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    model = arch or _named(checkpoint) or _by_shapes(checkpoint, entries, label=label)
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if cfg is None:
        raise UserError(f"{option('arch', model)} is no model of timm{nearest(model, timm.list_models())}")
    heads = (cfg.classifier,) if isinstance(cfg.classifier, str) else cfg.classifier or ()
    outputs = [weight.shape[0] for head in heads if (weight := entries.get(f"{head}.weight")) is not None]
    if not outputs:
        names = " or ".join(heads) or "that is known"
        raise UserError(f"{label} has no classifier {names}; it is no {model}, or weights without a head")
    first = entries.get(f"{cfg.first_conv}.weight")
    in_chans = first.shape[1] if first is not None and first.ndim == 4 else 3
    return Foreign(model, outputs[0], in_chans, _class_names(checkpoint, outputs[0]))


def _named(checkpoint: Mapping[str, object]) -> str | None:
    """Return the architecture that timm's training script writes, if it is one of the registry."""
    arch = checkpoint.get("arch")
    return arch if isinstance(arch, str) and timm.is_model(arch) else None


def _by_shapes(checkpoint: Mapping[str, object], entries: Mapping[str, Tensor], *, label: str) -> str:
    found = []
    head, stem = entries.get("conv_head.bias"), entries.get("stem.conv.weight")
    if head is not None and head.ndim == 1 and stem is not None and stem.ndim == 4:
        shapes = _shapes(entries)
        for name in VARIANTS:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=len(head), in_chans=stem.shape[1])
            if _shapes(model.state_dict()) == shapes:
                found.append(name)
    if len(found) > 1 and entries.keys() != unwrap_state_dict(checkpoint).keys():
        found = [name for name in found if timm.get_pretrained_cfg(name).url]  # type: ignore[union-attr]
    if not found:
        raise UserError(
            f"{label} has no model spec, and its parameters are those of no variant of Conformer;"
            f" name its architecture with {option('arch')}"
        )
    if len(found) > 1:
        names = ", ".join(found)
        raise UserError(f"{label} fits several variants ({names}); name the right one with {option('arch')}")
    return found[0]


def _shapes(entries: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    counter = ".num_batches_tracked"  # not in every checkpoint
    return {name: tuple(value.shape) for name, value in entries.items() if not name.endswith(counter)}


def _class_names(checkpoint: Mapping[str, object], num_classes: int) -> tuple[str, ...]:
    """Return the names that OpenMMLab's training writes (mmcls, later mmpretrain), or none."""
    meta = checkpoint.get("meta")
    holders = [meta, meta.get("dataset_meta")] if isinstance(meta, Mapping) else []
    for holder in holders:
        for key in ("classes", "CLASSES"):
            names = holder.get(key) if isinstance(holder, Mapping) else None
            if isinstance(names, (list, tuple)) and len(names) == num_classes:
                texts = tuple(map(str, names))
                return texts if len(set(texts)) == num_classes else ()
    return ()
