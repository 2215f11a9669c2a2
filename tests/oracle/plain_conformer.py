"""The plain formulation of Conformer, written from the paper (arXiv 2105.03889, sections 3.1-3.3).

It computes every coupling literally, in the order in which the paper states it: FCUDown projects the full
map and then pools it, attention forms the matrix softmax(QK^T / sqrt(d)) and multiplies it by V, FCUUp
materialises the upsampled map, the class token is concatenated. It is the second oracle of the tests and the
baseline of the benchmarks, so it needs nothing but torch and shares no code with the rest of the package.

Parameter names are those of the officially published checkpoints, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ReferenceConfig:
    """Dimensions of one Conformer; the defaults are those of Conformer-S."""

    patch_size: int = 16
    channel_ratio: float = 4
    embed_dim: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4
    depths: tuple[int, int, int] = (4, 4, 4)
    stem_stride: int = 4
    stem_width: int = 64
    in_chans: int = 3
    num_classes: int = 1000
    double_class_token: bool = True

    @property
    def token_stride(self) -> int:
        """Pixels of the stem's map per token and direction."""
        return self.patch_size // self.stem_stride

    @property
    def scales(self) -> list[int]:
        """Per block 1, 2, ...: how often its map is smaller, and wider, than that of the first stage."""
        return [scale for scale, depth in zip((1, 2, 4), self.depths, strict=True) for _ in range(depth)]

    def width(self, block: int) -> int:
        """Channels of the map that a block, counted from 1, gives."""
        return int(64 * self.channel_ratio) * self.scales[block - 1]


PUBLISHED = {
    "tiny_patch16": ReferenceConfig(channel_ratio=1),
    "small_patch16": ReferenceConfig(),
    "small_patch32": ReferenceConfig(patch_size=32),
    "base_patch16": ReferenceConfig(channel_ratio=6, embed_dim=576, num_heads=9),
}


class BranchLogits(NamedTuple):
    """Logits of the two heads, each (B, num_classes)."""

    conv: Tensor
    trans: Tensor


