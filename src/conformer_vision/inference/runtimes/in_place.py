"""Prediction in place: a folded Conformer whose maps overwrite one another.

On a CPU, large maps cost memory traffic more than arithmetic. The weights runtime owns its copy of the
network and nobody sees the maps in between, so they can be overwritten (docs/performance.md has the gain).

Shapes: B images, C channels of a map, H x W its size, N patch tokens, D embedding width.
"""

from typing import cast

import torch
from torch import Tensor, nn

from conformer_vision.models.blocks import Bottleneck, CoupledBlock, FCUUp, UncoupledBlock

__all__ = ["compute_in_place"]


def compute_in_place(model: nn.Module) -> None:
    """Let the convolution branch of a folded Conformer overwrite its maps, in eval mode only.

    It computes the same numbers. It takes no gradients, and a hook on a convolution sees a map only until
    the next operation, so use it on a copy that is not handed out.
    """
    for block in model.modules():
        if isinstance(block, UncoupledBlock | CoupledBlock):
            block.bottleneck = cast(Bottleneck, InPlaceBottleneck(block.bottleneck))
        if isinstance(block, CoupledBlock):
            block.fusion = cast(Bottleneck, InPlaceBottleneck(block.fusion))
            if block.fcu_up.mode == "nearest":
                block.fcu_up = cast(FCUUp, SmallFCUUp(block.fcu_up))


class InPlaceBottleneck(nn.Module):
    """A folded `Bottleneck`."""

    def __init__(self, folded: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = folded.conv1, folded.conv2, folded.conv3
        self.shortcut_conv = folded.shortcut_conv

    def forward(self, x: Tensor, coupled: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a map (B, in_chs, H, W) and FCUUp's (B, C, H, W), or smaller by a whole ratio, to add."""
        inner = torch.relu_(self.conv1(x))
        if coupled is not None:
            rows, columns = coupled.shape[2:]
            # Nearest upsampling repeats each position, so its sum is a broadcast over cells of the map.
            cells = inner.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
            cells.add_(coupled[:, :, :, None, :, None])
        inner = torch.relu_(self.conv2(inner))
        return torch.relu_(self.conv3(inner).add_(self.shortcut_conv(x))), inner


class SmallFCUUp(nn.Module):
    """A folded `FCUUp` that leaves nearest upsampling to the sum that follows."""

    def __init__(self, folded: FCUUp) -> None:
        super().__init__()
        self.proj = folded.proj

    def forward(self, tokens: Tensor, height: int, width: int, target: Tensor) -> Tensor:
        """Take tokens (B, 1 + height * width, D), give a map (B, out_chs, height, width)."""
        small: Tensor = torch.relu_(self.proj(tokens[:, 1:])).transpose(1, 2).unflatten(2, (height, width))
        return small
