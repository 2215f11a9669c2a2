"""The run folder: its file names, its configuration, and what a path to a model is.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from conformer_vision.errors import UserError, option, reason_of, refuse_url, resuming, words

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.txt"
BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"
ENSEMBLE_WEIGHTS = "ensemble.safetensors"
"""The networks of all folds, in the folder of a run that trained them all."""
OUT_OF_FOLD = "out_of_fold.parquet"
"""The answers to every image of the network that was not trained on it, in such a folder."""
TOP_FOLDER = "top"
"""Holds the weights of the best epochs, where several are kept."""
LAST_CHECKPOINT = "last.ckpt"
METRICS_FILE = "metrics.csv"
RESULTS_FILE = "results.json"
CURVES_FILE = "curves.png"
REPORT_FILE = "report.html"
BROKEN_FILE = "broken_images.txt"
FOLDS_FILE = "folds.csv"
"""The fold of each group, where groups are dealt to folds."""
NOT_FINITE_FILE = "not_finite.json"
HF_CONFIG = "config.json"
HF_WEIGHTS = "model.safetensors"
"""The two files that make a folder one of the Hugging Face Hub."""
_OWN_FILES = {
    *(CONFIG_FILE, CLASSES_FILE, BEST_WEIGHTS, LAST_WEIGHTS, LAST_CHECKPOINT, METRICS_FILE),
    *(ENSEMBLE_WEIGHTS, OUT_OF_FOLD),
    *(CURVES_FILE, REPORT_FILE, RESULTS_FILE, BROKEN_FILE, NOT_FINITE_FILE, FOLDS_FILE),
}
RUN_MARKER = "# A run of conformer-vision"
"""Begins the first line of a run's ``config.yaml``; other programs' files of that name do not have it."""

Kind = Literal["weights", "checkpoint", "onnx", "openvino", "hf", "published"]
_KINDS: dict[str, Kind] = {
    ".safetensors": "weights",
    **dict.fromkeys((".ckpt", ".pth", ".pt", ".bin", ".tar"), "checkpoint"),
    ".onnx": "onnx",
    ".xml": "openvino",
}
_NOT_OPENED = {".pt2": "torch.export.load", ".torchscript": "torch.jit.load"}
_MOST_VALUES = 10_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    kind: Kind
    path: Path
    """The file, the folder of kind ``hf``, or the name of published weights."""
    arch: str | None = None
    """Architecture of a checkpoint that does not say it, by its name in timm's registry."""

    @property
    def exported(self) -> bool:
        """Whether it is an exported file, whose inside cannot be looked at."""
        return self.kind in ("onnx", "openvino")


def find_model(path_or_name: str | Path, *, arch: str | None = None) -> ModelSource:
    """Decide what a path to a model, or the name of one, means.

    A run folder means its best weights, and that of all folds their ensemble; where training ended before
    the first validation there are none, and the last weights are taken with a logged warning. An existing
    path wins over a published name.

    Args:
        path_or_name: The path, or the name.
        arch: See `ModelSource`.

    Raises:
        UserError: Nothing there, a folder without weights, or a file that is not opened.
    """
    source = _find(path_or_name)
    if arch is None:
        return source
    if source.kind not in ("weights", "checkpoint"):
        raise UserError(
            f"{option('arch', arch)} is for checkpoints of other programs; leave it out for {source.path}"
        )
    return replace(source, arch=arch)


def _find(path_or_name: str | Path) -> ModelSource:
    path = Path(path_or_name)
    if os.path.isdir(path):  # of os.path, since pathlib raises errors for names that are too long
        if (weights := find_weights(path)) is None:
            if is_hf_folder(path):
                return ModelSource("hf", path)
            if fold_folders(path):
                continuing = words(f"'conformer-vision train {resuming(path)}'", resuming(path))
                raise UserError(f"not all folds of {path} are trained; go on with {continuing}")
            raise UserError(f"{path} holds neither {BEST_WEIGHTS} nor {LAST_WEIGHTS}; is it a run folder?")
        if weights.name == LAST_WEIGHTS:
            _log.warning("%s has no %s (training ended early); using %s", path, BEST_WEIGHTS, LAST_WEIGHTS)
        return ModelSource("weights", weights)
    suffix = path.suffix.lower()
    if os.path.exists(path):
        if suffix in _NOT_OPENED:
            raise UserError(
                f"{path} is not opened here, because loading it can run code: load it with"
                f" {_NOT_OPENED[suffix]} in a program of your own, or export the model to onnx or openvino"
            )
        if suffix not in _KINDS:
            raise UserError(f"{path} is no model; give a run folder or a file ending in {', '.join(_KINDS)}")
        return ModelSource(_KINDS[suffix], path)
    if _is_published(path_or_name):
        return ModelSource("published", path)
    refuse_url(path_or_name)
    raise UserError(f"{path} does not exist; give a run folder, a weights file or the name of a timm model")


def is_model(path_or_name: str | Path) -> bool:
    """Tell whether a path or name means a model, by its suffix where it does not exist."""
    path = Path(path_or_name)
    if os.path.isdir(path):
        return find_weights(path) is not None or bool(fold_folders(path)) or is_hf_folder(path)
    if path.suffix.lower() in (*_KINDS, *_NOT_OPENED):
        return True
    return not os.path.exists(path) and _is_published(path_or_name)


