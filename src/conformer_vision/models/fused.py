"""The parts of a Conformer for inference: every BatchNorm is folded, and what can happens in place.

`Conformer.fuse` makes them of the trained parts; they compute the same up to rounding. In channels-last
layout a map's positions are tokens in memory already, so that neither coupling copies.

Shapes: B images, C channels of a map, H x W its size, N patch tokens, D embedding width.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block as TransformerBlock

    from conformer_vision.models.blocks import Bottleneck, CoupledBlock, FCUUp, UncoupledBlock

__all__ = [
    "FusedBottleneck",
    "FusedCoupledBlock",
    "FusedFCUUp",
    "FusedTransformer",
    "FusedUncoupledBlock",
    "fold_conv",
]


def _may_overwrite() -> bool:
    """Whether an input may be changed in place: not where a gradient needs it, nor in an exported graph.

    A graph has no memory to reuse: there an operation in place becomes a copy.
    """
    if torch.jit.is_scripting():
        return False
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def fold_conv(conv: Any, bn: Any) -> nn.Conv2d:
    """A convolution and the BatchNorm behind it as one convolution with a bias."""
    folded: nn.Conv2d = fuse_conv_bn_eval(conv, bn)
    return folded


class FusedBottleneck(nn.Module):
    """A `Bottleneck` of three or four convolutions, each with its BatchNorm."""

    def __init__(self, trained: Bottleneck) -> None:
        super().__init__()
        self.ratio = trained.ratio
        self.mode = trained.mode
        self.conv1 = fold_conv(trained.conv1, trained.bn1)
        self.conv2 = fold_conv(trained.conv2, trained.bn2)
        self.conv3 = fold_conv(trained.conv3, trained.bn3)
        shortcut: nn.Module = nn.Identity()
        if isinstance(trained.shortcut_conv, nn.Conv2d):
            # The two outputs are added, so one bias serves both.
            shortcut = fold_conv(trained.shortcut_conv, trained.shortcut_bn)
            with torch.no_grad():
                cast(Tensor, self.conv3.bias).add_(cast(Tensor, shortcut.bias))
            shortcut.bias = None
        self.shortcut_conv = shortcut

    def forward(self, x: Tensor, coupled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a map (B, in_chs, H, W) and, in the fusion bottleneck, FCUUp's to add before the 3x3."""
        inner = F.relu(self.conv1(x), inplace=True)
        if coupled is not None:
            inner = self._add_enlarged(inner, coupled)
        inner = F.relu(self.conv2(inner), inplace=True)
        out = self.conv3(inner)
        shortcut = self.shortcut_conv(x)
        out = out.add_(shortcut) if _may_overwrite() else out + shortcut
        return F.relu(out, inplace=True), inner

    def _add_enlarged(self, x: Tensor, small: Tensor) -> Tensor:
        if self.ratio == 1:
            return x.add_(small) if _may_overwrite() else x + small
        if self.mode == "nearest" and _may_overwrite():
            cells = x.unflatten(3, (-1, self.ratio)).unflatten(2, (-1, self.ratio))
            cells.add_(small[:, :, :, None, :, None])  # a view of the map
            return x
        return x + F.interpolate(small, size=x.shape[2:], mode=self.mode)


class FusedFCUUp(nn.Module):
    """`FCUUp` as one Linear on the patch tokens."""

    def __init__(self, trained: FCUUp) -> None:
        super().__init__()
        self.proj = fuse_linear_bn_eval(trained.proj, cast(nn.BatchNorm1d, trained.bn))

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Take tokens (B, 1 + h * w, D), give a map (B, out_chs, h, w)."""
        batch = tokens.shape[0]
        x = F.relu(self.proj(tokens[:, 1:].flatten(0, 1)), inplace=True).unflatten(0, (batch, -1))
        small: Tensor = x.transpose(1, 2).unflatten(2, (height, width))
        return small


class FusedTransformer(nn.Module):
    """A pre-norm transformer block whose query weights carry the scale of the attention."""

    def __init__(self, trained: TransformerBlock) -> None:
        super().__init__()
        attn: Any = trained.attn
        mlp: Any = trained.mlp
        self.num_heads = int(attn.num_heads)
        self.norm1 = deepcopy(trained.norm1)
        self.qkv: nn.Linear = deepcopy(attn.qkv)
        with torch.no_grad():
            queries = self.qkv.out_features // 3
            self.qkv.weight[:queries] *= attn.scale
            cast(Tensor, self.qkv.bias)[:queries] *= attn.scale
        self.proj: nn.Linear = deepcopy(attn.proj)
        self.norm2 = deepcopy(trained.norm2)
        self.fc1: nn.Linear = deepcopy(mlp.fc1)
        self.fc2: nn.Linear = deepcopy(mlp.fc2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Take tokens (B, 1 + N, D), which may be overwritten, and give such."""
        batch = tokens.shape[0]
        # One matrix of all tokens: exported, such a layer is one operator with its bias.
        qkv = self.qkv(self.norm1(tokens).flatten(0, 1)).unflatten(0, (batch, -1))
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        update = self.proj(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        tokens = _add(tokens, update.unflatten(0, (batch, -1)))
        update = self.fc2(F.gelu(self.fc1(self.norm2(tokens).flatten(0, 1))))
        return _add(tokens, update.unflatten(0, (batch, -1)))


def _add(tokens: Tensor, update: Tensor) -> Tensor:
    return tokens.add_(update) if _may_overwrite() else tokens + update


class FusedUncoupledBlock(nn.Module):
    """The first block."""

    def __init__(self, trained: UncoupledBlock) -> None:
        super().__init__()
        self.bottleneck = FusedBottleneck(trained.bottleneck)
        self.transformer = FusedTransformer(trained.transformer)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Take and give a map (B, C, H, W) and tokens (B, 1 + N, D), which may be overwritten."""
        tokens = self.transformer(tokens)
        x, _ = self.bottleneck(x)
        return x, tokens


class FusedCoupledBlock(nn.Module):
    """Blocks 2 to 12."""

    def __init__(self, trained: CoupledBlock) -> None:
        super().__init__()
        self.double_class_token = trained.double_class_token
        self.bottleneck = FusedBottleneck(trained.bottleneck)
        self.fcu_down = deepcopy(trained.fcu_down)
        self.transformer = FusedTransformer(trained.transformer)
        self.fcu_up = FusedFCUUp(trained.fcu_up)
        self.fusion = FusedBottleneck(trained.fusion)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Take and give a map (B, C, H, W) and tokens (B, 1 + N, D), which may be overwritten."""
        x, inner = self.bottleneck(x)
        patches, height, width = self.fcu_down(inner)
        if _may_overwrite():
            tokens[:, 1:].add_(patches)
            if self.double_class_token:
                tokens[:, :1].mul_(2)
        else:
            counterpart = tokens[:, :1] if self.double_class_token else torch.zeros_like(tokens[:, :1])
            tokens = tokens + torch.cat([counterpart, patches], dim=1)
        tokens = self.transformer(tokens)
        x, _ = self.fusion(x, self.fcu_up(tokens, height, width))
        return x, tokens
