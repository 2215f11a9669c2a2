"""What a Conformer is compared with to see what the coupling brings: its branches alone, and both uncoupled.

Each has about as many parameters as Conformer-nano, by wider branches, and takes its `zero_init_last`.
Importing this registers them with timm, so that `conformer_vision.train` and `evaluate` take them by name;
`learning.py` does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from conformer_vision.models import VARIANTS, Conformer, ConformerConfig
from conformer_vision.models.blocks import CoupledBlock

NANO = VARIANTS["conformer_nano_patch8_64"]


class Uncoupled(nn.Module):
    """The convolution branch, the transformer branch, or both beside each other, with a stem and heads.

    The convolution branch has both bottlenecks of every block; what would come from tokens is not added.
    In training mode two branches give two tensors of logits, in eval mode their mean.

    Args:
        config: of the Conformer whose branches these are.
        branches: ``conv``, ``trans`` or both.
        num_classes: of each head.
        in_chans: channels of the images.
    """

    def __init__(
        self,
        config: ConformerConfig,
        branches: tuple[str, ...],
        num_classes: int = 1000,
        *,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        whole = Conformer(config, num_classes, in_chans=in_chans)
        self.num_classes = num_classes
        self.pad_to = whole.pad_to
        self.stem, self.stem_pool = whole.stem, whole.stem_pool
        parts: list[list[nn.Module]] = [
            [block.bottleneck, *([block.fusion] if isinstance(block, CoupledBlock) else [])]
            for block in whole.blocks
        ]
        self.conv: nn.ModuleList | None = None
        self.trans: nn.ModuleList | None = None
        if "conv" in branches:
            self.conv = nn.ModuleList(part for pair in parts for part in pair)
            self.conv_head = whole.conv_head
        if "trans" in branches:
            self.patch_embed, self.cls_token, self.norm = whole.patch_embed, whole.cls_token, whole.norm
            self.trans = nn.ModuleList(block.transformer for block in whole.blocks)
            self.trans_head = whole.trans_head

    def no_weight_decay(self) -> set[str]:
        """As of the Conformer."""
        return {"cls_token"}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Images (B, in_chans, H, W), sides multiples of the patch, to logits (B, num_classes)."""
        x = self.stem_pool(self.stem(x))
        logits = []
        if self.conv is not None:
            features = x
            for bottleneck in self.conv:
                features, _ = bottleneck(features)
            logits.append(self.conv_head(features.mean((2, 3))))
        if self.trans is not None:
            tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1)
            for block in self.trans:
                tokens = block(tokens)
            logits.append(self.trans_head(self.norm(tokens[:, 0])))
        if self.training and len(logits) > 1:
            return tuple(logits)
        return sum(logits[1:], logits[0]) / len(logits)


_CFG = {"num_classes": 1000, "input_size": (3, 64, 64), "first_conv": "stem.conv", "classifier": None}
default_cfgs = generate_default_cfgs(
    dict.fromkeys(("ablation_conv_nano", "ablation_trans_nano", "ablation_uncoupled_nano"), _CFG)
)


def _create(
    name: str, config: ConformerConfig, branches: tuple[str, ...], pretrained: bool, kwargs: dict[str, Any]
) -> Uncoupled:
    config = replace(config, zero_init_last=kwargs.pop("zero_init_last", config.zero_init_last))
    model: Uncoupled = build_model_with_cfg(partial(Uncoupled, config, branches), name, pretrained, **kwargs)
    return model


@register_model
def ablation_conv_nano(pretrained: bool = False, **kwargs: Any) -> Uncoupled:
    """Conformer-nano/8's convolution branch alone, wider."""
    return _create("ablation_conv_nano", replace(NANO, channel_ratio=2.6875), ("conv",), pretrained, kwargs)


@register_model
def ablation_trans_nano(pretrained: bool = False, **kwargs: Any) -> Uncoupled:
    """Conformer-nano/8's transformer branch alone, wider."""
    return _create(
        "ablation_trans_nano", replace(NANO, embed_dim=200, num_heads=5), ("trans",), pretrained, kwargs
    )


@register_model
def ablation_uncoupled_nano(pretrained: bool = False, **kwargs: Any) -> Uncoupled:
    """Both branches of Conformer-nano/8 on one stem, without the couplings, a little wider: an ensemble."""
    config = replace(NANO, channel_ratio=1.5625, embed_dim=160)
    return _create("ablation_uncoupled_nano", config, ("conv", "trans"), pretrained, kwargs)
