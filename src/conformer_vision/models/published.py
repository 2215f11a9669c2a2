"""Published weights by their name in timm's registry, with the spec that their use needs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.models.saved import ModelSpec, load_model

__all__ = ["is_published", "load_published"]


def is_published(name: str | Path) -> bool:
    """Whether it is the name of a model of timm, such as ``resnet50.a1_in1k``, and no path."""
    return not Path(name).exists() and timm.is_model(str(name))


def load_published(name: str) -> tuple[nn.Module, ModelSpec]:
    """A model with its published weights, in eval mode; those not in the package are downloaded once.

    Args:
        name: in timm's registry, with or without the tag behind the dot that names the weights.

    Returns:
        The model and its spec. The classes of ImageNet weights are WordNet numbers ("n01440764"), as folders
        of ImageNet are called, and their descriptions are in English.

    Raises:
        UserError: no weights are published under that name, they cannot be fetched, or their classes are not
            those of ImageNet.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.file:  # comes with the package, and has a spec
        return load_model(cfg.file)
    if cfg is None or not cfg.has_weights:
        known = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}*")) or "none of this model"
        raise UserError(f"{name} has no published weights (known: {known}); give a run folder or a file")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # of the hub, of the network, of the file
        raise UserError(f"the weights of {name} cannot be fetched ({first_line(error)})") from error
    return model.eval(), _spec(name, model)


def _spec(name: str, model: nn.Module) -> ModelSpec:
    subset = infer_imagenet_subset(model)
    if subset is None:
        raise UserError(
            f"{name} has {model.num_classes} classes whose names are not known; only ImageNet's are"
        )
    info = ImageNetInfo(subset)
    data = resolve_model_data_config(model)
    texts = [info.index_to_description(index) for index in range(info.num_classes())]
    twice = Counter(texts)  # two of ImageNet's classes are called "crane"
    classes = info.label_names()
    descriptions = (
        f"{text} ({name})" if twice[text] > 1 else text for text, name in zip(texts, classes, strict=True)
    )
    return ModelSpec(
        name.partition(".")[0],
        classes=tuple(classes),
        descriptions=tuple(descriptions),
        **{key: data[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode", "input_size")},
    )
