"""Conformer: a CNN branch and a transformer branch, coupled in every block but the first.

Peng et al., "Conformer: Local Features Coupling Global Representations for Visual Recognition",
ICCV 2021, arXiv 2105.03889. Section and figure numbers refer to that paper. It is not the speech
model of the same name.

Shapes: B images, C channels of a map, H x W its size, N patch tokens, D embedding width.
"""

from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from conformer_vision.models.blocks import Blocks, Bottleneck, FCUDown, FCUUp, GlobalPool2d, Stem, build_block
from conformer_vision.models.config import ConformerConfig
from conformer_vision.models.inner import InnerOutputs
from conformer_vision.models.recompute import Recompute, parse_recompute, run_again_in_backward

__all__ = ["BranchLogits", "Conformer"]


class BranchLogits(NamedTuple):
    """The logits of the two heads, each (B, num_classes); pooled features if the model has no classes."""

    conv: Tensor
    trans: Tensor


class Conformer(InnerOutputs):
    """The network (figure 2), with timm's model surface.

    `model(x)` returns one tensor of logits (B, num_classes), or the pooled features of both branches
    (B, num_features) if there are no classes. `forward_branches` returns the logits of each head. What is
    inside (maps, tokens, attention, class maps) comes from the methods of `InnerOutputs`.
    """

    def __init__(
        self,
        config: ConformerConfig,
        num_classes: int = 1000,
        *,
        in_chans: int = 3,
        global_pool: str = "avg",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Build and initialise the network.

        Args:
            config: The network to build.
            num_classes: Classes of both heads; 0 for no heads.
            in_chans: Channels of the image.
            global_pool: "avg", or "" for neither pooling nor heads (num_classes must be 0).

        Raises:
            ValueError: A value is impossible; the message names it.
        """
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans={in_chans} is not positive")
        dd = {"device": device, "dtype": dtype}
        self.config = config
        self.in_chans = in_chans
        self.head_fusion = config.head_fusion
        self.grad_checkpointing: Recompute = "off"
        self.distilled_training = False
        self.embed_dim = config.embed_dim
        self.pad_to = config.tokens_to_map(0)

        self.stem = Stem(in_chans, config.stem_width, stride=config.stem_stride, **dd)
        self.stem_pool = nn.MaxPool2d(3, stride=2, padding=1) if config.stem_stride == 4 else nn.Identity()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim, **dd))
        self.patch_embed: nn.Module = nn.Conv2d(
            config.stem_width, config.embed_dim, self.pad_to, stride=self.pad_to, **dd
        )
        self.blocks = Blocks(build_block(config, index, dd) for index in range(config.depth))
        self.norm: nn.Module | None = nn.LayerNorm(config.embed_dim, **dd)
        self.map_pool = GlobalPool2d()
        self.head_drop = nn.Dropout(config.drop_rate)

        self.feature_depths = config.feature_depths
        self.map_chs = config.width(2)
        self.num_features = self.head_hidden_size = self.map_chs + config.embed_dim
        self.feature_info: list[dict[str, Any]] = [
            {
                "num_chs": config.width(config.stage(depth - 1)) if depth else config.stem_width,
                "reduction": config.reduction(stage) if depth else 2,
                "module": f"blocks.{depth - 1}" if depth else "stem",
            }
            for depth, stage in zip(self.feature_depths, range(4 - len(self.feature_depths), 4), strict=True)
        ]
        # With `norm=True`, the last level is the tensor of `forward_features`.
        self.feature_info[-1]["num_chs_norm"] = self.num_features

        self.conv_head: nn.Module = nn.Identity()
        self.trans_head: nn.Module | None = nn.Identity()
        self._set_heads(num_classes, global_pool)
        self.init_weights()

    # ---- forward -------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Turn normalised images (B, in_chans, H, W), H and W from 32, into logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_branches(self, x: Tensor) -> BranchLogits:
        """Turn images (B, in_chans, H, W) into the logits of the CNN head and the transformer head."""
        return self.branch_logits(self.forward_features(x))

    def branch_logits(self, features: Tensor) -> BranchLogits:
        """Turn the tensor of `forward_features` into the logits of both heads."""
        if self.trans_head is None or self.global_pool == "":
            raise ValueError("without its class token or its pooling this model has no two heads")
        conv, trans = self._pool(features)
        return BranchLogits(self.conv_head(conv), self.trans_head(trans))

    def fuse_logits(self, branches: BranchLogits) -> Tensor:
        """Join the two heads' logits into one tensor (B, num_classes) by `head_fusion`."""
        total: Tensor = branches.conv + branches.trans
        return total / 2 if self.head_fusion == "mean" else total

    def forward_features(self, x: Tensor) -> Tensor:
        """Turn images (B, in_chans, H, W) into one tensor (B, C + D, H / 32, W / 32).

        The first C channels are the last map, the other D the normalised class token, repeated at every
        position: one NCHW tensor, as timm and its users expect. Its spatial mean is the heads' input.
        """
        x = self.stem(x)
        if len(self.blocks) == 0:  # pruned to the stem
            return x
        x, tokens = self._embed(x)
        none: list[int] = []
        x, tokens, _ = self._run_blocks(x, tokens, len(self.blocks), none)
        return self._features(x, tokens)

    def _embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the stem's map into the blocks' first map and tokens (B, 1 + N, D), class token first."""
        x = self.stem_pool(x)
        # Pad with zeros at the bottom and the right until whole patches cover the image.
        height, width, unit = x.shape[2], x.shape[3], self.pad_to
        rows, cols = (height + unit - 1) // unit, (width + unit - 1) // unit
        x = F.pad(x, (0, cols * unit - width, 0, rows * unit - height))
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        return x, torch.cat([self.cls_token.expand(x.shape[0], -1, -1), patches], dim=1)

    def _run_blocks(
        self, x: Tensor, tokens: Tensor, stop: int, keep: list[int]
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Run the first `stop` blocks; also return map and tokens behind the blocks numbered in `keep`."""
        kept: list[tuple[Tensor, Tensor]] = []
        for index, block in enumerate(self.blocks):
            if index < stop:  # TorchScript can neither slice a ModuleList nor leave its loop
                if torch.jit.is_scripting() or self.grad_checkpointing == "off":
                    x, tokens = block(x, tokens)
                else:
                    x, tokens = run_again_in_backward(block, x, tokens, mode=self.grad_checkpointing)
                if index + 1 in keep:
                    kept.append((x, tokens))
        return x, tokens, kept

    def _features(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Join the last map and the normalised class token into the tensor of `forward_features`."""
        if self.norm is None:
            return x
        token = self.norm(tokens[:, 0])
        return torch.cat([x, token[:, :, None, None].expand(-1, -1, x.shape[2], x.shape[3])], dim=1)

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split the tensor of `forward_features` into the pooled map (B, C) and the class token (B, D)."""
        conv = self.head_drop(self.map_pool(x[:, : self.map_chs]))
        trans = self.head_drop(x[:, self.map_chs :, 0, 0])
        return conv, trans

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the tensor of `forward_features` into logits (B, num_classes).

        With `pre_logits`, or without classes, return the pooled features (B, num_features): the map's mean,
        then the class token.
        """
        if self.global_pool == "":
            return x
        conv, trans = self._pool(x)
        if pre_logits or self.num_classes == 0:
            return torch.cat([conv, trans], dim=1)
        logits: Tensor = self.conv_head(conv)
        if self.trans_head is None:
            return logits
        branches = BranchLogits(logits, self.trans_head(trans))
        if self.distilled_training and self.training and not torch.jit.is_scripting():
            return cast(Tensor, branches)  # both heads, as `set_distilled_training` asks
        return self.fuse_logits(branches)

    # ---- heads ---------------------------------------------------------------------------------

    def _set_heads(self, num_classes: int, global_pool: str) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes={num_classes} is negative; use 0 for a model without heads")
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool={global_pool!r} is not possible; use 'avg' or ''")
        if num_classes and not global_pool:
            raise ValueError(f"num_classes={num_classes} needs global_pool='avg'; else use num_classes=0")
        like = next(self.parameters())
        dd: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.conv_head = nn.Linear(self.map_chs, num_classes, **dd) if num_classes else nn.Identity()
        if self.norm is None:  # pruned: the features end at a map
            self.trans_head = None
        else:
            self.trans_head = nn.Linear(self.embed_dim, num_classes, **dd) if num_classes else nn.Identity()

    def get_classifier(self) -> Any:
        """Return both heads (CNN, transformer), or the first alone if pruning left no class token."""
        return self.conv_head if self.trans_head is None else (self.conv_head, self.trans_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both heads by new ones for `num_classes` classes; 0 removes them.

        `global_pool` None keeps the pooling; new heads restore it if there was none.
        """
        if global_pool is None:
            global_pool = "avg" if num_classes else self.global_pool
        self._set_heads(num_classes, global_pool)
        for head in (self.conv_head, self.trans_head):
            if isinstance(head, nn.Linear):
                trunc_normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)
            if head is not None:
                head.train(self.training)

    # ---- weights -------------------------------------------------------------------------------

    def init_weights(self) -> None:
        """Initialise every weight and statistic.

        Truncated normal 0.02 for Linear layers and the class token, Kaiming fan-out for convolutions (the
        couplings' projections included), ones and zeros for norms. On the device ``meta`` there is nothing to
        initialise.
        """
        if next(self.parameters()).is_meta:
            return  # going through all of it takes a third of a second, for which predict would wait
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                module.reset_parameters()
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, FCUDown | FCUUp):  # 1x1 convolutions in the paper
                module.proj.reset_parameters()
                nn.init.kaiming_normal_(module.proj.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and self.config.zero_init_last and not self.folded:
                nn.init.zeros_(cast(Tensor, module.bn3.weight))
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> Any:
        """Return the names of parameters without weight decay, besides norms and biases."""
        return {"cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns that group parameters by depth, for layer-wise learning-rate decay."""
        blocks: Any = r"^blocks\.(\d+)"
        return {
            "stem": r"^stem\.|^cls_token|^patch_embed",
            "blocks": blocks if coarse else [(blocks, None), (r"^norm\.", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool | str = True) -> None:
        """Trade time for memory in training; the gradients stay the same.

        Args:
            enable: "off" keeps everything for backward; "cheap" keeps the outputs of convolutions, matrix
                products and attention, and computes norms, activations and sums again; "full" computes
                whole blocks again. As in timm, True is "full" and False is "off".

        Raises:
            ValueError: There is no such mode.
        """
        self.grad_checkpointing = parse_recompute(enable)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Let `model(x)` return `BranchLogits` in training mode, for trainers with a loss on each head."""
        self.distilled_training = enable

    def set_fused_attention(self, enable: bool = True) -> None:
        """Use `scaled_dot_product_attention`, or the plain path.

        On the plain path the modules `blocks.*.transformer.attn.attn_drop` see the attention maps.
        """
        for module in self.modules():
            if hasattr(module, "fused_attn"):
                setattr(module, "fused_attn", enable)  # noqa: B010 - Final for TorchScript, which is made later

    # ---- inference -----------------------------------------------------------------------------

    def fold(self) -> "Conformer":
        """Return a copy for inference, in eval mode, with every BatchNorm folded into the layer before it.

        It gives the same answers up to rounding (1e-5 relative in float32). A BatchNorm that was replaced or
        hooked stays.
        """
        model = deepcopy(self).eval()
        return cast(Conformer, reparameterize_model(model, inplace=True))

    @property
    def folded(self) -> bool:
        """Whether the BatchNorms are folded."""
        return isinstance(self.stem.bn, nn.Identity)
