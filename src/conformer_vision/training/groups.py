"""The groups of a training configuration.

Each group is a frozen dataclass that checks its own values. Field names are unique across the groups:
they are also the command-line flags and the keys of recipes, and the field docstrings are the help.
Nothing here imports torch, so `--help` stays fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from ..data.augment import AugmentConfig
from ..data.splits import Splitting
from ..errors import UserError, option
from ..spec import MIN_SIZE

InputSize = int | tuple[int, int]
Channels = Literal[1, 3]
BatchSize = int | Literal["auto"]
Fold = int | Literal["all"]
Branch = Literal["conv", "trans"]
Precision = Literal["auto", "32", "bf16-mixed", "16-mixed"]
LinearKernel = Literal["auto", "matmul", "convolution"]
GradCheckpointing = Literal["off", "cheap", "full"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Devices = int | Literal["auto"]
Sampling = Literal["shuffle", "balanced"]
DistillationType = Literal["soft", "hard"]
Loss = Literal["auto", "ce", "bce", "asl"]
Logger = Literal["tensorboard", "wandb", "mlflow"]
Progress = Literal["auto", "rich", "plain"]

_ENDLESS = 2**53
"""Every number must be smaller, which also rules out infinity and not-a-number."""


class Group:
    """A group of options; every choice (`Literal`) among them is checked on construction."""

    def __post_init__(self) -> None:
        for name, allowed in _choices(type(self)).items():
            value = getattr(self, name)
            for item in value if isinstance(value, list) else [value]:
                if item not in allowed:
                    known = ", ".join(str(choice) for choice in allowed if choice is not None)
                    raise UserError(f"{option(name)} {item!r}: must be one of {known}")
        self._check()

    def _check(self) -> None:
        """Check the other values.

        Raises:
            UserError: a value is out of range; the message names it and the range.
        """

    def _require(self, wanted: str, holds: Callable[[Any], bool], *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is None or value == "auto":
                continue
            if isinstance(value, str) or not (abs(value) < _ENDLESS and holds(value)):
                raise UserError(f"{option(name)} {value}: must be {wanted}")

    def _require_positive(self, *names: str) -> None:
        self._require("a number above 0", lambda value: value > 0, *names)

    def _require_not_negative(self, *names: str) -> None:
        self._require("0 or more", lambda value: value >= 0, *names)

    def _require_other(self, name: str, other: str) -> None:
        if getattr(self, name) and getattr(self, other) is None:
            name, other = option(name), option(other)
            raise UserError(f"{name} has no effect without {other}; set {other} too, or remove {name}")


def _choices(group: type) -> dict[str, tuple[Any, ...]]:
    """The allowed values of every field that is a `Literal`, an optional one, or a list of them."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in get_type_hints(group).items():
        values = _arguments(hint)
        if values and all(value is None or isinstance(value, str | int) for value in values):
            found[name] = tuple(values)
    return found


def _arguments(hint: Any) -> list[Any]:
    """The innermost arguments of a type: the choices of a `Literal`, types elsewhere, None for NoneType."""
    inner = [found for item in get_args(hint) for found in (_arguments(item) or [item])]
    return [None if item is type(None) else item for item in inner]


