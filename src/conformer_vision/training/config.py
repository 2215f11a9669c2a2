"""What a training run is made of: one typed, frozen dataclass that flags and YAML recipes both fill.

Nothing here imports torch: the command line reads this file for ``--help``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import yaml

from ..data.augment import AugmentConfig
from ..errors import UserError

InputSize = int | tuple[int, int]
Channels = Literal[1, 3]
Precision = Literal["32", "bf16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Progress = Literal["auto", "rich", "plain"]

_CHOICES = {"in_chans": Channels, "precision": Precision, "device": Device, "progress": Progress}
_ENDLESS = 2**53
"""No number of a configuration reaches this, infinity and not-a-number included."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run goes.

    Raises:
        UserError: a value that cannot be; the line names it and says what can.
    """

    data: str
    """Folder of class folders, parquet file or folder in the Hugging Face image layout, or ``digits``."""
    output: str | None = None
    """Run folder to write; ``runs/MODEL-DATE-TIME`` where not given."""
    model: str = "conformer_nano_patch16_224"
    """Any model of timm's registry, as ``conformer-vision models`` and ``timm.list_models()`` list them."""
    pretrained: bool = False
    """Start from the model's published weights (downloaded once)."""
    checkpoint: str | None = None
    """File or URL of weights to start from, in official, OpenMMLab, timm or own layout."""
    reset_head: bool = False
    """Give a ``checkpoint`` with another number of classes a new head; otherwise it is an error."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``timm.create_model``, as ``--model_kwargs.upsample bilinear``."""
    input_size: InputSize | None = None
    """Pixels of the square input, or ``[height, width]``; the model's own where not given."""
    in_chans: Channels = 3
    """Channels of the input: 3, or 1 for pictures turned to grey."""
    crop_pct: float | None = None
    """Share of the resized picture's edge that the central crop of validation keeps; where not given 1 for
    inputs up to 64 px, else the model's own."""
    val_fraction: float = 0.1
    """Share of every class held out for validation where the data has no split of its own."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of the pictures and the augmentation."""
    epochs: int = 30
    """Passes over the training pictures."""
    max_steps: int | None = None
    """End after so many optimiser steps, with the learning-rate schedule fitted to them."""
    max_minutes: float | None = None
    """End after so many minutes by the clock, validation included, with the schedule fitted to them."""
    batch_size: int = 64
    """Pictures per step; the last, incomplete batch of an epoch is left out."""
    workers: int = 2
    """Processes that read and augment pictures; 0 does so in the training process."""
    optimizer: str = "adamw"
    """Optimiser by its timm name, as ``timm.optim.list_optimizers()`` lists them."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and the class token have none."""
    warmup_epochs: float = 1.0
    """Epochs (or a part of one) in which the learning rate rises linearly from 0."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    clip_grad: float | None = None
    """Largest norm of the gradient of one step; not limited where not given."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    mixup: float = 0.0
    """Alpha of MixUp; 0 turns it off. With ``cutmix`` too, every batch draws one of them."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 turns it off."""
    drop_path_rate: float | None = None
    """Stochastic depth of the last block (the first has none); the model's own where not given."""
    conv_drop_path_rate: float | None = None
    """Stochastic depth of the fusion bottlenecks of a Conformer; the model's own where not given."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training pictures."""
    precision: Precision = "32"
    """Arithmetic: float32, or bfloat16 where autocast deems it safe."""
    device: Device = "auto"
    """Where to compute; ``auto`` takes an accelerator where there is one."""
    progress: Progress = "auto"
    """Progress bar or plain lines; ``auto`` takes the bar on a terminal."""

    def __post_init__(self) -> None:
        positive = ("epochs", "max_steps", "max_minutes", "batch_size", "lr", "clip_grad")
        not_negative = ("workers", "seed", "weight_decay", "warmup_epochs", "min_lr", "mixup", "cutmix")
        for name in positive:
            self._check(name, lambda value: value > 0, "a number above 0")
        for name in not_negative:
            self._check(name, lambda value: value >= 0, "0 or more")
        for name in ("label_smoothing", "drop_path_rate", "conv_drop_path_rate"):
            self._check(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        self._check("val_fraction", lambda value: 0 < value < 1, "between 0 and 1, both excluded")
        self._check("crop_pct", lambda value: 0 < value <= 1, "above 0 and at most 1")
        self._check("seed", lambda value: value < 2**32, "below 2**32")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                allowed = ", ".join(map(str, get_args(choices)))
                raise UserError(f"{name} {getattr(self, name)!r}: must be one of {allowed}")
        if self.min_lr > self.lr:
            raise UserError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}; give a lower min_lr")
        if min(self.image_size or (1,)) < 1:
            raise UserError(f"input_size {self.input_size}: must be 1 pixel or more")
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise UserError(f"batch_size {self.batch_size}: must be even with mixup or cutmix")
        if self.pretrained and self.checkpoint is not None:
            raise UserError("pretrained and checkpoint both give initial weights; keep one of them")
        if self.reset_head and self.checkpoint is None:
            raise UserError("reset_head is for a checkpoint's weights; give checkpoint too, or leave it out")

    def _check(self, name: str, holds: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not (abs(value) < _ENDLESS and holds(value)):
            raise UserError(f"{name} {value}: must be {wanted}")

    @property
    def image_size(self) -> tuple[int, int] | None:
        """``input_size`` as (height, width)."""
        size = self.input_size
        return (size, size) if isinstance(size, int) else size

    def to_yaml(self) -> str:
        """Every key with its value: a recipe that repeats the run."""
        plain = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