def find_weights(folder: Path) -> Path | None:
    """Return the best weights of a run folder, or its folds' ensemble, else its last weights, else None."""
    names = (BEST_WEIGHTS, ENSEMBLE_WEIGHTS, LAST_WEIGHTS)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def fold_name(fold: int) -> str:
    """Return the name of the run folder of a fold, in the folder of a run that trains them all."""
    return f"fold-{fold}"


def fold_folders(folder: str | Path) -> list[Path]:
    """Return the run folders of the folds that a run that trains them all has begun, in order."""
    found = [path for path in Path(folder).glob("fold-*") if re.fullmatch("fold-[0-9]+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: int(path.name[5:]))


def is_hf_folder(folder: Path) -> bool:
    """Tell whether a folder is one of the Hugging Face Hub, with safetensors and its configuration."""
    return all((folder / name).is_file() for name in (HF_CONFIG, HF_WEIGHTS))


def is_run_folder(folder: str | Path) -> bool:
    """Tell whether a folder is that of a run, so that its images are no data.

    It has a ``config.yaml`` that `mark_config` marked, or, where its user wrote that file anew, weights
    beside it.
    """
    try:
        with open(Path(folder, CONFIG_FILE), "rb") as file:
            marked = file.read(len(RUN_MARKER)) == RUN_MARKER.encode()
    except (OSError, ValueError):
        return False
    names = (BEST_WEIGHTS, LAST_WEIGHTS, LAST_CHECKPOINT)
    return marked or any(os.path.isfile(Path(folder, name)) for name in names)


def run_folder_of(path: str | Path) -> Path | None:
    """Return the run folder that a path is, or whose file it is, the weights of the best epochs included."""
    path = Path(path)
    folders = [path, path.parent, *([path.parent.parent] if path.parent.name == TOP_FOLDER else [])]
    return next((folder for folder in folders if is_run_folder(folder)), None)


def check_output(path: str | Path, option: str, *, inputs: Iterable[object] = ()) -> None:
    """Refuse to write over a file that training wrote into its run folder, or over what is read.

    Args:
        path: The file to write.
        option: What an error calls it.
        inputs: What is read: paths of files, among other things, such as the model and the data.

    Raises:
        UserError: It is such a file.
    """
    path = Path(path)
    own = path.name in _OWN_FILES and is_run_folder(path.parent)
    kept = path.parent.name == TOP_FOLDER and is_run_folder(path.parent.parent)
    if own or kept:
        raise UserError(f"{option} {path} is a file of the run itself; give another name")
    for each in inputs:
        if isinstance(each, (str, Path)) and _are_same(path, each):
            raise UserError(f"{option} {path} is read by the same command; give another name")


def _are_same(path: Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):  # one of them does not exist, or is no path
        return False


def mark_config(text: str) -> str:
    """Return the text of a ``config.yaml`` behind the line that marks its folder as a run's."""
    return f"{RUN_MARKER}; to continue it: conformer-vision train --resume FOLDER\n{text}"


def read_run_config(folder: str | Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run folder as plain values; their types are not checked.

    Raises:
        UserError: There is none, or as `read_yaml`.
    """
    path = Path(folder, CONFIG_FILE)
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE}; give a folder that 'conformer-vision train' wrote")
    return read_yaml(path, label=str(path))


def read_run_values(folder: str | Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Read some values of the ``config.yaml`` of a run folder, as far as it has them.

    Args:
        folder: The run folder.
        kinds: Names of the values, and their types.

    Raises:
        UserError: As `read_run_config`, or a value of another type.
    """
    config = read_run_config(folder)
    values = {name: config[name] for name in kinds if name in config}
    for name, value in values.items():
        if not isinstance(value, kinds[name]):
            raise UserError(f"{Path(folder, CONFIG_FILE)}: {name} {value!r} is invalid; correct the file")
    return values


def read_results(folder: str | Path) -> dict[str, Any] | None:
    """Read the `results.json` of a run folder; None where there is none that can be read."""
    try:
        found = json.loads(Path(folder, RESULTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def read_yaml(path: Path, *, label: str) -> dict[str, Any]:
    """Read a YAML file of names with values, of a bounded size.

    Args:
        path: The file.
        label: What an error calls it.

    Raises:
        UserError: It cannot be read, is not YAML, or holds something else.
    """
    import yaml  # exported files are read without it

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_size(values)
    except OSError as error:
        raise UserError(f"cannot read {label}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{label} is not YAML: {reason_of(error)}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{label} must hold names with values, as in 'epochs: 30'")
    return values


def _check_size(values: object) -> None:
    """Refuse what contains itself, or by its references grows beyond any configuration."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, (dict, list, tuple, set)):
            count += 1 + len(value)
            if count > _MOST_VALUES:
                raise ValueError(f"it holds more than {_MOST_VALUES} values")
            waiting.extend([*value, *value.values()] if isinstance(value, dict) else value)


def _is_published(name: str | Path) -> bool:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name not in ("timm", "torch", "torchvision"):
            raise
        return False  # no model has a name where there is no timm

    import conformer_vision.models  # noqa: F401 - registers its own with timm

    return bool(timm.is_model(str(name)))
