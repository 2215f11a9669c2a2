"""Published weights by their name in timm's registry, and what is known about their classes."""

from __future__ import annotations

from collections import Counter

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from conformer_vision.errors import UserError, first_line


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


def imagenet_classes(num_classes: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the classes and their descriptions of the subset of ImageNet that has so many, or None.

    The classes are WordNet numbers ("n01440764"), as ImageNet's folders are called; the descriptions are
    English and distinct.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    classes = tuple(info.label_names())
    texts = info.label_descriptions()
    twice = Counter(texts)  # two of ImageNet's classes are called "crane"
    descriptions = (
        f"{text} ({name})" if twice[text] > 1 else text for text, name in zip(texts, classes, strict=True)
    )
    return classes, tuple(descriptions)
