"""Models with their specification: one safetensors file each, published weights, and checkpoints.

The weights keep their parameter names; the metadata entry ``conformer_vision`` is a `ModelSpec` as JSON.
Nothing in a file is ever executed.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from conformer_vision import class_means
from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError, nearest, option, reason_of, words
from conformer_vision.files import atomic_path
from conformer_vision.hf import read_spec, to_pretrained_cfg
from conformer_vision.loaded_model import LoadedModel
from conformer_vision.models import VARIANTS, Conformer, Ensemble
from conformer_vision.models.checkpoints import check_fit, is_safetensors, load_checkpoint, read_checkpoint
from conformer_vision.models.foreign import Foreign, describe_checkpoint
from conformer_vision.models.published import create_published, imagenet_classes
from conformer_vision.runs import (
    CLASSES_FILE,
    HF_WEIGHTS,
    LAST_CHECKPOINT,
    ModelSource,
    find_model,
    find_weights,
)
from conformer_vision.spec import METADATA_KEY, ModelSpec, Preprocessing
from conformer_vision.tensors import evaluation_transform
from conformer_vision.thresholds import ClassThresholds, Thresholds

_log = logging.getLogger(__name__)


def load(path_or_name: str | Path, *, arch: str | None = None) -> LoadedModel:
    """Load a trained model with its specification and its evaluation transform.

    Args:
        path_or_name: A run folder, a weights file, a checkpoint, a folder of the Hugging Face Hub with a
            classifier of timm, or the name of published weights (``conformer_small_patch16_224``,
            ``resnet50.a1_in1k``), which are downloaded once. A checkpoint is a run's own ``last.ckpt``, or a
            file in the authors', OpenMMLab's or timm's layout. Its classes are those it names, those of a
            ``classes.txt`` beside it (one name per line), or ImageNet's; otherwise they are numbered, with a
            logged warning.
        arch: timm's name of a checkpoint's architecture, where its content does not tell.

    Raises:
        UserError: No such path or name, a damaged file, weights that do not fit, or an exported file, which
            `Predictor` reads.
    """
    model, spec = load_model(find_model(path_or_name, arch=arch))
    return LoadedModel(model, spec, evaluation_transform(spec))


def load_model(path_or_name: str | Path | ModelSource) -> tuple[nn.Module, ModelSpec]:
    """Load a trained model and its specification, as `load` without the transform."""
    source = path_or_name if isinstance(path_or_name, ModelSource) else find_model(path_or_name)
    if source.kind in ("weights", "checkpoint"):
        return _load_file(source.path, source.arch)
    if source.kind == "hf":
        return _load_hf(source.path)
    if source.kind == "published":
        return _load_published(str(source.path))
    runner = words("predict", "Predictor")
    raise UserError(f"{source.path} is an export, which {runner} runs; give the run folder or weights")


def save_model(model: nn.Module, spec: ModelSpec, path: str | Path) -> None:
    """Write parameters and buffers with the specification to a safetensors file, atomically.

    The file says whether the model is folded. Tensors that share memory are written under each of their
    names, and any memory layout (channels-last, transposed views) is made contiguous.

    Raises:
        UserError: The file cannot be written, or the specification has another number of classes than the
            model.
    """
    outputs = getattr(model, "num_classes", spec.num_classes)
    if outputs != spec.num_classes:
        raise UserError(f"the model has {outputs} outputs, but its spec names {spec.num_classes} classes")
    folded = isinstance(model, Conformer | Ensemble) and model.folded
    save_weights(model.state_dict(), replace(spec, folded=folded), path)


def save_weights(weights: Mapping[str, Tensor], spec: ModelSpec, path: str | Path) -> None:
    """Write a model's state as `save_model` does, with ``spec`` as it is."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    _write(tensors, {METADATA_KEY: spec.to_json()}, path)


class Calibrated(NamedTuple):
    """What is fitted on validation images when the weights are there."""

    temperature: float
    """See `ModelSpec`."""
    thresholds: Thresholds | ClassThresholds | None = None
    class_means: ClassMeans | None = None


