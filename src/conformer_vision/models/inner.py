"""What is inside a Conformer: the feature maps and tokens of its blocks, their attention, its class maps.

Shapes: B images, C channels of a map, H x W its size, N patch tokens, D embedding width, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from conformer_vision.models.attention import recording_attention

__all__ = ["AttentionFeatures", "BranchFeatures", "ClassMaps", "InnerOutputs"]


class BranchFeatures(NamedTuple):
    """The branches' features after a block: map (B, C, H, W), tokens (B, 1 + N, D), class token first."""

    map: Tensor
    tokens: Tensor | None


class AttentionFeatures(NamedTuple):
    """What one forward pass with recorded attention gives."""

    attention: list[Tensor]
    """Per block (B, heads, 1 + N, 1 + N): rows ask, columns answer and sum to 1; the class token is first."""
    blocks: list[BranchFeatures]
    """The branches' features after each block."""
    features: Tensor
    """The tensor of `Conformer.forward_features`; `Conformer.forward_head` turns it into logits."""


class ClassMaps(NamedTuple):
    """Class maps of both heads, without the heads' biases."""

    conv: Tensor
    """(B, K, H / 32, W / 32), or larger by `output_stride`. Exact: its mean plus the bias is the logit."""
    trans: Tensor
    """(B, K, h, w) on the grid of the tokens. The head reads the class token only, never these patch tokens,
    so how it would rate them is an approximation."""


