"""The configuration of a Conformer: one frozen dataclass, checked on creation."""

from dataclasses import dataclass

__all__ = ["ConformerConfig"]


@dataclass(frozen=True)
class ConformerConfig:
    """Describe one Conformer. The defaults are Conformer-S/16 (paper table 1) as published.

    Attributes:
        patch_size: side of a patch in pixels; one token stands for one patch.
        stem_stride: reduction of the stem: 4 (7x7 convolution and max pool, as published),
            2 or 1 (one 3x3 convolution, for small images).
        stem_width: channels after the stem.
        channel_ratio: channels of the first stage of the CNN branch over 64; the widths double twice.
        embed_dim: width of a token.
        num_heads: attention heads.
        mlp_ratio: hidden width of a transformer block's MLP over embed_dim.
        depths: blocks of the three stages; the very first is not coupled; the very last
            halves its feature map once more.
        upsample: upsampling in FCUUp: "nearest" (as published) or "bilinear".
        double_class_token: double the class token on entering each coupled block, as published: it has no
            counterpart on the feature map and stands in for its own. Otherwise nothing is added to it.
        head_fusion: how to combine the two logits: "mean", or "sum" as the official evaluation does.
        drop_rate: dropout before both heads.
        proj_drop_rate: dropout after attention projection and MLP layers (`drop_rate` in the official code).
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the transformer blocks, growing linearly from 0 to this.
        conv_drop_path_rate: the same in the fusion bottlenecks (in OpenMMLab, not in the official code).
        zero_init_last: start each bottleneck as its shortcut, with the scale of its last BatchNorm at zero.
        output_stride: largest reduction of the feature map: 32 (as published), 16 or 8. Where a halving
            falls away, the 3x3 convolutions behind it are dilated, so any weights fit.
    """

    patch_size: int = 16
    stem_stride: int = 4
    stem_width: int = 64
    channel_ratio: float = 4.0
    embed_dim: int = 384
    num_heads: int = 6
    mlp_ratio: float = 4.0
    depths: tuple[int, int, int] = (4, 4, 4)
    upsample: str = "nearest"
    double_class_token: bool = True
    head_fusion: str = "mean"
    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    conv_drop_path_rate: float = 0.0
    zero_init_last: bool = False
    output_stride: int = 32

    def __post_init__(self) -> None:
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride={self.stem_stride} is not possible; use 1, 2 or 4")
        if self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={self.output_stride} is not possible; use 32, 16 or 8")
        if self.patch_size < 1 or self.patch_size % (4 * self.stem_stride):
            unit = 4 * self.stem_stride
            near = max(unit, round(self.patch_size / unit) * unit)
            raise ValueError(
                f"patch_size={self.patch_size} is not a multiple of {unit}, which "
                f"stem_stride={self.stem_stride} and two halvings of the map ask for; use {near}"
            )
        if self.num_heads < 1 or self.embed_dim < 1 or self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if self.stem_width < 1 or self.channel_ratio <= 0 or (64 * self.channel_ratio) % 4:
            raise ValueError(
                f"channel_ratio={self.channel_ratio} and stem_width={self.stem_width} have to be positive, "
                "and 64 * channel_ratio a multiple of 4, the expansion of a bottleneck"
            )
        if self.mlp_ratio <= 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} is not positive")
        if len(self.depths) != 3 or min(self.depths) < 1 or self.depths[0] < 2 or self.depths[2] < 2:
            raise ValueError(f"depths={self.depths} is not possible; use three numbers, at least (2, 1, 2)")
        if self.upsample not in ("nearest", "bilinear"):
            raise ValueError(f"upsample={self.upsample!r} is unknown; use 'nearest' or 'bilinear'")
        if self.head_fusion not in ("mean", "sum"):
            raise ValueError(f"head_fusion={self.head_fusion!r} is unknown; use 'mean' or 'sum'")
        for name in (
            "drop_rate",
            "proj_drop_rate",
            "attn_drop_rate",
            "drop_path_rate",
            "conv_drop_path_rate",
        ):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability below 1")

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.depths)

    @property
    def feature_depths(self) -> list[int]:
        """Blocks behind each of the feature levels; (4, 4, 4) gives 0 (the stem), 4, 8, 11, 12.

        The stem of a variant for small images has the first stage's stride. It is no level of its own there:
        clients such as segmentation_models.pytorch want every level to halve the one before.
        """
        first, second, _ = self.depths
        levels = [first, first + second, self.depth - 1, self.depth]
        return [0, *levels] if self.stem_stride == 4 else levels

    def stage(self, block: int) -> int:
        """Stage (0, 1, 2) of a block counted from 0."""
        return int(block >= self.depths[0]) + int(block >= self.depths[0] + self.depths[1])

    def width(self, stage: int) -> int:
        """Channels of the CNN branch in a stage."""
        return int(64 * self.channel_ratio) << stage

    def reduction(self, stage: int) -> int:
        """Side of the image over that of the map in a stage; stage 3 is the map of the very last block."""
        return min(self.stem_stride << stage, self.output_stride)

    def dilation(self, stage: int) -> int:
        """Dilation of the 3x3 convolutions on a stage's map: it makes up for the halvings left out before."""
        return (self.stem_stride << stage) // self.reduction(stage)

    def tokens_to_map(self, stage: int) -> int:
        """Cells of a stage's map along one side of a patch: the ratio that the couplings bridge."""
        return self.patch_size // self.reduction(stage)
