"""Distillation: a trained network teaches another (Hinton et al. 2015; DeiT, Touvron et al. 2021)."""

from __future__ import annotations

import time
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms.functional import rgb_to_grayscale

from ..data.base import match_classes
from ..errors import UserError, option
from ..runs import run_folder_of
from ..spec import ModelSpec, Preprocessing
from ..weights import load_model
from .config import TrainConfig
from .groups import DistillationConfig
from .losses import BranchLoss
from .start import find_missing
from .task import task_for

_SYNCHRONIZED = 3
"""First calls whose time is taken on a GPU too, which has to be waited for."""


class Teacher:
    """A trained network that answers for the images of a student, in evaluation mode and without gradients.

    It is no `nn.Module`, so that it goes into no checkpoint.

    Args:
        model: the teacher; its fused logits are its answers.
        spec: how its input is prepared, and its classes.
        student: how the student's images are prepared.
        classes: the student's, by name; the teacher may know more.
        name: what messages call the teacher.

    Raises:
        UserError: a class of the student's that the teacher does not know, or images that it cannot take.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        student: Preprocessing,
        classes: tuple[str, ...],
        name: str,
    ) -> None:
        _, places = match_classes(classes, spec.classes, origin=f"teacher {name}")
        channels = {len(student.mean), len(spec.mean)}
        if not channels <= {1, 3}:
            raise UserError(
                f"teacher {name}: takes {len(spec.mean)} channels and the images have {len(student.mean)}; "
                "only 1 and 3 can be turned into each other"
            )
        self.model = model.eval().requires_grad_(False)
        self.spec = spec
        self.student = student
        self.name = name
        self.seconds = 0.0
        """What the last call took; on a GPU one of the first."""
        self._places = None if places == list(range(len(spec.classes))) else torch.tensor(places)
        self._calls = 0

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of the student's classes for its images (B, C, H, W)."""
        timed = images.device.type == "cpu" or self._calls < _SYNCHRONIZED
        began = time.perf_counter()
        self.model.to(images.device)
        logits: Tensor = self.model(self.prepare(images)).float()
        if self._places is not None:
            logits = logits[:, self._places.to(logits.device, non_blocking=True)]
        if timed:
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
            self.seconds = time.perf_counter() - began
        self._calls += 1
        return logits

    def prepare(self, images: Tensor) -> Tensor:
        """Turn the student's images into the teacher's input: its channels, size, mean and deviation."""
        own, given = self.spec.preprocessing, self.student
        channels, *size = own.input_size
        if (own.mean, own.std) != (given.mean, given.std):
            images = images * _per_channel(given.std, images) + _per_channel(given.mean, images)
            if images.shape[1] != channels:
                images = rgb_to_grayscale(images) if channels == 1 else images.expand(-1, channels, -1, -1)
            images = (images - _per_channel(own.mean, images)) / _per_channel(own.std, images)
        if list(images.shape[2:]) != size:
            images = interpolate(images, size=size, mode="bicubic", antialias=True)
        return images

    def describe(self) -> str:
        """Return what a run prints of it."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters()) / 1e6
        _, height, width = self.spec.input_size
        return f"teacher: {self.name}, {parameters:.1f} M parameters, {height}x{width} pixels"


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    made = torch.tensor(values, dtype=images.dtype)
    return made.to(images.device, non_blocking=True)[:, None, None]  # made there, it would be waited for


def load_teacher(
    given: str, *, student: ModelSpec, output: str | None = None, download: bool = True
) -> Teacher:
    """Load a teacher.

    Args:
        given: a run folder, a file of weights, or a name with published weights in timm's registry.
        student: the network that it teaches.
        output: the run folder of the student, which cannot be its own teacher.
        download: whether published weights may be downloaded.

    Raises:
        UserError: nothing there, weights that are not at hand, other classes, or the run itself.
    """
    path = Path(given).expanduser()
    if path.exists():
        own = None if output is None else Path(output).resolve()
        folder = path if path.is_dir() else run_folder_of(path) or path.parent
        if own is not None and own in (folder.resolve(), *folder.resolve().parents):
            raise UserError(f"{option('teacher')} {given} is the run itself; give another run")
        given = str(path)
    elif timm.is_model(given):
        cfg = timm.get_pretrained_cfg(given)
        if cfg is not None and cfg.has_weights and (missing := find_missing(given, download=download)):
            raise UserError(f"{option('teacher')} {given}: {missing}; give a run, or a name that is cached")
    try:
        model, spec = load_model(given)
    except UserError as error:
        raise UserError(f"{option('teacher')}: {error}") from error
    if spec.multilabel != student.multilabel:
        kinds = ("one label per image", "several labels per image")
        raise UserError(
            f"{option('teacher')} {given} answers with {kinds[spec.multilabel]} and the data has "
            f"{kinds[student.multilabel]}; give another teacher"
        )
    return Teacher(model, spec, student=student.preprocessing, classes=student.classes, name=given)


def build_distillation(
    config: TrainConfig, student: ModelSpec, *, download: bool = True
) -> Distillation | None:
    """Make the distillation that a run asks for; None without a teacher.

    Raises:
        UserError: as `load_teacher`.
    """
    options = config.distillation
    if options.teacher is None:
        return None
    teacher = load_teacher(options.teacher, student=student, output=config.output.output, download=download)
    return Distillation(teacher, options, conv_share=config.regularization.conv_loss_share)


class Distillation:
    """The loss of a student with a teacher, on each of its heads.

    An image with a label has the loss ``(1 - alpha) * label + alpha * teacher``, one without a label the
    second part alone. Both are summed over the images of the batch and divided by their number.

    Args:
        teacher: answers for the images that the student sees, after augmentation and mixing.
        config: kind of the loss, its share and temperature.
        conv_share: as in `BranchLoss`.
    """

    def __init__(self, teacher: Teacher, config: DistillationConfig, *, conv_share: float = 0.5) -> None:
        self.teacher = teacher
        self.alpha = config.distillation_alpha
        self._loss = BranchLoss(
            task_for(teacher.spec.multilabel).answer_loss(
                hard=config.distillation_type == "hard", tau=config.distillation_tau
            ),
            conv_share=conv_share,
        )

    def __call__(
        self,
        images: Tensor,
        output: Tensor | tuple[Tensor, ...],
        target: Tensor,
        *,
        labelled: Tensor,
        label_loss: nn.Module,
    ) -> Tensor:
        """Return the loss of a batch.

        Args:
            images: (B, C, H, W) that the student saw.
            output: its logits (B, K), or those of its heads.
            target: labels (B,) or targets (B, K).
            labelled: (B,) bool, on the CPU unless the device may be waited for; the targets of the others are
                not looked at.
            label_loss: of logits, or of a tuple of them, and targets.
        """
        loss: Tensor = self.alpha * self._loss(output, self.teacher(images))
        rows = labelled.nonzero().flatten()
        if len(rows) and self.alpha < 1:
            if len(rows) < len(images):
                rows = rows.to(images.device, non_blocking=True)
                target = target[rows]
                output = output[rows] if isinstance(output, Tensor) else tuple(each[rows] for each in output)
            loss = loss + (1 - self.alpha) * len(rows) / len(images) * label_loss(output, target)
        return loss
