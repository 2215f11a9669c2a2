"""Export a trained model to a file that is checked against it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from conformer_vision.data.opening import describe
from conformer_vision.errors import UserError, option, reason_of
from conformer_vision.files import atomic_path
from conformer_vision.inference.conversion.compare import Difference, Logits, compare
from conformer_vision.inference.conversion.formats import CALIBRATION_IMAGES, Format, Precision
from conformer_vision.inference.conversion.images import (
    calibration_of,
    find_images,
    prepared,
    sample_photos,
)
from conformer_vision.inference.labelled import Data
from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runs import ModelSource, check_output, find_model
from conformer_vision.weights import load_model

from .evaluated import add_results
from .formats import FORMATS, find_format, write_network
from .hf import CARD, check_folder, check_repository, push, replace_folder

if TYPE_CHECKING:
    from conformer_vision.inference.evaluation import Evaluation, MultilabelEvaluation

_CHECKED = 16
"""Number of images that a file is checked with."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how good it is."""

    path: Path
    """The file or folder."""
    format: str
    precision: Precision
    size: int
    """Bytes of all its files."""
    difference: Difference
    """From the model, on real images."""
    kept_float: tuple[str, ...]
    """Parts of the network that int8 leaves in float, because they change the answers most."""
    accuracy: tuple[Evaluation | MultilabelEvaluation, Evaluation | MultilabelEvaluation] | None
    """Of the model and of the file, on the validation images; for int8 alone."""


def export(
    model: str | Path,
    *,
    format: str,  # noqa: A002 - the option's name
    precision: Precision = "fp32",
    output: str | Path | None = None,
    data: Data | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    arch: str | None = None,
    push_to_hub: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a trained model in another format, and check the file against the model.

    Args:
        model: A run folder, weights file, checkpoint, or the name of published weights.
        format: ``folded``, ``onnx``, ``openvino``, ``torch-export`` or ``hf``.
        precision: ``fp32``, ``fp16``, ``bf16`` or ``int8``; not every format has all of them.
        output: The file. Defaults to ``model.SUFFIX`` or ``model-PRECISION.SUFFIX`` in the run folder, and
            for published weights to ``NAME.SUFFIX`` or ``NAME-PRECISION.SUFFIX`` in the working directory.
            For ``hf`` the folder, by default ``model-hf`` or ``NAME-hf``.
        data: Labelled images, as training takes them; defaults to those in the run's ``config.yaml``. int8 is
            calibrated on the training images and evaluated on the validation images.
        calibration_images: Number of images that int8 is calibrated on.
        arch: timm's name of a checkpoint's architecture, where its content does not tell; see `load`.
        push_to_hub: For ``hf``: the repository on the Hugging Face Hub (``user/name``) to send the folder to.
        say: Receives each step as one line.

    Raises:
        UserError: An unknown format or precision, a missing library, no trained model, int8 without images, a
            file that cannot be written, or one whose answers are not the model's. Nothing is left behind, and
            a file that was at ``output`` stays. Or the Hub cannot be reached; the folder is then there.
    """
    entry = find_format(format)
    entry.check(precision, among=FORMATS.values())
    if push_to_hub is not None:
        check_repository(push_to_hub, entry)
    if calibration_images < 1:
        raise UserError(f"calibration_images {calibration_images}: must be 1 or more")
    source = find_model(model, arch=arch)
    target = _target(source, entry, precision, folder=Path(model)) if output is None else Path(output)
    _check_target(target, entry, source)
    network, spec = load_model(source)
    calibrating = f"give {option('data')}" if precision == "int8" else None
    images = find_images(source, data, spec, calibrating=calibrating)
    checked = sample_photos(spec)
    calibration: list[Tensor] = []
    if images is not None:
        checked = torch.cat(list(prepared(images.open(spec), spec, count=_CHECKED)) or [checked])
        if precision == "int8":
            calibration = calibration_of(images, spec, count=calibration_images)
            say(f"calibrating on {sum(map(len, calibration))} training images of {describe(images.data)}")
    with _first_beside(target) as written:
        kept = write_network(
            network, spec, written, format=format, precision=precision, calibration=calibration
        )
        say("checking the file")
        temperature = spec.temperature if entry.folder else 1.0
        difference = compare(
            open_written(written, entry), network, spec, checked, precision=precision, temperature=temperature
        )
        accuracy = None
        if precision == "int8" and images is not None:
            say("evaluating the model and the file on the validation images")
            from conformer_vision.inference.evaluation import evaluate_images  # needs the extra `train`

            validation = images.open(spec)
            before, after = (
                evaluate_images(TrainedModel(file), validation, batch_size=64, workers=0)
                for file in (source, written)
            )
            accuracy = before, after
        if entry.folder:
            add_results(written / CARD, source, model=spec.model)
            replace_folder(written, target)
        else:
            _move(written, target)
    if push_to_hub is not None:
        say(f"sent to {push(target, push_to_hub)}")
    size = sum(path.stat().st_size for path in entry.files(target))
    return Exported(target, format, precision, size, difference, kept, accuracy)


def open_written(path: Path, entry: Format) -> Logits:
    """Open a file that was just written: images (B, C, H, W) to logits per head."""
    if entry.runtime is not None:
        return open_runtime(ModelSource(entry.runtime, path), device="cpu")
    logits: Logits = import_module(entry.module).read(path)
    return logits


def _target(source: ModelSource, entry: Format, precision: Precision, *, folder: Path) -> Path:
    name = source.path.name
    named = source.kind in ("published", "hf")
    stem = name if named else "model" if folder.is_dir() else source.path.stem
    if entry.runtime == "weights" or entry.folder:  # "model" is what the weights or another file are called
        stem += f"-{entry.name}"
    if precision != "fp32":
        stem += f"-{precision}"
    return source.path.parent / f"{stem}{entry.suffix}"


def _check_target(target: Path, entry: Format, source: ModelSource) -> None:
    if not entry.folder and target.suffix.lower() != entry.suffix:
        raise UserError(f"output {target}: files of the format {entry.name} end in {entry.suffix}")
    if not target.parent.is_dir():
        raise UserError(f"output {target}: the folder {target.parent} does not exist; create it first")
    if entry.folder:
        check_folder(target)
    if (target.is_dir() and not entry.folder) or not os.access(target.parent, os.W_OK):
        raise UserError(f"output {target} cannot be written; give another place with {option('output')}")
    if target.exists() and source.path.exists() and target.samefile(source.path):
        raise UserError(f"output {target} is the model itself; give another name with {option('output')}")
    check_output(target, "output")


@contextmanager
def _first_beside(target: Path) -> Iterator[Path]:
    """Yield where to write the target until it is checked; errors name the target itself."""
    folder = ""
    try:
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
            yield Path(folder, target.name)
    except UserError as error:
        raise UserError(str(error).replace(folder or "\0", str(target.parent))) from error
    except OSError as error:
        raise UserError(f"cannot write {target}: {reason_of(error)}") from error


def _move(written: Path, target: Path) -> None:
    """Move the file to its place, after the second file beside it, such as OpenVINO's weights."""
    for path in sorted(written.parent.iterdir(), key=lambda path: path.name == written.name):
        with atomic_path(target.with_name(path.name)) as temporary:
            os.replace(path, temporary)
