"""The named Conformers: their configurations, weights and timm entry points."""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg

from conformer_vision.models.checkpoints import checkpoint_filter_fn, fetch_pretrained
from conformer_vision.models.config import ConformerConfig
from conformer_vision.models.conformer import Conformer
from conformer_vision.spec import METADATA_KEY, ModelSpec

__all__ = ["SHIPPED", "VARIANTS"]

SHIPPED = "conformer_nano_patch8_64.tiny_imagenet_20"
"""Weights that come with the package, by their name in timm's registry; docs/weights.md describes them."""
_SHIPPED_FILE = Path(__file__).parent / "weights" / f"{SHIPPED}.safetensors"
_OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/conformer/"


@dataclass(frozen=True)
class _Variant:
    """A named network: its configuration, native input size, hosted weights and a line about it."""

    config: ConformerConfig
    size: int
    about: str
    weights: str = ""  # a file of OpenMMLab's

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Describe input and weights as timm does."""
        stride = self.config.reduction(3)
        return {
            "url": _OPENMMLAB + self.weights if self.weights else "",
            "num_classes": 1000,
            "input_size": (3, self.size, self.size),
            "pool_size": (self.size // stride, self.size // stride),
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


# Bottlenecks that start as their shortcuts learn faster.
_NANO = ConformerConfig(channel_ratio=1.5, embed_dim=160, num_heads=5, zero_init_last=True)
_TINY = ConformerConfig(channel_ratio=1.0, zero_init_last=True)

_TABLE = {
    # As published (paper table 1).
    "conformer_tiny_patch16_224": _Variant(
        ConformerConfig(channel_ratio=1.0),
        224,
        "Conformer-Ti/16: 23.5 M parameters.",
        "conformer-tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372.pth",
    ),
    "conformer_small_patch16_224": _Variant(
        ConformerConfig(),
        224,
        "Conformer-S/16: 37.7 M parameters.",
        "conformer-small-p16_3rdparty_8xb128_in1k_20211206-3065dcf5.pth",
    ),
    "conformer_small_patch32_224": _Variant(
        ConformerConfig(patch_size=32),
        224,
        "Conformer-S/32: 38.9 M parameters, a quarter of the tokens.",
        "conformer-small-p32_8xb128_in1k_20211206-947a0816.pth",
    ),
    "conformer_base_patch16_224": _Variant(
        ConformerConfig(channel_ratio=6.0, embed_dim=576, num_heads=9),
        224,
        "Conformer-B/16: 83.3 M parameters.",
        "conformer-base-p16_3rdparty_8xb128_in1k_20211206-bfdf8637.pth",
    ),
    # A small budget: under 8 M parameters.
    "conformer_nano_patch16_224": _Variant(
        _NANO,
        224,
        "Conformer-nano/16: 6.5 M parameters, a narrow transformer and a CNN branch 1.5 times Ti's.",
    ),
    # Small images: 8 x 8 tokens from 32 and from 64 pixels.
    "conformer_nano_patch4_32": _Variant(
        replace(_NANO, patch_size=4, stem_stride=1), 32, "Conformer-nano/4 for images of 32 pixels."
    ),
    "conformer_nano_patch8_64": _Variant(
        replace(_NANO, patch_size=8, stem_stride=2), 64, "Conformer-nano/8 for images of 64 pixels."
    ),
    "conformer_tiny_patch4_32": _Variant(
        replace(_TINY, patch_size=4, stem_stride=1), 32, "Conformer-Ti/4 for images of 32 pixels."
    ),
    "conformer_tiny_patch8_64": _Variant(
        replace(_TINY, patch_size=8, stem_stride=2), 64, "Conformer-Ti/8 for images of 64 pixels."
    ),
}

VARIANTS: dict[str, ConformerConfig] = {name: variant.config for name, variant in _TABLE.items()}

_configs: dict[str, Any] = {
    name + (".in1k" if each.weights else ""): each.pretrained_cfg for name, each in _TABLE.items()
}
with safe_open(_SHIPPED_FILE, framework="pt") as _file:
    _shipped = ModelSpec.from_json(_file.metadata()[METADATA_KEY])
_configs[SHIPPED] = _configs.pop(SHIPPED.partition(".")[0]) | {
    "file": str(_SHIPPED_FILE),
    "num_classes": _shipped.num_classes,
    "label_names": _shipped.classes,
    "label_descriptions": dict(zip(_shipped.classes, _shipped.descriptions, strict=True)),
    "crop_pct": 1.0,
    "test_input_size": (3, 72, 72),
}
default_cfgs = generate_default_cfgs(_configs)

_OF_WEIGHTS = ("tag", "label_names", "label_descriptions")
"""What a pretrained configuration says of the weights; a network without them does not have it."""
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
        feature_cfg={"out_indices": tuple(range(len(config.feature_depths))), "feature_cls": "getter"},
        **kwargs,
    )
    cfg: Any = model.pretrained_cfg
    cfg.pop("file", None)  # where it lies on this machine says nothing of the model
    if not pretrained:
        for name in _OF_WEIGHTS:
            cfg.pop(name, None)
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


def _register(name: str, about: str) -> None:
    """Register the function that builds a variant, as `timm.create_model` wants it."""

    def build(pretrained: bool = False, **kwargs: Any) -> Conformer:
        return _create(name, pretrained, kwargs)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = about
    globals()[name] = register_model(build)


for _name, _variant in _TABLE.items():
    _register(_name, _variant.about)
