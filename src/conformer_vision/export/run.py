"""From a run to a checked file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from conformer_vision.data import ImageSource
from conformer_vision.data.streams.base import ImageStream
from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path
from conformer_vision.inference.evaluation import Evaluation, RunData, data_of_run, evaluate, open_labelled
from conformer_vision.runs import find_model
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model

from .compare import Difference, compare
from .formats import Format, Precision, check_supported, suffix
from .images import prepared, sample_photos
from .write import write_network

_CHECKED = 16
"""Images that a file is checked with."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how good it is."""

    path: Path
    format: Format
    precision: Precision
    difference: Difference
    """From the model, on real images."""
    kept_float: tuple[str, ...]
    """Parts of the network that int8 leaves in float, because they change the answers most."""
    accuracy: tuple[Evaluation, Evaluation] | None
    """On the evaluation split: of the model and of the file; for int8 alone."""


def export(
    run: str | Path,
    *,
    format: Format,  # noqa: A002 - the option's name
    precision: Precision = "fp32",
    output: str | Path | None = None,
    data: str | None = None,
    calibration_images: int = 128,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Writes a trained model in another format, and checks the file against the model.

    Args:
        run: run folder, .safetensors file, or the name of published weights, as `open_network` takes them.
        format: of the file.
        precision: of its arithmetic.
        output: the file; ``model.SUFFIX`` in the run folder, or ``model-PRECISION.SUFFIX``, where not given;
            for published weights ``NAME.SUFFIX`` or ``NAME-PRECISION.SUFFIX`` in the working directory.
        data: labelled images, as training takes them; where not given, those of the run's ``config.yaml``.
            int8 is calibrated on the training part and measured on the validation part.
        calibration_images: for int8: how many.
        say: is told each step, in one line.

    Raises:
        UserError: a format or precision that there is not, a missing library, no trained model, int8 without
            images, a file that cannot be written, or one whose answers are not the model's. Nothing is left
            behind, and what lay at ``output`` stays.
    """
    check_supported(format, precision)
    if calibration_images < 1:
        raise UserError(f"calibration_images {calibration_images}: must be 1 or more")
    found = find_model(run)
    source = found.path
    target = _target(Path(run), source, format, precision) if output is None else Path(output)
    _check_target(target, format, source)
    model, spec = load_model(found)
    images = _find_images(source, data, spec, needed=precision == "int8")
    checked = sample_photos(spec)
    calibration: list[Tensor] = []
    if images is not None:
        checked = torch.cat(list(prepared(images.part("val"), spec, count=_CHECKED)) or [checked])
        if precision == "int8":
            calibration = list(prepared(images.part("train"), spec, count=calibration_images))
            say(f"calibrating on {sum(map(len, calibration))} training images of {images.data}")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as temporary:
        written = Path(temporary, target.name)
        kept = write_network(
            model, spec, written, format=format, precision=precision, calibration=calibration
        )
        say("checking the file")
        difference = compare(written, model, checked, precision=precision)
        accuracy = None
        if precision == "int8" and images is not None:
            say("measuring the model and the file on the validation images")
            before, after = (images.evaluate(file) for file in (source, written))
            accuracy = before, after
        _move(written, target)
    return Exported(target, format, precision, difference, kept, accuracy)


@dataclass(frozen=True)
class _Images:
    """Labelled images and how they are split."""

    data: str
    run: RunData
    classes: tuple[str, ...]

    def part(self, split: Literal["train", "val"]) -> ImageSource | ImageStream:
        return open_labelled(
            self.data, split, self.run.splitting, classes=self.classes, data_dir=self.run.data_dir
        )

    def evaluate(self, file: Path) -> Evaluation:
        cut = self.run.splitting
        return evaluate(
            file,
            self.data,
            val_fraction=cut.val_fraction,
            seed=cut.seed,
            folds=cut.folds,
            fold=cut.fold,
            data_dir=self.run.data_dir,
        )


def _find_images(source: Path, data: str | None, spec: ModelSpec, *, needed: bool) -> _Images | None:
    """The images that are given, else those of the run, where they can be opened."""
    run = data_of_run(source)
    found = run.data if data is None else data
    hint = "precision int8 needs images to calibrate with"
    if found is None:
        if needed:
            raise UserError(f"{hint}, and no config.yaml beside {source} names any; give them with --data")
        return None
    images = _Images(found, run, spec.classes)
    try:
        images.part("val")
        if needed:
            images.part("train")
    except UserError as error:
        if data is None and needed:
            raise UserError(
                f"{hint}, and those of the run cannot be opened ({error}); give --data"
            ) from error
        if data is not None:
            raise
        return None
    return images


def _target(run: Path, source: Path, format: Format, precision: Precision) -> Path:  # noqa: A002
    stem = "model" if run.is_dir() else source.name.removesuffix(".safetensors")
    if format == "folded":
        stem += "-folded"
    if precision != "fp32":
        stem += f"-{precision}"
    return source.parent / f"{stem}{suffix(format)}"


def _check_target(target: Path, format: Format, source: Path) -> None:  # noqa: A002
    if target.suffix.lower() != suffix(format):
        raise UserError(f"output {target}: files of the format {format} end in {suffix(format)}")
    if not target.parent.is_dir():
        raise UserError(f"output {target}: the folder {target.parent} does not exist; make it first")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise UserError(f"output {target} cannot be written; give another place with --output")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"output {target} is the model itself; give another name with --output")


def _move(written: Path, target: Path) -> None:
    """Put the file in its place, and before it what lies beside it, as OpenVINO's weights."""
    try:
        for path in sorted(written.parent.iterdir(), key=lambda path: path.name == written.name):
            with atomic_path(target.with_name(path.name)) as temporary:
                os.replace(path, temporary)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