def save_calibration(path: str | Path, fitted: Calibrated) -> ModelSpec:
    """Write another temperature, other thresholds and class means into a weights file.

    The weights stay the same, bit for bit.

    Args:
        path: The file, replaced atomically.
        fitted: What to write; None removes what was there.

    Returns:
        The new specification.

    Raises:
        UserError: Not a weights file, an invalid temperature, or a file that cannot be written.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
        spec = _read_spec(metadata, path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    spec = replace(spec, temperature=fitted.temperature, thresholds=fitted.thresholds)
    metadata[METADATA_KEY] = spec.to_json()
    metadata.pop(class_means.METADATA_KEY, None)
    if fitted.class_means is not None:
        metadata[class_means.METADATA_KEY] = fitted.class_means.encode()
    _write(tensors, metadata, path)
    return spec


def read_class_means(source: ModelSource) -> ClassMeans | None:
    """Read the class means of a weights file or of bundled weights; None where there are none.

    Raises:
        UserError: They are damaged, or do not belong to the classes.
    """
    path = source.path
    if source.kind == "published":
        cfg = timm.get_pretrained_cfg(str(path))
        path = Path(cfg.file) if cfg is not None and cfg.file else path
    if source.kind == "hf" or not is_safetensors(path):
        return None
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    if class_means.METADATA_KEY not in metadata:
        return None
    try:
        found = ClassMeans.decode(metadata[class_means.METADATA_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if len(found.means) != (number := _read_spec(metadata, path).num_classes):
        raise UserError(f"{path} has {len(found.means)} class means for {number} classes; copy it again")
    return found


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: str | Path) -> None:
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # it names a temporary file of its own
            number = re.search(r"os error (\d+)", str(error))
            reason = os.strerror(int(number[1])) if number else error
            raise UserError(f"cannot write {path}: {reason}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _load_published(name: str) -> tuple[nn.Module, ModelSpec]:
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.file:  # bundled with the package, specification included
        bundled, spec = _load_weights(Path(cfg.file))
        described = {key: value for key, value in cfg.to_dict().items() if key != "file"}
        bundled.pretrained_cfg = bundled.default_cfg = described  # type: ignore[assignment]
        return bundled, spec
    model: Any = create_published(name)
    if (named := imagenet_classes(model.num_classes)) is None:
        raise UserError(
            f"{name} has {model.num_classes} classes whose names are not known; only ImageNet's are"
        )
    return model, _spec_of(name.partition(".")[0], model, *named)


def _load_hf(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Load a folder of the Hugging Face Hub; code in it is not run."""
    spec = read_spec(folder)
    path = folder / HF_WEIGHTS
    with _opened(path) as file:  # transformers saves the names that its wrapper has
        weights = {name.removeprefix("timm_model."): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _fill(weights, spec, path), spec


def _load_file(path: Path, arch: str | None) -> tuple[nn.Module, ModelSpec]:
    """Load weights with a specification, a run's own checkpoint with one beside it, or another checkpoint."""
    if _has_spec(path):
        model, spec = _load_weights(path)
        _check_arch(arch, spec, path)
        return model, spec
    if path.name == LAST_CHECKPOINT and (beside := find_weights(path.parent)) is not None:
        model, spec = _load_weights(beside)
        _check_arch(arch, spec, path)
        load_checkpoint(model, path)
        return model, spec
    checkpoint = read_checkpoint(path)
    if arch is None and (kept := _spec_within(checkpoint, path)) is not None:
        model = _build(kept, path)
        if kept.model in VARIANTS:  # built without memory; others may have buffers that no file holds
            model = model.to_empty(device="cpu")
        load_checkpoint(model, path)
        return _described(model.eval(), kept), kept
    found = describe_checkpoint(checkpoint, label=str(path), arch=arch)
    model = timm.create_model(found.model, num_classes=found.num_classes, in_chans=found.in_chans)
    try:
        load_checkpoint(model, path)
    except UserError as error:
        if arch is None:
            raise
        raise UserError(
            f"{path} holds the weights of another model than {arch}; name the right one with {option('arch')}"
        ) from error
    spec = _spec_of(found.model, model, *_names_of(found, path), in_chans=found.in_chans)
    return _described(model.eval(), spec), spec


def _check_arch(arch: str | None, spec: ModelSpec, path: Path) -> None:
    if arch not in (None, spec.model):
        raise UserError(f"{path} is a {spec.model}; leave {option('arch', arch)} out")


def _spec_within(checkpoint: Mapping[str, object], path: Path) -> ModelSpec | None:
    """Return the specification in a run's checkpoint, which may have been copied out of its folder."""
    callbacks = checkpoint.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(text := state.get(METADATA_KEY), str):
            return _read_spec({METADATA_KEY: text}, path)
    return None


def _names_of(found: Foreign, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes of a checkpoint and their descriptions, which are ImageNet's or none."""
    number, imagenet = found.num_classes, imagenet_classes(found.num_classes)
    file = path.with_name(CLASSES_FILE)
    try:
        beside = tuple(file.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        beside = ()
    if len(set(beside)) == number and all(beside):
        return beside, ()
    # OpenMMLab's own weights have ImageNet's names in English.
    if imagenet is not None and found.classes[:1] in ((), imagenet[1][:1]):
        return imagenet
    if not found.classes:
        _log.warning(
            "the names of the %d classes in %s are not known, so they are numbered; a file %s beside it, with"
            " one name per line, gives them",
            *(number, path, CLASSES_FILE),
        )
    return found.classes or tuple(map(str, range(number))), ()


def _spec_of(
    name: str, model: nn.Module, classes: tuple[str, ...], descriptions: tuple[str, ...], *, in_chans: int = 3
) -> ModelSpec:
    """Return the specification of a model that comes without one: its input is prepared as timm does."""
    data = resolve_model_data_config(model)
    values = {each.name: data[each.name] for each in fields(Preprocessing)}
    values["input_size"] = (in_chans, *values["input_size"][1:])
    if in_chans == 1:  # grey: the mean over the colours
        values |= {name: (fmean(values[name]),) for name in ("mean", "std")}
    return ModelSpec(name, classes=classes, descriptions=descriptions, **values)


def _has_spec(path: Path) -> bool:
    """Tell whether a file is, whatever its suffix, safetensors with a specification, or damaged."""
    if not is_safetensors(path):
        return False
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def _load_weights(path: Path) -> tuple[nn.Module, ModelSpec]:
    weights, spec = read_weights(path)
    return _fill(weights, spec, path), spec


def read_weights(path: Path) -> tuple[dict[str, Tensor], ModelSpec]:
    """Read a weights file without building its network: the tensors by name, and the specification.

    Raises:
        UserError: The file is damaged or has no specification.
    """
    with _opened(path) as file:
        spec = _read_spec(file.metadata(), path)
        return {name: file.get_tensor(name) for name in file.keys()}, spec  # noqa: SIM118


def _fill(weights: Mapping[str, Tensor], spec: ModelSpec, path: Path) -> nn.Module:
    """Build the network of a specification and fill it with the weights of an open file."""
    model = _build(spec, path)
    expected = model.state_dict()
    remedy = "the file is damaged or was changed; export or train the model again"
    check_fit(weights, expected, label=str(path), model=spec.model, remedy=remedy)
    # Copies: in the file's memory they are not aligned, and libraries round otherwise there.
    weights = {name: tensor.to(expected[name].dtype, copy=True) for name, tensor in weights.items()}
    model.load_state_dict(weights, assign=spec.model in VARIANTS)
    return _described(model.eval(), spec)


def _described(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Let timm's description of a model be that of its weights, not of others for the same network."""
    built: Any = getattr(model, "pretrained_cfg", {})
    model.pretrained_cfg = model.default_cfg = to_pretrained_cfg(spec, built)  # type: ignore[assignment]
    return model


def _read_spec(metadata: dict[str, str] | None, path: Path) -> ModelSpec:
    if metadata is None or METADATA_KEY not in metadata:
        raise UserError(f"{path} has no model spec; 'conformer-vision train' writes one")
    try:
        return ModelSpec.from_json(metadata[METADATA_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def build_empty(spec: ModelSpec) -> nn.Module:
    """Build the network of a specification; a Conformer's weights take no memory and have no values.

    Raises:
        UserError: timm knows no such model, or refuses an argument.
    """
    return _build(spec, Path(spec.model))


def _build(spec: ModelSpec, path: Path) -> nn.Module:
    if spec.members > 1:
        alone = replace(spec, members=1)
        return Ensemble([_build(alone, path) for _ in range(spec.members)])
    # Only names of the registry: timm also takes "hf-hub:..." and "local-dir:...", which fetch things.
    if not timm.is_model(spec.model):
        raise UserError(
            f"{path}: timm knows no model {spec.model!r}{nearest(spec.model, timm.list_models())}"
        )
    # Drawing initial weights takes longer than reading those of the file. Other models may have buffers that
    # the file does not hold.
    device = torch.device("meta" if spec.model in VARIANTS else "cpu")
    try:
        with device:
            model: nn.Module = timm.create_model(
                spec.model,
                pretrained=False,
                num_classes=spec.num_classes,
                in_chans=spec.in_chans,
                **spec.model_kwargs,
            )
    except Exception as error:  # any timm model's own complaint about an argument
        reason = reason_of(error)
        raise UserError(f"{path}: cannot build {spec.model!r} with {spec.model_kwargs}: {reason}") from error
    if not spec.folded:
        return model
    if not isinstance(model, Conformer):
        raise UserError(f"{path}: the spec says folded, but {spec.model!r} is no Conformer")
    with device:
        return model.fold()
