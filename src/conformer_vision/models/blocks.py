"""The parts of a Conformer: bottlenecks, the two couplings, and the blocks that join them.

Shapes: B images, C channels of a map, H x W its size, N patch tokens, D embedding width.
"""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from conformer_vision.models.config import ConformerConfig
from conformer_vision.models.fold import fold_norm

__all__ = [
    "Blocks",
    "Bottleneck",
    "CoupledBlock",
    "FCUDown",
    "FCUUp",
    "GlobalPool2d",
    "Stem",
    "UncoupledBlock",
    "build_block",
]


class Stem(nn.Module):
    """Convolution, BatchNorm (eps 1e-5) and ReLU (table 1, c1).

    At stride 4 the convolution has stride 2 and the max pool that follows, `Conformer.stem_pool`, the rest.
    """

    def __init__(
        self, in_chans: int, out_chs: int, *, stride: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        kernel = 7 if stride == 4 else 3
        self.conv = nn.Conv2d(
            in_chans,
            out_chs,
            kernel,
            stride=min(stride, 2),
            padding=kernel // 2,
            bias=False,
            device=device,
            dtype=dtype,
        )
        self.bn: nn.Module = nn.BatchNorm2d(out_chs, device=device, dtype=dtype)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Take images (B, in_chans, H, W), give a map (B, out_chs, H', W')."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out

    def fuse(self) -> "Stem":
        """Fold the BatchNorm, in place; timm's `reparameterize_model` calls this."""
        self.bn = fold_norm(self.conv, self.bn)
        return self


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut (section 3.2), expansion 4, BatchNorm eps 1e-6.

    Returns the output (B, out_chs, H', W') and the inner map after the 3x3 (B, out_chs // 4, H', W').
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        project: bool = False,
        drop_path: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        norm = partial(nn.BatchNorm2d, eps=1e-6, device=device, dtype=dtype)
        mid_chs = out_chs // 4
        self.conv1 = nn.Conv2d(in_chs, mid_chs, 1, bias=False, **dd)
        self.bn1: nn.Module = norm(mid_chs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(
            mid_chs, mid_chs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False, **dd
        )
        self.bn2: nn.Module = norm(mid_chs)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(mid_chs, out_chs, 1, bias=False, **dd)
        self.bn3: nn.Module = norm(out_chs)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.shortcut_conv = (
            nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False, **dd) if project else nn.Identity()
        )
        self.shortcut_bn: nn.Module = norm(out_chs) if project else nn.Identity()
        self.act3 = nn.ReLU()

    def forward(self, x: Tensor, coupled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a map (B, in_chs, H, W) and, in the fusion bottleneck, FCUUp's to add before the 3x3."""
        inner = self.act1(self.bn1(self.conv1(x)))
        if coupled is not None:
            inner = inner + coupled
        inner = self.act2(self.bn2(self.conv2(inner)))
        out = self.drop_path(self.bn3(self.conv3(inner)))
        return self.act3(out + self.shortcut_bn(self.shortcut_conv(x))), inner

    def fuse(self) -> "Bottleneck":
        """Fold the BatchNorms, in place; timm's `reparameterize_model` calls this."""
        self.bn1 = fold_norm(self.conv1, self.bn1)
        self.bn2 = fold_norm(self.conv2, self.bn2)
        self.bn3 = fold_norm(self.conv3, self.bn3)
        self.shortcut_bn = fold_norm(self.shortcut_conv, self.shortcut_bn)
        return self


class FCUDown(nn.Module):
    """Feature coupling unit from map to tokens (section 3.3): pool, project, LayerNorm 1e-6, GELU.

    The paper projects by a 1x1 convolution and pools after it. Both are linear and commute, so pooling
    comes first: `ratio`^2 times less to project, which a Linear on tokens then does.
    """

    def __init__(
        self, in_chs: int, embed_dim: int, *, ratio: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(ratio) if ratio > 1 else nn.Identity()
        self.proj = nn.Linear(in_chs, embed_dim, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, device=device, dtype=dtype)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Take a map (B, in_chs, H, W), give tokens (B, N, D) and the grid h, w with N = h * w."""
        x = self.pool(x)
        height, width = x.shape[2], x.shape[3]
        tokens = self.proj(x.flatten(2).transpose(1, 2))
        return self.act(self.norm(tokens)), height, width


class FCUUp(nn.Module):
    """Feature coupling unit from tokens to map (section 3.3): project, BatchNorm 1e-6, ReLU, upsample.

    The paper projects by a 1x1 convolution; on tokens that is a Linear.
    """

    def __init__(
        self,
        embed_dim: int,
        out_chs: int,
        *,
        ratio: int,
        mode: str = "nearest",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.mode = mode
        self.proj = nn.Linear(embed_dim, out_chs, device=device, dtype=dtype)
        self.bn: nn.Module = nn.BatchNorm2d(out_chs, eps=1e-6, device=device, dtype=dtype)
        self.act = nn.ReLU()

    def forward(self, tokens: Tensor, height: int, width: int, target: Tensor) -> Tensor:
        """Take tokens (B, 1 + height * width, D), give a map (B, out_chs, H, W), as large as the target."""
        x = self.proj(tokens[:, 1:]).transpose(1, 2).unflatten(2, (height, width))
        small: Tensor = self.act(self.bn(x))
        if self.ratio > 1:
            small = F.interpolate(small, size=target.shape[2:], mode=self.mode)
        return small

    def fuse(self) -> "FCUUp":
        """Fold the BatchNorm, in place; timm's `reparameterize_model` calls this."""
        self.bn = fold_norm(self.proj, self.bn)
        return self


class UncoupledBlock(nn.Module):
    """The first block: a bottleneck on the map beside a transformer block on the tokens."""

    def __init__(self, bottleneck: Bottleneck, transformer: Block) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.transformer = transformer

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Take and give a map (B, C, H, W) and tokens (B, 1 + N, D)."""
        tokens = self.transformer(tokens)
        x, _ = self.bottleneck(x)
        return x, tokens


class CoupledBlock(nn.Module):
    """Blocks 2 to 12 (figure 2c): bottleneck, FCUDown, transformer block, FCUUp, fusion bottleneck."""

    def __init__(
        self,
        bottleneck: Bottleneck,
        transformer: Block,
        *,
        fcu_down: FCUDown,
        fcu_up: FCUUp,
        fusion: Bottleneck,
        double_class_token: bool = True,
    ) -> None:
        super().__init__()
        self.double_class_token = double_class_token
        self.bottleneck = bottleneck
        self.fcu_down = fcu_down
        self.transformer = transformer
        self.fcu_up = fcu_up
        self.fusion = fusion

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Take and give a map (B, C, H, W) and tokens (B, 1 + N, D)."""
        x, inner = self.bottleneck(x)
        patches, height, width = self.fcu_down(inner)
        # The class token has no counterpart on the map. As published it stands in for its own, so it doubles.
        counterpart = tokens[:, :1] if self.double_class_token else torch.zeros_like(tokens[:, :1])
        tokens = self.transformer(tokens + torch.cat([counterpart, patches], dim=1))
        x, _ = self.fusion(x, self.fcu_up(tokens, height, width, x))
        return x, tokens


class Blocks(nn.ModuleList):
    """The blocks of a network, which calls them itself: they take and give map and tokens."""

    @torch.jit.unused
    def forward(self, x: Tensor) -> Tensor:
        """Refuse to run as a layer of a sequence.

        fastai cuts a network that it gets as a function behind the last child but the pooling, and chains
        the children before it. Without this, it would silently train the stem alone.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "a Conformer cannot be cut into a sequence of its children: its blocks take map and tokens;"
            " give its name instead of its function: vision_learner(dls, 'conformer_small_patch16_224')"
        )


class GlobalPool2d(nn.Module):
    """The mean of a map over its positions: (B, C, H, W) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Take a map (B, C, H, W), give its mean (B, C)."""
        return x.mean((2, 3))


def build_block(config: ConformerConfig, index: int, dd: dict[str, Any]) -> nn.Module:
    """Build block `index` (from 0) of the network."""
    stage = config.stage(index)
    chs, ratio = config.width(stage), config.tokens_to_map(stage)
    first = index == 0
    last = index == config.depth - 1
    new_stage = first or config.stage(index - 1) != stage
    in_chs = config.stem_width if first else config.width(config.stage(index - 1))
    depth_share = index / (config.depth - 1)
    # The convolution that would halve the map still sees the map before it, at that map's dilation.
    before = stage - 1 if new_stage and not first else stage

    bottleneck = Bottleneck(
        in_chs,
        chs,
        stride=config.reduction(stage) // config.reduction(before),
        dilation=config.dilation(before),
        project=new_stage,
        **dd,
    )
    transformer = Block(
        config.embed_dim,
        config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=True,
        proj_drop=config.proj_drop_rate,
        attn_drop=config.attn_drop_rate,
        drop_path=config.drop_path_rate * depth_share,
        norm_layer=cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6)),
        **dd,
    )
    if first:
        return UncoupledBlock(bottleneck, transformer)
    return CoupledBlock(
        bottleneck,
        transformer,
        fcu_down=FCUDown(chs // 4, config.embed_dim, ratio=ratio, **dd),
        fcu_up=FCUUp(config.embed_dim, chs // 4, ratio=ratio, mode=config.upsample, **dd),
        fusion=Bottleneck(
            chs,
            chs,
            stride=config.reduction(stage + 1) // config.reduction(stage) if last else 1,
            dilation=config.dilation(stage),
            project=last,
            drop_path=config.conv_drop_path_rate * depth_share,
            **dd,
        ),
        double_class_token=config.double_class_token,
    )
