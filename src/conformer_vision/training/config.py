"""What a training run is made of: one typed, frozen dataclass that flags and YAML recipes both fill.

Nothing here imports torch: the command line reads this file for ``--help``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import yaml

from ..data.augment import AugmentConfig
from ..data.splits import Splitting
from ..errors import UserError

InputSize = int | tuple[int, int]
Channels = Literal[1, 3]
BatchSize = int | Literal["auto"]
Branch = Literal["conv", "trans"]
Precision = Literal["32", "bf16-mixed", "16-mixed"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Devices = int | Literal["auto"]
Strategy = Literal["auto", "ddp", "fsdp"]
Sampling = Literal["shuffle", "balanced"]
Logger = Literal["tensorboard", "wandb", "mlflow"]
Progress = Literal["auto", "rich", "plain"]

_CHOICES = {
    "in_chans": Channels,
    "freeze_branch": Branch | None,
    "precision": Precision,
    "device": Device,
    "strategy": Strategy,
    "sampling": Sampling,
    "progress": Progress,
}
_ENDLESS = 2**53
"""No number of a configuration reaches this, infinity and not-a-number included."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run goes.

    Raises:
        UserError: a value that cannot be; the line names it and says what can.
    """

    data: str
    """Labelled images: a folder of class folders, an archive of them, a table (CSV, parquet), ``digits``,
    or a set by name or in shards; docs/data.md has them all."""
    output: str | None = None
    """Run folder to write; ``runs/MODEL-DATE-TIME`` where not given."""
    auto_resume: bool = False
    """Continue the run in ``output`` where there is one, as after a requeue; else begin it."""
    data_dir: str | None = None
    """Folder where sets given by name lie, or are downloaded to."""
    val_fraction: float = 0.1
    """Share of every class held out for validation where the data has no split of its own."""
    folds: int | None = None
    """Cut the data into so many folds of equal shares of every class, for cross-validation."""
    fold: int = 0
    """Which of the ``folds`` to validate on, from 0."""
    exclude: str | None = None
    """List of images to leave out, as ``conformer-vision check --fix`` writes it."""
    max_broken: float = 0.01
    """Largest share of the images that may turn out to be broken; they are skipped and named."""
    sampling: Sampling = "shuffle"
    """``shuffle``: every image once an epoch; ``balanced``: all classes equally often."""
    aug_repeats: int = 1
    """Times that an epoch shows an image, each augmented anew; its length stays (repeated augmentation)."""
    epoch_images: int | None = None
    """Images that make an epoch of streamed data, which may not know its length."""
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
    freeze_blocks: int = 0
    """Keep the stem and so many of the first blocks of a Conformer as they are."""
    freeze_branch: Branch | None = None
    """Keep one branch of a Conformer as it is: ``conv`` or ``trans``, its couplings and head not."""
    input_size: InputSize | None = None
    """Pixels of the square input, or ``[height, width]``; the model's own where not given."""
    progressive_from: int | None = None
    """Train at smaller images first: pixels of the shorter side at the start, from which the input grows to
    ``input_size`` in four equal parts of the run (progressive resizing)."""
    in_chans: Channels = 3
    """Channels of the input: 3, or 1 for images turned to grey."""
    crop_pct: float | None = None
    """Share of the resized image's edge that the central crop of validation keeps; where not given 1 for
    inputs up to 64 px, else the model's own."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of the images and the augmentation."""
    epochs: int = 30
    """Passes over the training images."""
    max_steps: int | None = None
    """End after so many optimiser steps, with the learning-rate schedule fitted to them."""
    max_minutes: float | None = None
    """End after so many minutes by the clock, validation included, with the schedule fitted to them."""
    patience: int | None = None
    """End when top-1 has not risen for so many epochs (early stopping)."""
    batch_size: BatchSize = 64
    """Images per optimiser step, over all processes and ``accumulate``; the last, incomplete one of an
    epoch is left out. ``auto`` finds the largest that fits into memory."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step, each over its part of the batch."""
    workers: int = 2
    """Processes that read and augment images; 0 does so in the training process."""
    optimizer: str = "adamw"
    """Optimiser by its timm name, as ``timm.optim.list_optimizers()`` lists them."""
    lr: float = 1e-3
    """Learning rate after the warm-up."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and the class token have none."""
    layer_decay: float | None = None
    """Factor of the learning rate from each layer to the one before it (layer-wise decay)."""
    warmup_epochs: float = 1.0
    """Epochs (or a part of one) in which the learning rate rises linearly from 0."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    clip_grad: float | None = None
    """Largest norm of the gradient of one step; not limited where not given."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which then is what is evaluated and kept."""
    ema_warmup: bool = False
    """Begin with a lower decay, (1 + step) / (10 + step), so that the average forgets the first steps."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    conv_loss_share: float = 0.5
    """Share of the convolution head's loss in a Conformer's; the transformer head has the rest."""
    mutual_distillation: float = 0.0
    """Weight of a loss that draws the two heads of a Conformer to each other's predictions."""
    mixup: float = 0.0
    """Alpha of MixUp; 0 turns it off. With ``cutmix`` too, every batch draws one of them."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 turns it off."""
    drop_path_rate: float | None = None
    """Stochastic depth of the last block (the first has none); the model's own where not given."""
    conv_drop_path_rate: float | None = None
    """Stochastic depth of the fusion bottlenecks of a Conformer; the model's own where not given."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images."""
    precision: Precision = "32"
    """Arithmetic: float32, or bfloat16 or float16 (GPU only) where autocast deems it safe."""
    channels_last: bool = False
    """Keep images and convolutions in memory with their channels last, which suits bfloat16 and float16."""
    compile: bool = False
    """Compile the training step's network with torch.compile: minutes at the start, faster steps."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    device: Device = "auto"
    """Where to compute; ``auto`` takes an accelerator where there is one."""
    devices: Devices = "auto"
    """Processes on this machine, one per accelerator: ``auto`` is what torchrun or SLURM say, else 1."""
    nodes: int = 1
    """Machines that train together."""
    strategy: Strategy = "auto"
    """``ddp``: every process holds all weights; ``fsdp``: they are shared out; ``auto``: ddp for several."""
    sync_bn: bool = False
    """BatchNorm over the images of all processes (GPU only); otherwise each over its own."""
    save_top_k: int = 0
    """Also keep the weights of the k best epochs, in ``top/``."""
    save_minutes: float = 15.0
    """Minutes after which the state is saved within an epoch; it always is at its end."""
    loggers: list[Logger] = field(default_factory=list)
    """Where metrics go besides ``metrics.csv``: tensorboard, wandb, mlflow."""
    report: bool = True
    """Write ``report.html`` at the end."""
    progress: Progress = "auto"
    """Progress bar or plain lines; ``auto`` takes the bar on a terminal."""

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, choices in _CHOICES.items():
            allowed = _allowed(choices)
            if getattr(self, name) not in allowed:
                known = ", ".join(str(value) for value in allowed if value is not None)
                raise UserError(f"{name} {getattr(self, name)!r}: must be one of {known}")
        for logger in self.loggers:
            if logger not in get_args(Logger):
                raise UserError(f"loggers {logger!r}: must be among {', '.join(get_args(Logger))}")
        if min(self.image_size or (1,)) < 1:
            raise UserError(f"input_size {self.input_size}: must be 1 pixel or more")
        self._check_together()

    def _check_numbers(self) -> None:
        positive = (
            *(
                "epochs",
                "max_steps",
                "max_minutes",
                "patience",
                "accumulate",
                "lr",
                "clip_grad",
                "save_minutes",
            ),
            *("aug_repeats", "epoch_images", "nodes", "progressive_from"),
        )
        not_negative = (
            *("workers", "seed", "weight_decay", "warmup_epochs", "min_lr", "mixup", "cutmix", "max_broken"),
            *("freeze_blocks", "fold", "save_top_k", "mutual_distillation"),
        )
        for name in positive:
            self._check(name, lambda value: value > 0, "a number above 0")
        for name in not_negative:
            self._check(name, lambda value: value >= 0, "0 or more")
        for name in ("batch_size", "devices"):
            if getattr(self, name) != "auto":
                if isinstance(getattr(self, name), str):
                    raise UserError(f"{name} {getattr(self, name)!r}: must be a whole number or auto")
                self._check(name, lambda value: value > 0, "a number above 0, or auto")
        for name in ("label_smoothing", "drop_path_rate", "conv_drop_path_rate"):
            self._check(name, lambda value: 0 <= value < 1, "at least 0 and below 1")
        for name in ("val_fraction", "ema_decay"):
            self._check(name, lambda value: 0 < value < 1, "between 0 and 1, both excluded")
        for name in ("crop_pct", "layer_decay"):
            self._check(name, lambda value: 0 < value <= 1, "above 0 and at most 1")
        self._check("conv_loss_share", lambda value: 0 <= value <= 1, "between 0 and 1")
        self._check("max_broken", lambda value: value <= 1, "at most 1")
        self._check("folds", lambda value: value >= 2, "2 or more")
        self._check("seed", lambda value: value < 2**32, "below 2**32")

    @property
    def splitting(self) -> Splitting:
        """How to cut data that has no split of its own."""
        return Splitting(self.val_fraction, self.seed, self.folds, self.fold)

    def _check_together(self) -> None:
        """Values that are possible alone, and options that would have no effect."""
        if self.min_lr > self.lr:
            raise UserError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}; give a lower min_lr")
        if self.pretrained and self.checkpoint is not None:
            raise UserError("pretrained and checkpoint both give initial weights; keep one of them")
        if self.fold >= (self.folds or 1):
            raise UserError(f"fold {self.fold}: must be below folds, {self.folds or 'which is not given'}")
        if self.aug_repeats > 1 and self.sampling == "balanced":
            raise UserError("aug_repeats and sampling balanced both choose the images; keep one of them")
        if self.strategy == "fsdp" and self.ema_decay is not None:
            raise UserError("ema_decay keeps a whole second model, which strategy fsdp shares out; use ddp")
        needs = (
            ("reset_head", self.checkpoint is not None, "checkpoint"),
            ("ema_warmup", self.ema_decay is not None, "ema_decay"),
            ("auto_resume", self.output is not None, "output"),
        )
        for name, there, other in needs:
            if getattr(self, name) and not there:
                raise UserError(f"{name} has no effect without {other}; give {other} too, or leave it out")

    def _check(self, name: str, holds: Any, wanted: str) -> None:
        value = getattr(self, name)
        if value is not None and not (abs(value) < _ENDLESS and holds(value)):
            raise UserError(f"{name} {value}: must be {wanted}")

    @property
    def images_per_step(self) -> int:
        """``batch_size`` as a number.

        Raises:
            UserError: it is to be found yet.
        """
        if isinstance(self.batch_size, str):
            raise UserError("batch_size auto has not been decided yet")
        return self.batch_size

    @property
    def image_size(self) -> tuple[int, int] | None:
        """``input_size`` as (height, width)."""
        size = self.input_size
        return (size, size) if isinstance(size, int) else size

    def to_yaml(self) -> str:
        """Every key with its value: a recipe that repeats the run."""
        plain = json.loads(json.dumps(asdict(self)))  # tuples become lists
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _allowed(choices: Any) -> tuple[Any, ...]:
    """The values of a Literal, or of one joined with None."""
    values: list[Any] = []
    for item in get_args(choices):
        values.extend(get_args(item) or ([None] if item is type(None) else [item]))
    return tuple(values)