@dataclass(frozen=True)
class DataConfig(Group):
    """Data and batches."""

    data: str
    """Labelled images: a folder of class folders, an archive, a table (CSV, TSV, Parquet), a named dataset or
    a stream; "digits" needs no files. See docs/data.md. From Python also a `torch.utils.data.Dataset`."""
    data_dir: str | None = None
    """Folder that named datasets are read from and downloaded to."""
    val_fraction: float = 0.1
    """Share of every class held out for validation if the data has no validation split."""
    folds: int | None = None
    """Number of folds for cross-validation."""
    fold: Fold = 0
    """Fold to validate on, counted from 0; "all" trains a network for every fold, which are one model."""
    group: str | None = None
    """Column that says which images belong together (patient, video, site), or a regular expression that
    finds it in the image's path; a group is never split."""
    label_column: str | None = None
    """Column of labels of a table, if it has no name that is known. Several, with commas between them, are
    columns of 0 and 1, one per class of which an image may have several."""
    label_separator: str | None = None
    """What stands between several labels in a text, as in "cat|dog"; lists need none."""
    exclude: str | None = None
    """CSV file of images to leave out, as written by "conformer-vision check --fix"."""
    max_broken: float = 0.01
    """Largest share of images that may be unreadable; they are skipped and listed."""
    sampling: Sampling = "shuffle"
    """Draw every image once per epoch ("shuffle"), or all classes equally often ("balanced")."""
    aug_repeats: int = 1
    """Number of differently augmented copies of an image in an epoch of unchanged length (repeated
    augmentation)."""
    epoch_images: int | None = None
    """Images per epoch of a stream, whose length may be unknown."""
    batch_size: BatchSize = 64
    """Images per optimizer step, over all processes and accumulated passes; the last incomplete batch of an
    epoch is dropped. "auto" finds the largest size that fits in memory."""
    accumulate: int = 1
    """Forward and backward passes per optimizer step (gradient accumulation)."""
    workers: int = 2
    """Processes that load images; with 0 the training process loads them."""
    seed: int = 0
    """Random seed for the split, initial weights, image order and augmentation."""

    def _check(self) -> None:
        self._require("below 2**32", lambda value: value < 2**32, "seed")
        if self.fold == "all" and self.folds is None:
            raise UserError("fold all: give the number of folds too")
        if isinstance(self.fold, str) and self.fold != "all":
            raise UserError(f"{option('fold')} {self.fold!r}: must be a number from 0, or all")
        _ = self.splitting  # which checks its own values
        self._require("between 0 and 1", lambda value: 0 <= value <= 1, "max_broken")
        self._require_not_negative("workers")
        self._require_positive("aug_repeats", "epoch_images", "accumulate", "batch_size")
        if self.aug_repeats > 1 and self.sampling == "balanced":
            raise UserError("aug_repeats and sampling balanced both choose the images; keep one of them")

    @property
    def splitting(self) -> Splitting:
        """How to cut data that has no validation split, and which columns say so."""
        fold = 0 if isinstance(self.fold, str) else self.fold
        same = ("val_fraction", "seed", "folds", "group", "label_column", "label_separator")
        return Splitting(fold=fold, **{name: getattr(self, name) for name in same})


@dataclass(frozen=True)
class ModelConfig(Group):
    """Model and input."""

    model: str | None = None
    """Any timm model; "conformer-vision models" lists the Conformers. Defaults to the one with the best
    weights at hand: ImageNet's where they are cached or can be downloaded, else the bundled ones."""
    pretrained: bool | None = None
    """Start from the model's published weights, or "false" for training from scratch. Defaults to the weights
    where they are bundled, cached or can be downloaded."""
    checkpoint: str | None = None
    """File or URL of weights to start from."""
    reset_head: bool = False
    """Allow a checkpoint with other classes: the classifier heads start anew."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm.create_model, e.g. --model_kwargs.upsample bilinear."""
    freeze_blocks: int = 0
    """Freeze the stem and the first N blocks of a Conformer."""
    freeze_branch: Branch | None = None
    """Freeze one branch of a Conformer, but not its couplings and head."""
    input_size: InputSize | None = None
    """Input size in pixels: one number or [height, width]. Defaults to the model's own."""
    in_chans: Channels = 3
    """Input channels: 3, or 1 for grayscale."""
    crop_pct: float | None = None
    """Share of the resized image that validation's center crop keeps. Defaults to 1 for inputs up to 64 px
    and to the model's own above."""
    drop_path_rate: float | None = None
    """Stochastic depth of the last transformer block, rising linearly from 0. Defaults to the model's own."""
    conv_drop_path_rate: float | None = None
    """The same for the fusion bottlenecks of a Conformer."""

    def _check(self) -> None:
        self._require_not_negative("freeze_blocks")
        self._require("above 0 and at most 1", lambda value: 0 < value <= 1, "crop_pct")
        self._require(
            "at least 0 and below 1", lambda value: 0 <= value < 1, "drop_path_rate", "conv_drop_path_rate"
        )
        if min(self.image_size or (MIN_SIZE,)) < MIN_SIZE:
            raise UserError(f"input_size {self.input_size}: each edge must be {MIN_SIZE} pixels or more")
        if self.pretrained and self.checkpoint is not None:
            raise UserError("pretrained and checkpoint both set the initial weights; keep one of them")
        self._require_other("reset_head", "checkpoint")

    @property
    def name(self) -> str:
        """`model`, after `start.settle` has decided it."""
        assert self.model is not None
        return self.model

    @property
    def image_size(self) -> tuple[int, int] | None:
        """`input_size` as (height, width)."""
        size = self.input_size
        return (size, size) if isinstance(size, int) else size


