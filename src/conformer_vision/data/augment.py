"""Options of augmentation; nothing here imports torch, as the command line reads it for --help."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from conformer_vision.errors import UserError

if TYPE_CHECKING:
    from .base import ImageSource
    from .stream import ImageStream


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the training images.

    Raises:
        UserError: a value out of range, or an option that has no effect beside another.
    """

    crop: Literal["auto", "rrc", "pad"] = "auto"
    """``rrc``: a random part of the image, resized; ``pad``: the whole image, moved at random
    over a black border; ``auto``: ``pad`` for inputs up to 64 px, else ``rrc``."""
    scale: tuple[float, float] | None = None
    """Smallest and largest share of the image's area that ``rrc`` takes; 0.08 and 1 by default."""
    ratio: tuple[float, float] | None = None
    """Smallest and largest ratio of width to height that ``rrc`` takes; 3/4 and 4/3 by default."""
    pad: int | None = None
    """Largest shift of ``pad`` in pixels; an eighth of the input by default."""
    hflip: float | None = None
    """Probability of mirroring left to right; 0.5 by default, and 0 if it would change the class."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation."""
    auto_augment: str | None = None
    """A policy of timm, such as ``rand-m9-mstd0.5-inc1``, ``augmix-m3-w3`` or ``original``."""
    re_prob: float = 0.0
    """Probability of erasing a random rectangle."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """What takes its place: the mean colour, one random colour, or a random colour per pixel."""

    def __post_init__(self) -> None:
        for name, highest in (("scale", 1.0), ("ratio", float("inf"))):
            bounds = getattr(self, name)
            if bounds is not None and not (len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= highest):
                limit = " and at most 1" if highest == 1 else ""
                raise UserError(f"{name} {bounds}: must be two numbers, the smaller first, above 0{limit}")
        for name in ("hflip", "re_prob"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} {value}: must be from 0 to 1")
        if self.re_mode not in ("const", "rand", "pixel"):
            raise UserError(f"re_mode {self.re_mode!r}: must be const, rand or pixel")
        if self.re_mode != "const" and not self.re_prob:
            raise UserError(f"re_mode {self.re_mode} has no effect without re_prob; give re_prob too")
        if not 0 <= self.color_jitter <= 1:
            raise UserError(f"color_jitter {self.color_jitter}: must be from 0 to 1")
        if self.pad is not None and self.pad < 1:
            raise UserError(f"pad {self.pad}: must be 1 pixel or more")
        if self.crop not in ("auto", "rrc", "pad"):
            raise UserError(f"crop {self.crop!r}: must be auto, rrc or pad")
        resized = self.scale is not None or self.ratio is not None
        if self.pad is not None and (self.crop == "rrc" or resized):
            raise UserError(
                f"pad {self.pad} is for crop pad; scale and ratio are for crop rrc: keep one kind"
            )
        if self.crop == "pad" and resized:
            raise UserError("scale and ratio have no effect with crop pad; leave them out or use crop rrc")
        if self.auto_augment and self.color_jitter:
            raise UserError(
                "auto_augment changes colours itself; set color_jitter to 0 or leave auto_augment out"
            )

    def for_source(self, source: ImageSource | ImageStream) -> AugmentConfig:
        """Resolve ``hflip``: by default 0 for images that must not be mirrored, else 0.5."""
        if self.hflip is not None:
            return self
        return replace(self, hflip=0.5 if source.mirrorable else 0.0)

    def crop_for(self, height: int, width: int) -> Literal["rrc", "pad"]:
        """Resolve ``crop`` for an input of that size."""
        if self.crop != "auto":
            return self.crop
        if self.scale is not None or self.ratio is not None:
            return "rrc"
        return "pad" if self.pad is not None or max(height, width) <= 64 else "rrc"
