"""The ``config.json`` of timm and transformers, written from a `ModelSpec` and read as one."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config

from conformer_vision.errors import UserError, reason_of
from conformer_vision.models.published import imagenet_classes
from conformer_vision.runs import HF_CONFIG
from conformer_vision.spec import ModelSpec, Preprocessing

_log = logging.getLogger(__name__)
_SEVERAL = "multi_label_classification"
_THRESHOLDS = "label_thresholds"
"""Our key: from which probability on an image has each label, as `ClassThresholds`."""
_CODES = "label_codes"
"""Our key: label -> class, where a class is a code such as ImageNet's; other programs ignore it."""


def to_pretrained_cfg(spec: ModelSpec, base: dict[str, Any]) -> dict[str, Any]:
    """Return timm's description of weights: what it says of the network, and the specification's input.

    Args:
        spec: The specification of the weights.
        base: The description that the network was built with. What it says of other weights is left out.
    """
    kept = ("architecture", "custom_load", "fixed_input_size", "min_input_size", "first_conv", "classifier")
    cfg = {key: base[key] for key in kept if base.get(key) is not None}
    cfg |= {each.name: getattr(spec, each.name) for each in fields(Preprocessing)}
    if base.get("pool_size") is not None:
        sizes = zip(base["pool_size"], spec.input_size[1:], base["input_size"][1:], strict=True)
        cfg["pool_size"] = tuple(max(pool * size // own, 1) for pool, size, own in sizes)
    return cfg | {"num_classes": spec.num_classes}


def to_config(
    spec: ModelSpec, *, pretrained_cfg: dict[str, Any], model_args: dict[str, Any], num_features: int
) -> dict[str, Any]:
    """Return the contents of a ``config.json``.

    The number of classes is not in ``model_args``: transformers passes it to timm besides these, and fails.

    Args:
        spec: The specification of the weights, at temperature 1.
        pretrained_cfg: As `to_pretrained_cfg` returns it.
        model_args: What ``timm.create_model`` needs besides the name and the number of classes.
        num_features: Width of the pooled features.
    """
    config: dict[str, Any] = {
        "architecture": spec.model,
        "model_type": "timm_wrapper",
        "image_processor_type": "TimmWrapperImageProcessor",
        "num_classes": spec.num_classes,
        "num_features": num_features,
        "label_names": list(spec.labels),
        "model_args": model_args,
        "pretrained_cfg": {name: value for name, value in pretrained_cfg.items() if name != "architecture"},
    }
    if spec.multilabel:  # the pipeline of transformers then takes sigmoids
        config["problem_type"] = _SEVERAL
        if spec.thresholds is not None:
            config[_THRESHOLDS] = asdict(spec.thresholds)
    if spec.descriptions and len(set(spec.descriptions)) == len(spec.descriptions):
        config[_CODES] = dict(zip(spec.descriptions, spec.classes, strict=True))
    return config


def read_spec(folder: Path) -> ModelSpec:
    """Read the specification of the model in a folder that this package, timm or transformers wrote.

    Raises:
        UserError: The ``config.json`` cannot be read, or is not that of a classifier of timm.
    """
    path = folder / HF_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({reason_of(error)}); copy the folder again") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f"{path} names no architecture of timm; export the model again")
    try:
        return _spec_of(config, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError) as error:
        raise UserError(f"{path} is damaged ({reason_of(error)}); copy the folder again") from error


def _spec_of(config: dict[str, Any], path: Path) -> ModelSpec:
    cfg = config.get("pretrained_cfg") or {}
    names = config.get("label_names") or cfg.get("label_names")
    count = config.get("num_classes") or cfg.get("num_classes") or len(names or ())
    codes = config.get(_CODES) or {}
    classes: tuple[str, ...] = tuple(names or ())
    descriptions: tuple[str, ...] = ()
    if names and codes and set(names) <= codes.keys():
        classes, descriptions = tuple(codes[name] for name in names), tuple(names)
    elif not names and (imagenet := imagenet_classes(count)) is not None:
        classes, descriptions = imagenet
    elif not names:
        _log.warning("%s names no classes, so they are numbered", path)
        classes = tuple(map(str, range(count)))
    args = dict(config.get("model_args") or {})
    outputs = args.pop("num_classes", count)  # timm writes it a second time
    if outputs != len(classes):
        raise UserError(f"it says {outputs} classes and names {len(classes)}; correct label_names")
    data = resolve_data_config(pretrained_cfg=cfg)
    values = {each.name: data[each.name] for each in fields(Preprocessing)}
    values["input_size"] = (args.pop("in_chans", values["input_size"][0]), *values["input_size"][1:])
    several = config.get("problem_type") == _SEVERAL
    return ModelSpec(
        config["architecture"],
        args,
        classes,
        descriptions=descriptions,
        multilabel=several,
        thresholds=config.get(_THRESHOLDS) if several else None,
        version="",
        **values,
    )