@dataclass(frozen=True)
class OptimizerConfig(Group):
    """Optimizer."""

    optimizer: str = "adamw"
    """timm name of the optimizer, one of timm.optim.list_optimizers()."""
    lr: float | None = None
    """Peak learning rate; "conformer-vision lr-find" suggests one. Defaults to 1e-3 from scratch; from
    pretrained weights to 2e-3 for nano models and 5e-4 for larger ones, divided by unfreeze_lr_scale."""
    weight_decay: float = 0.05
    """Weight decay; norms, biases and the class token have none."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one before (layer-wise decay). Defaults to 1, none,
    from scratch; from pretrained weights to 0.9 for nano models and 0.75 for larger ones."""
    clip_grad: float | None = None
    """Largest gradient norm; longer gradients are scaled down."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights; the average is evaluated and saved."""
    ema_warmup: bool = False
    """Start with a smaller decay, (1 + step) / (10 + step)."""

    def _check(self) -> None:
        self._require_positive("lr", "clip_grad")
        self._require_not_negative("weight_decay")
        self._require("above 0 and at most 1", lambda value: 0 < value <= 1, "layer_decay")
        self._require("between 0 and 1, both excluded", lambda value: 0 < value < 1, "ema_decay")
        self._require_other("ema_warmup", "ema_decay")


@dataclass(frozen=True)
class ScheduleConfig(Group):
    """Schedule."""

    epochs: int = 30
    """Passes over the training images."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the learning rate is annealed to fit."""
    max_minutes: float | None = None
    """Stop after this many minutes, validation included; the learning rate is annealed to fit."""
    patience: int | None = None
    """Stop when top-1 has not improved for this many epochs (early stopping)."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up; fractions are allowed."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    freeze_share: float = 0.0
    """Share of the run, at its start, in which only the classifier heads learn; 1 for the whole run.
    Everything else stays as the initial weights have it, the statistics of BatchNorm included. Each stage has
    its own warm-up and cosine."""
    unfreeze_lr_scale: float = 0.1
    """Factor on the learning rate when all layers learn, after freeze_share."""
    progressive_from: int | None = None
    """Start with smaller images: pixels of the shorter side, which grows to input_size in four equal parts of
    the run (progressive resizing)."""

    def _check(self) -> None:
        self._require_positive("epochs", "max_steps", "max_minutes", "patience")
        self._require(f"{MIN_SIZE} or more", lambda value: value >= MIN_SIZE, "progressive_from")
        self._require_not_negative("warmup_epochs", "min_lr")
        self._require("from 0 to 1", lambda value: 0 <= value <= 1, "freeze_share")
        self._require("above 0 and at most 1", lambda value: 0 < value <= 1, "unfreeze_lr_scale")

    @property
    def last_stage_scale(self) -> float:
        """Factor on the learning rate of the stage in which all layers learn."""
        return self.unfreeze_lr_scale if self.freeze_share else 1.0


@dataclass(frozen=True)
class RegularizationConfig(Group):
    """Regularization and loss."""

    loss: Loss = "auto"
    """Cross-entropy ("ce") or, where an image has several labels, binary cross-entropy ("bce") or the
    asymmetric loss ("asl"); "auto" is ce or bce."""
    label_smoothing: float | None = None
    """Share of the target that is spread evenly over all classes; of several labels per image, share by which
    every target moves from 0 or 1 towards 1/2. Defaults to 0.1, and with several labels to 0."""
    mixup: float = 0.0
    """Alpha of MixUp; 0 is off. With cutmix too, every batch draws one of the two."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    class_weights: str = "none"
    """Weights of the classes in the training loss: "balanced", inversely proportional to their numbers of
    images, or a CSV file with the columns class and weight. With several labels per image it is the weight of
    the images with the class, those without it having 1. Validation loss is never weighted."""
    conv_loss_share: float = 0.5
    """Weight of the convolution head's loss; the transformer head has the rest."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of the training images."""

    def _check(self) -> None:
        self._require("at least 0 and below 1", lambda value: 0 <= value < 1, "label_smoothing")
        self._require("between 0 and 1", lambda value: 0 <= value <= 1, "conv_loss_share")
        self._require_not_negative("mixup", "cutmix")