class InnerOutputs(nn.Module):
    """The part of `Conformer` that gives what is inside; it has no parameters of its own."""

    if TYPE_CHECKING:
        blocks: nn.ModuleList
        stem: nn.Module
        stem_pool: nn.Module
        patch_embed: nn.Module
        norm: nn.Module | None
        conv_head: nn.Module
        trans_head: nn.Module | None
        feature_depths: list[int]
        feature_info: list[dict[str, Any]]
        map_chs: int
        num_features: int
        head_hidden_size: int
        num_classes: int
        pad_to: int
        cls_token: nn.Parameter

        def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
        def _features(self, x: Tensor, tokens: Tensor) -> Tensor: ...
        def _run_blocks(
            self, x: Tensor, tokens: Tensor, stop: int, keep: list[int]
        ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]: ...

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_tokens: bool = False,
        blocks: list[int] | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of feature levels: the stem and blocks 4, 8, 11, 12 at strides 2, 4, 8, 16, 32.

        The variants for small images have no level of the stem.

        Args:
            x: Images (B, in_chans, H, W).
            indices: The last n levels if int, all if None, else the numbers of the levels.
            norm: Give the last level as the heads see it, map and normalised class token (B, C + D, H, W),
                and normalise the tokens that `return_tokens` adds; other maps have no norm.
            stop_early: Stop after the last of these levels.
            output_fmt: "NCHW".
            intermediates_only: Do not return the final features.
            return_tokens: Return `BranchFeatures` (map, tokens) per level; the stem's tokens are None.
            blocks: Instead of levels, the numbers of any blocks, from 1; 0 is the stem. The answer is in
                the order of the network.

        Raises:
            ValueError: Levels and blocks at once, a block that there is not, or another format.
        """
        if output_fmt != "NCHW":
            raise ValueError("output_fmt must be 'NCHW'; use return_tokens=True for tokens")
        if blocks is None:
            take_indices, max_index = feature_take_indices(len(self.feature_depths), indices)
            depths = [self.feature_depths[level] for level in take_indices]
            last = self.feature_depths[max_index]
        else:
            if indices is not None:
                raise ValueError("give either indices (levels) or blocks, not both")
            depths = blocks
            last = 0
            for number in depths:
                if number < 0 or number > len(self.blocks):
                    raise ValueError(f"blocks: there is no block {number}; use 1 to {len(self.blocks)}")
                last = max(last, number)
        stop = last if stop_early else len(self.blocks)

        x = self.stem(x)
        maps: list[Tensor] = []
        tokens_of: list[Tensor | None] = []
        if 0 in depths:
            maps.append(x)
            tokens_of.append(None)
        features = x
        if stop > 0:
            x, tokens = self._embed(x)
            x, tokens, kept = self._run_blocks(x, tokens, stop, depths)
            for level_map, level_tokens in kept:
                maps.append(level_map)
                tokens_of.append(level_tokens)
            features = self._features(x, tokens)
            if norm and stop == len(self.blocks) and stop in depths:
                maps[-1] = features

        if not torch.jit.is_scripting() and return_tokens:
            if norm and self.norm is not None:
                tokens_of = [None if each is None else self.norm(each) for each in tokens_of]
            pairs = [BranchFeatures(*pair) for pair in zip(maps, tokens_of, strict=True)]
            return cast(list[Tensor], pairs if intermediates_only else (features, pairs))
        if intermediates_only:  # no expression: TorchScript wants one type of it
            return maps
        return features, maps

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Delete what the maps of the levels `indices` do not need, so that every parameter left is used.

        The class token's norm goes with `prune_norm` or with the last blocks; the features are then the last
        map alone. The heads go with `prune_head`, or with the last blocks. Return the numbers of the levels.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_depths), indices)
        depth = self.feature_depths[max_index]
        cut = depth < len(self.blocks)
        self.blocks = self.blocks[:depth]
        self.feature_depths = self.feature_depths[: max_index + 1]
        if depth == 0:
            self.stem_pool = nn.Identity()
            self.patch_embed = nn.Identity()
            self.cls_token = None  # type: ignore[assignment]  # no token is made any more
        if cut or prune_norm:
            self.norm = None
            self.map_chs = self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if cut or prune_norm or prune_head:
            cast(Any, self).reset_classifier(0, "" if prune_head or cut else None)
        return take_indices

    # ---- where -----------------------------------------------------------------------------------

    def forward_attention(
        self, x: Tensor, *, return_features: bool = False
    ) -> list[Tensor] | AttentionFeatures:
        """Return the attention of every block, each (B, heads, 1 + N, 1 + N), class token first.

        These are the weights that the forward pass uses, after their dropout, so that gradients of anything
        computed from the same pass reach them. The N patch tokens are in rows of the image's grid, padded at
        the bottom and the right to whole patches.

        Args:
            x: Images (B, in_chans, H, W).
            return_features: Return `AttentionFeatures`: also every block's map and tokens, and the tensor
                that `forward_head` turns into logits.

        Raises:
            ValueError: The model was cut to its stem, or the attention of a block was replaced by a module
                that does not show its weights.
        """
        if len(self.blocks) == 0:
            raise ValueError("this model was cut to its stem and has no attention")
        recorder, attention = recording_attention(self)
        keep = list(range(1, len(self.blocks) + 1))
        first, tokens = recorder._embed(recorder.stem(x))
        last, tokens, pairs = recorder._run_blocks(first, tokens, len(keep), keep)
        weights = [attention(number) for number in keep]
        if not return_features:
            return weights
        blocks = [BranchFeatures(*pair) for pair in pairs]
        return AttentionFeatures(weights, blocks, recorder._features(last, tokens))

    def class_maps(self, x: Tensor) -> ClassMaps:
        """Return the class maps of both heads: where each class has its evidence, without a gradient.

        Raises:
            ValueError: The model has no classes or was cut.
        """
        if not isinstance(self.conv_head, nn.Linear) or not isinstance(self.trans_head, nn.Linear):
            raise ValueError("without its two heads this model has no class maps; build it with num_classes")
        first, tokens = self._embed(self.stem(x))
        grid = first.shape[2] // self.pad_to, first.shape[3] // self.pad_to
        none: list[int] = []
        last, tokens, _ = self._run_blocks(first, tokens, len(self.blocks), none)
        assert self.norm is not None  # it goes with the heads
        conv = F.conv2d(last, self.conv_head.weight[:, :, None, None])
        trans = F.linear(self.norm(tokens[:, 1:]), self.trans_head.weight)
        return ClassMaps(conv, trans.transpose(1, 2).unflatten(2, grid))

    def cam_layer(self, block: int | None = None) -> nn.Module:
        """Return the module whose output is the map (B, C, H, W) of a block, for grad-cam and torchcam.

        A block itself returns a pair, map and tokens, which they refuse.

        Args:
            block: Its number from 1; the last one by default.

        Raises:
            ValueError: There is no such block.
        """
        number = len(self.blocks) if block is None else block
        if not 1 <= number <= len(self.blocks):
            raise ValueError(f"block={number}: there is no such block; use 1 to {len(self.blocks)}")
        module: Any = self.blocks[number - 1]
        last: nn.Module = module.bottleneck.act3 if number == 1 else module.fusion.act3
        return last
