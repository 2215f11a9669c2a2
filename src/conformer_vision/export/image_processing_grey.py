"""Images for a network with one channel, in transformers: the code that `export --format hf` adds."""

from typing import Any

from torchvision.transforms import Grayscale
from transformers import TimmWrapperImageProcessor


class GreyImageProcessor(TimmWrapperImageProcessor):  # type: ignore[misc]
    """timm's preprocessing of images turned to grey."""

    def __init__(
        self, pretrained_cfg: dict[str, Any], architecture: str | None = None, **kwargs: Any
    ) -> None:
        """Put the change to grey in front of timm's transforms."""
        super().__init__(pretrained_cfg, architecture, **kwargs)
        for pipeline in (self.val_transforms, self.train_transforms):
            pipeline.transforms.insert(0, Grayscale())
