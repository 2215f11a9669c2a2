"""What a training run is made of: one typed, frozen dataclass that flags and YAML recipes both fill.

Nothing here imports torch: the command line reads this file for ``--help``.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data.augment import AugmentConfig
from ..errors import UserError

InputSize = int | tuple[int, int]


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
    in_chans: Literal[1, 3] = 3
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
    precision: Literal["32", "bf16-mixed"] = "32"
    """Arithmetic: float32, or bfloat16 where autocast deems it safe."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute; ``auto`` takes an accelerator where there is one."""
    progress: Literal["auto", "rich", "plain"] = "auto"
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
        if value is not None and not (math.isfinite(value) and holds(value)):
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


def field_names() -> dict[str, tuple[str, ...]]:
    """Every key of a recipe: the plain ones to nothing, `augment` to the keys below it."""
    below = {"augment": tuple(item.name for item in fields(AugmentConfig))}
    return {item.name: below.get(item.name, ()) for item in fields(TrainConfig)}


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe.

    Raises:
        UserError: no such file, not YAML, or an unknown key, for which the nearest is suggested.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"the recipe {path} has to be keys with values, as 'epochs: 30'")
    known = field_names()
    for key, value in values.items():
        _check_key(key, known, path)
        if key == "augment":
            if not isinstance(value, dict):
                raise UserError(f"the recipe {path}: augment has to be keys with values, as 'hflip: 0.5'")
            for name in value:
                _check_key(name, known["augment"], path)
    return values


def read_config(path: Path) -> TrainConfig:
    """The configuration that a run folder keeps.

    Raises:
        UserError: as `read_recipe`, or a value that cannot be.
    """
    values = read_recipe(path)
    if isinstance(values.get("input_size"), list):
        values["input_size"] = tuple(values["input_size"])
    augment: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.get("augment", {}).items()
    }
    try:
        return TrainConfig(**values | {"augment": AugmentConfig(**augment)})
    except TypeError as error:
        raise UserError(f"{path} is not the configuration of a run: {error}") from error


def _check_key(key: object, known: Collection[str], path: Path) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"the recipe {path} has an unknown key {key!r}{hint}")