@dataclass(frozen=True)
class DistillationConfig(Group):
    """Teacher."""

    teacher: str | None = None
    """A run, a file of weights, or a name with published weights in timm's registry: its answers are targets
    too (distillation). It must know the classes of the data, by name."""
    distillation_type: DistillationType = "soft"
    """The teacher's probabilities as targets, or the class that it answers ("hard")."""
    distillation_alpha: float = 0.5
    """Share of the loss against the teacher; the labels' loss has the rest."""
    distillation_tau: float = 1.0
    """Temperature of the teacher's and the student's probabilities."""
    unlabelled: str | None = None
    """Folder of images without labels, or any data whose labels are ignored, to train on as well: the
    teacher's answers are their targets."""

    def _check(self) -> None:
        self._require("above 0 and at most 1", lambda value: 0 < value <= 1, "distillation_alpha")
        self._require_positive("distillation_tau")
        self._require_other("unlabelled", "teacher")
        for name in ("distillation_type", "distillation_alpha", "distillation_tau"):
            if self.teacher is None and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f"{option(name)} has no effect without {option('teacher')}; remove it")
        if self.distillation_type == "hard" and self.distillation_tau != 1:
            raise UserError("distillation_tau has no effect on distillation_type hard; leave it out")


@dataclass(frozen=True)
class HardwareConfig(Group):
    """Hardware."""

    device: Device = "auto"
    """Where to compute; "auto" picks an accelerator if there is one."""
    precision: Precision = "auto"
    """float32, or mixed precision with bfloat16 or float16 (GPU only). "auto" measures a few steps first, and
    takes bfloat16 where it is 1.2 times as fast, else float32."""
    linear: LinearKernel = "auto"
    """How Linear layers compute: as matrix products, or as 1×1 convolutions, which are the same sums. "auto"
    takes the faster in float32 on the CPU, by a measurement, and matrix products elsewhere."""
    channels_last: bool = False
    """Use the channels-last memory format, which suits mixed precision."""
    compile: bool = False
    """Compile the network with torch.compile: minutes at the start, then faster steps."""
    grad_checkpointing: GradCheckpointing = "off"
    """Recompute activations in the backward pass to save memory: "cheap" all but convolutions, matrix
    products and attention, "full" whole blocks."""
    devices: Devices = "auto"
    """Processes on this machine, one per accelerator; "auto" follows torchrun or SLURM, else 1."""
    nodes: int = 1
    """Machines that train together."""
    sync_bn: bool = False
    """Synchronize BatchNorm across processes (GPU only)."""

    def _check(self) -> None:
        self._require_positive("nodes", "devices")


@dataclass(frozen=True)
class OutputConfig(Group):
    """Output."""

    output: str | None = None
    """Run folder to write. Defaults to runs/MODEL-DATE-TIME."""
    auto_resume: bool = False
    """Resume the run in the output folder if there is one, e.g. after a requeue."""
    save_top_k: int = 0
    """Also keep the weights of the k best epochs, in top/."""
    save_minutes: float = 15.0
    """Save the state this often within an epoch; it is always saved at the end of an epoch."""
    keep_state: bool = False
    """Keep the optimizer's state in last.ckpt after the end, so that the run can be given more epochs."""
    loggers: Logger | list[Logger] = field(default_factory=list)
    """Metric loggers besides metrics.csv: tensorboard, wandb or mlflow, or a list of them."""
    report: bool = True
    """Write report.html at the end."""
    progress: Progress = "auto"
    """Progress bar ("rich") or plain lines; "auto" shows the bar on a terminal."""

    def _check(self) -> None:
        self._require_not_negative("save_top_k")
        self._require_positive("save_minutes")
        self._require_other("auto_resume", "output")

    @property
    def logger_names(self) -> list[Logger]:
        """`loggers` as a list."""
        return self.loggers if isinstance(self.loggers, list) else [self.loggers]
