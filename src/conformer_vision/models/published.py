"""Published weights by their name in timm's registry, and what is known about their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.models.layouts import convert_state_dict, unwrap_state_dict
from conformer_vision.models.variants import VARIANTS


def create_published(name: str) -> nn.Module:
    """Create a model with its published weights, in eval mode; they are downloaded once.

    Args:
        name: Name in timm's registry; a tag behind a dot picks one of several weights.

    Raises:
        UserError: No weights are published under that name, or they cannot be fetched.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        known = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}*")) or "none of this model"
        raise UserError(f"{name} has no published weights (known: {known}); give a run folder or a file")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # of the hub, of the network, of the file
        raise UserError(f"the weights of {name} cannot be fetched ({first_line(error)})") from error
    return model.eval()


def imagenet_classes(model: nn.Module, *, label: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of a model for ImageNet, and their descriptions.

    The classes are WordNet numbers ("n01440764"), as ImageNet's folders are called; the descriptions are
    English and distinct.

    Args:
        model: With its number of classes.
        label: What an error calls the weights.

    Raises:
        UserError: The number of classes is not that of a subset of ImageNet.
    """
    subset = infer_imagenet_subset(model)
    if subset is None:
        raise UserError(
            f"{label} has {model.num_classes} classes whose names are not known; only ImageNet's are"
        )
    info = ImageNetInfo(subset)
    classes = tuple(info.label_names())
    texts = [info.index_to_description(index) for index in range(info.num_classes())]
    twice = Counter(texts)  # two of ImageNet's classes are called "crane"
    descriptions = (
        f"{text} ({name})" if twice[text] > 1 else text for text, name in zip(texts, classes, strict=True)
    )
    return classes, tuple(descriptions)


def tell_variant(checkpoint: Mapping[str, object], *, label: str) -> tuple[str, int]:
    """Tell which variant a checkpoint belongs to, from its architecture's name or its parameters' shapes.

    Variants for several image sizes have the same parameters. A checkpoint in the authors' or OpenMMLab's
    layout is then one of those they published.

    Args:
        checkpoint: As `read_checkpoint` gives it.
        label: What an error calls it.

    Returns:
        The variant, and its number of classes.

    Raises:
        UserError: It belongs to no variant, or to several.
    """
    try:
        entries = convert_state_dict(checkpoint)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    head = entries.get("conv_head.bias")
    found, num_classes = [], 0
    if head is not None and head.ndim == 1:
        num_classes, shapes = len(head), _shapes(entries)
        for name in VARIANTS:
            with torch.device("meta"):
                model = timm.create_model(name, num_classes=num_classes)
            if _shapes(model.state_dict()) == shapes:
                found.append(name)
    if (arch := checkpoint.get("arch")) in found:  # as timm's training script writes it
        found = [str(arch)]
    if len(found) > 1 and entries.keys() != unwrap_state_dict(checkpoint).keys():
        found = [name for name in found if timm.get_pretrained_cfg(name).url]  # type: ignore[union-attr]
    if len(found) != 1:
        which = (
            f"several variants ({', '.join(found)})" if found else "no variant of Conformer for colour images"
        )
        raise UserError(f"{label} fits {which}; create the model and call load_checkpoint(model, path)")
    return found[0], num_classes


def _shapes(entries: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    counter = ".num_batches_tracked"  # not in every checkpoint
    return {name: tuple(value.shape) for name, value in entries.items() if not name.endswith(counter)}
