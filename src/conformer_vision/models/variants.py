"""The named Conformers: their configurations, weights and timm entry points."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm import create_model
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_model_data_config
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from torch.utils.flop_counter import FlopCounterMode

from conformer_vision.models.checkpoints import checkpoint_filter_fn, fetch_pretrained
from conformer_vision.models.config import ConformerConfig
from conformer_vision.models.conformer import Conformer

__all__ = ["SHIPPED", "VARIANTS", "describe_variants"]

SHIPPED = "conformer_nano_patch8_64.tiny_imagenet_20"
"""Weights that come with the package, by their name in timm's registry; docs/weights.md describes them."""
_SHIPPED_FILE = Path(__file__).parent / "weights" / f"{SHIPPED}.safetensors"
_OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/conformer/"

_NANO = ConformerConfig(channel_ratio=1.5, embed_dim=160, num_heads=5, zero_init_last=True)
_TINY = ConformerConfig(channel_ratio=1.0, zero_init_last=True)

VARIANTS: dict[str, ConformerConfig] = {
    # As published (paper table 1).
    "conformer_tiny_patch16_224": ConformerConfig(channel_ratio=1.0),
    "conformer_small_patch16_224": ConformerConfig(),
    "conformer_small_patch32_224": ConformerConfig(patch_size=32),
    "conformer_base_patch16_224": ConformerConfig(channel_ratio=6.0, embed_dim=576, num_heads=9),
    # A small budget: under 8 M parameters. Bottlenecks that start as their shortcuts learn faster.
    "conformer_nano_patch16_224": _NANO,
    # Small images: 8 x 8 tokens from 32 and from 64 pixels.
    "conformer_nano_patch4_32": replace(_NANO, patch_size=4, stem_stride=1),
    "conformer_nano_patch8_64": replace(_NANO, patch_size=8, stem_stride=2),
    "conformer_tiny_patch4_32": replace(_TINY, patch_size=4, stem_stride=1),
    "conformer_tiny_patch8_64": replace(_TINY, patch_size=8, stem_stride=2),
}


def _cfg(size: int, weights: str = "", *, reduction: int = 32) -> dict[str, Any]:
    """Describe a variant's input and weights as timm does; `reduction` is the stride of its last map."""
    return {
        "url": _OPENMMLAB + weights if weights else "",
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (size // reduction, size // reduction),
        "crop_pct": 224 / 256,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": ("conv_head", "trans_head"),
        "license": "apache-2.0",
        "paper_ids": "arXiv:2105.03889",
        "paper_name": "Conformer: Local Features Coupling Global Representations for Visual Recognition",
        "origin_url": "https://github.com/pengzhiliang/Conformer",
    }


default_cfgs = generate_default_cfgs(
    {
        "conformer_tiny_patch16_224.in1k": _cfg(
            224, "conformer-tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372.pth"
        ),
        "conformer_small_patch16_224.in1k": _cfg(
            224, "conformer-small-p16_3rdparty_8xb128_in1k_20211206-3065dcf5.pth"
        ),
        "conformer_small_patch32_224.in1k": _cfg(
            224, "conformer-small-p32_8xb128_in1k_20211206-947a0816.pth"
        ),
        "conformer_base_patch16_224.in1k": _cfg(
            224, "conformer-base-p16_3rdparty_8xb128_in1k_20211206-bfdf8637.pth"
        ),
        "conformer_nano_patch16_224": _cfg(224),
        "conformer_nano_patch4_32": _cfg(32, reduction=8),
        SHIPPED: _cfg(64, reduction=16)
        | {"file": str(_SHIPPED_FILE), "num_classes": 20, "crop_pct": 1.0, "test_input_size": (3, 72, 72)},
        "conformer_tiny_patch4_32": _cfg(32, reduction=8),
        "conformer_tiny_patch8_64": _cfg(64, reduction=16),
    }
)

_CONFIG_FIELDS = {field.name for field in fields(ConformerConfig)}


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any]) -> Conformer:
    """Build a variant through timm; `kwargs` are timm's, the model's, or fields of the configuration."""
    changes = {name: kwargs.pop(name) for name in _CONFIG_FIELDS & kwargs.keys()}
    config = replace(VARIANTS[variant], **changes)
    file = _fetch_weights(variant, kwargs) if pretrained else None
    if file is not None:
        kwargs["pretrained_cfg_overlay"] = {**(kwargs.get("pretrained_cfg_overlay") or {}), "file": str(file)}
    model: Conformer = build_model_with_cfg(
        partial(Conformer, config),
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "feature_cls": "getter"},
        **kwargs,
    )
    if file is not None:
        cfg: Any = model.pretrained_cfg
        cfg.pop("file", None)  # where it lies on this machine says nothing of the model
    return model