class Bottleneck(nn.Module):
    """ResNet bottleneck; returns its output and `inner`, the map after the 3x3 convolution (width / 4)."""

    def __init__(self, in_width: int, out_width: int, *, stride: int = 1, project: bool = False) -> None:
        super().__init__()
        inner = out_width // 4
        self.conv1 = nn.Conv2d(in_width, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, eps=1e-6)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, eps=1e-6)
        self.conv3 = nn.Conv2d(inner, out_width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_width, eps=1e-6)
        self.project = project
        if project:
            self.residual_conv = nn.Conv2d(in_width, out_width, 1, stride=stride, bias=False)
            self.residual_bn = nn.BatchNorm2d(out_width, eps=1e-6)

    def forward(self, x: Tensor, from_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a map and, in the fusion bottleneck, FCUUp's map, added before the 3x3 convolution."""
        inner = F.relu(self.bn1(self.conv1(x)))
        if from_tokens is not None:
            inner = inner + from_tokens
        inner = F.relu(self.bn2(self.conv2(inner)))
        shortcut = self.residual_bn(self.residual_conv(x)) if self.project else x
        return F.relu(self.bn3(self.conv3(inner)) + shortcut), inner


class Attention(nn.Module):
    """Multi-head self-attention with the attention matrix formed explicitly."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, D) -> the same shape."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(dim=-1)
        attended: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, length, dim))
        return attended


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """Pre-norm transformer block on (B, 1 + N, D)."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + N, D) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class FCUDown(nn.Module):
    """Map to tokens: 1x1 convolution on the full map, average pooling, LayerNorm, GELU (section 3.2)."""

    def __init__(self, width: int, dim: int, ratio: int, *, double_class_token: bool = True) -> None:
        super().__init__()
        self.ratio = ratio
        self.double_class_token = double_class_token
        self.conv_project = nn.Conv2d(width, dim, 1)
        self.ln = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """(B, C, H, W) and the incoming tokens -> (B, 1 + N, D), the incoming class token in front."""
        x = F.avg_pool2d(self.conv_project(x), self.ratio).flatten(2).transpose(1, 2)
        counterpart = tokens[:, :1] * float(self.double_class_token)
        return torch.cat([counterpart, F.gelu(self.ln(x))], dim=1)


class FCUUp(nn.Module):
    """Patch tokens to a map: 1x1 convolution, BatchNorm, ReLU, nearest upsampling (section 3.2)."""

    def __init__(self, dim: int, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv_project = nn.Conv2d(dim, width, 1)
        self.bn = nn.BatchNorm2d(width, eps=1e-6)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """(B, 1 + N, D) -> (B, C, height, width)."""
        batch, _, dim = tokens.shape
        x = tokens[:, 1:].transpose(1, 2).reshape(batch, dim, height // self.ratio, width // self.ratio)
        return F.interpolate(F.relu(self.bn(self.conv_project(x))), size=(height, width), mode="nearest")


class ConvTransBlock(nn.Module):
    """One coupled block, the paper's blocks 2-12; the first of a stage and the last of all halve the map."""

    def __init__(self, config: ReferenceConfig, number: int) -> None:
        super().__init__()
        in_width, width = config.width(number - 1), config.width(number)
        inner = width // 4
        ratio = config.token_stride // config.scales[number - 1]
        first, last = width > in_width, number == len(config.scales)
        self.cnn_block = Bottleneck(in_width, width, stride=2 if first else 1, project=first)
        self.fusion_block = Bottleneck(width, width, stride=2 if last else 1, project=last)
        doubled = config.double_class_token
        self.squeeze_block = FCUDown(inner, config.embed_dim, ratio, double_class_token=doubled)
        self.expand_block = FCUUp(config.embed_dim, inner, ratio)
        self.trans_block = TransformerBlock(config)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) and tokens (B, 1 + N, D) -> both."""
        x, inner = self.cnn_block(x)
        tokens = self.trans_block(self.squeeze_block(inner, tokens) + tokens)
        from_tokens = self.expand_block(tokens, inner.shape[2], inner.shape[3])
        x, _ = self.fusion_block(x, from_tokens)
        return x, tokens


class ReferenceConformer(nn.Module):
    """Conformer in the plain formulation: images (B, C, H, W) -> logits of both heads."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.trans_norm = nn.LayerNorm(dim, eps=1e-5)
        self.trans_cls_head = nn.Linear(dim, config.num_classes)
        self.conv_cls_head = nn.Linear(config.width(len(config.scales)), config.num_classes)
        # The published stem, or for small images one 3x3 convolution without pooling.
        kernel, stride = (7, 2) if config.stem_stride == 4 else (3, config.stem_stride)
        self.conv1 = nn.Conv2d(config.in_chans, config.stem_width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem_width, eps=1e-5)
        self.conv_1 = Bottleneck(config.stem_width, config.width(1), project=True)
        self.trans_patch_conv = nn.Conv2d(
            config.stem_width, dim, config.token_stride, stride=config.token_stride
        )
        self.trans_1 = TransformerBlock(config)
        for number in range(2, len(config.scales) + 1):
            self.add_module(f"conv_trans_{number}", ConvTransBlock(config, number))

    def stem(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 64, H', W'), H' and W' zero-padded to multiples of the token stride."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.config.stem_stride == 4:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        height, width = x.shape[2:]
        stride = self.config.token_stride
        return F.pad(x, (0, -width % stride, 0, -height % stride))

    def forward(self, x: Tensor) -> BranchLogits:
        """(B, C, H, W) -> logits of the convolution and of the transformer head."""
        stem = self.stem(x)
        tokens = self.trans_patch_conv(stem).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        x, _ = self.conv_1(stem)
        tokens = self.trans_1(tokens)
        for number in range(2, len(self.config.scales) + 1):
            x, tokens = self.get_submodule(f"conv_trans_{number}")(x, tokens)
        return BranchLogits(
            conv=self.conv_cls_head(x.mean(dim=(2, 3))),
            trans=self.trans_cls_head(self.trans_norm(tokens[:, 0])),
        )


def randomize_(model: ReferenceConformer, seed: int) -> None:
    """Fill parameters and BatchNorm statistics so that every one of them shows in the outputs.

    A fresh network hides mistakes: zero biases, unit scales, and statistics of a standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.zero_()
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "running_mean")) or name == "cls_token":
                value.normal_(0, 0.1, generator=generator)
            elif value.ndim == 1:  # the scale of a BatchNorm or LayerNorm
                value.normal_(1, 0.1, generator=generator)
            else:
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)


def build_reference(variant: str, *, in_chans: int = 3, num_classes: int = 1000) -> ReferenceConformer:
    """One of the `PUBLISHED` variants."""
    return ReferenceConformer(replace(PUBLISHED[variant], in_chans=in_chans, num_classes=num_classes))