def _fetch_weights(variant: str, kwargs: dict[str, Any]) -> Path | None:
    """Fetch the weights that the pretrained configuration names by URL, if it does; timm loads the file.

    timm would load a URL itself, but leaves the hash in its name unchecked.
    """
    cfg = resolve_pretrained_cfg(
        variant,
        pretrained_cfg=kwargs.get("pretrained_cfg"),
        pretrained_cfg_overlay=kwargs.get("pretrained_cfg_overlay"),
    )
    if not isinstance(cfg.url, str) or not cfg.url or cfg.file or cfg.state_dict or cfg.hf_hub_id:
        return None
    return fetch_pretrained(cfg.url, cache_dir=kwargs.get("cache_dir"))


@register_model
def conformer_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-Ti/16: 23.5 M parameters."""
    return _create("conformer_tiny_patch16_224", pretrained, kwargs)


@register_model
def conformer_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-S/16: 37.7 M parameters."""
    return _create("conformer_small_patch16_224", pretrained, kwargs)


@register_model
def conformer_small_patch32_224(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-S/32: 38.9 M parameters, a quarter of the tokens."""
    return _create("conformer_small_patch32_224", pretrained, kwargs)


@register_model
def conformer_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-B/16: 83.3 M parameters."""
    return _create("conformer_base_patch16_224", pretrained, kwargs)


@register_model
def conformer_nano_patch16_224(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-nano/16: 6.5 M parameters, a narrow transformer beside a CNN branch 1.5 times Ti's."""
    return _create("conformer_nano_patch16_224", pretrained, kwargs)


@register_model
def conformer_nano_patch4_32(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-nano/4 with a stem of stride 1: 32-pixel images keep 8 x 8 tokens."""
    return _create("conformer_nano_patch4_32", pretrained, kwargs)


@register_model
def conformer_nano_patch8_64(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-nano/8 with a stem of stride 2: 64-pixel images keep 8 x 8 tokens."""
    return _create("conformer_nano_patch8_64", pretrained, kwargs)


@register_model
def conformer_tiny_patch4_32(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-Ti/4 with a stem of stride 1: 32-pixel images keep 8 x 8 tokens."""
    return _create("conformer_tiny_patch4_32", pretrained, kwargs)


@register_model
def conformer_tiny_patch8_64(pretrained: bool = False, **kwargs: Any) -> Conformer:
    """Conformer-Ti/8 with a stem of stride 2: 64-pixel images keep 8 x 8 tokens."""
    return _create("conformer_tiny_patch8_64", pretrained, kwargs)


def describe_variants() -> list[dict[str, Any]]:
    """Name, input size, tokens, parameters and multiply-adds (without a GPU or weights) of every variant."""
    rows = []
    for name, config in VARIANTS.items():
        with torch.device("meta"):
            model = create_model(name, num_classes=1000).eval()
            size = resolve_model_data_config(model)["input_size"][-1]
            image = torch.empty(1, 3, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        rows.append(
            {
                "name": name,
                "input_size": size,
                "tokens": (size // config.patch_size) ** 2 + 1,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "gmacs": round(counter.get_total_flops() / 2e9, 3),
            }
        )
    return rows
