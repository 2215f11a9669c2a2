"""A trained model as one safetensors file that says itself how to build and feed the model.

The weights carry their names in the network; the metadata entry ``conformer_vision`` is a JSON
object, the `ModelSpec`. Nothing in the file is ever executed, and nothing is downloaded.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path
from conformer_vision.models.conformer import Conformer
from conformer_vision.models.variants import VARIANTS

FORMAT = 1
METADATA_KEY = "conformer_vision"
BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
# Keys that came after the first release: a spec without them has their defaults.
_LATER_KEYS = frozenset({"temperature", "fused", "descriptions"})
# What the spec says in a field of its own, and what would make timm read other files or the network.
_RESERVED_KWARGS = frozenset(
    {"model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"num_classes", "in_chans", "features_only", "scriptable", "exportable", "no_jit"}
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network (by timm) and how to prepare its input.

    Args:
        model: name in timm's registry.
        model_kwargs: further arguments of ``timm.create_model``, JSON values.
        classes: name of every output, in order; distinct.
        input_size: ``(channels, height, width)`` in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        interpolation: how images are resized.
        crop_pct: share of the resized image's edge that the crop keeps, in (0, 1].
        crop_mode: ``center``, ``squash`` or ``border``, as timm has them.
        in_chans: channels of the input; 0 (the default) takes them from ``input_size``.
        temperature: what the logits of the prediction are divided by before the softmax, so that
            probabilities are as high as the share of right answers (Guo et al., 2017); 1 leaves them.
        fused: whether the weights are those of `Conformer.fuse`.
        descriptions: what people call the classes, in their order, where the names are codes; or nothing.

    Raises:
        UserError: a value that cannot be; the line names it.
    """

    model: str
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    in_chans: int = 0
    temperature: float = 1.0
    fused: bool = False
    descriptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("classes", "input_size", "mean", "std", "descriptions"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)):
                raise UserError(f"model spec: {name} must be a list, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        if not isinstance(self.model, str) or not self.model:
            raise UserError(f"model spec: model must be the name of a timm model, not {self.model!r}")
        self._check_kwargs()
        self._check_classes()
        self._check_input()

    def _check_kwargs(self) -> None:
        if not isinstance(self.model_kwargs, dict) or not all(isinstance(k, str) for k in self.model_kwargs):
            raise UserError("model spec: model_kwargs must be an object of named values")
        if reserved := sorted(_RESERVED_KWARGS & self.model_kwargs.keys()):
            raise UserError(f"model spec: model_kwargs may not hold {', '.join(reserved)}; leave it out")
        try:
            plain = json.loads(json.dumps(self.model_kwargs, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"model spec: model_kwargs must hold JSON values only ({error})") from error
        object.__setattr__(self, "model_kwargs", plain)  # a copy, as it will be read back

    def _check_classes(self) -> None:
        if not self.classes or not all(isinstance(name, str) and name for name in self.classes):
            raise UserError("model spec: classes must be a list of at least one name, none of them empty")
        for name in self.classes:
            if not _is_unicode(name):
                raise UserError(f"model spec: the class name {name!r} is not UTF-8; rename the class")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for i, name in enumerate(self.classes) if name in self.classes[:i])
            raise UserError(f"model spec: the class name {twice!r} occurs twice; names must be distinct")
        texts = self.descriptions
        if texts and (len(texts) != len(self.classes) or not all(isinstance(t, str) and t for t in texts)):
            raise UserError("model spec: descriptions must be one text for every class, or none at all")

    def _check_input(self) -> None:
        size = self.input_size
        if len(size) != 3 or not all(type(n) is int and n > 0 for n in size):
            raise UserError(f"model spec: input_size must be [channels, height, width], not {list(size)}")
        if self.in_chans == 0:
            object.__setattr__(self, "in_chans", size[0])
        if self.in_chans != size[0]:
            raise UserError(f"model spec: in_chans {self.in_chans} contradicts input_size {list(size)}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != size[0] or not all(_is_number(v) for v in values):
                raise UserError(f"model spec: {name} must be {size[0]} numbers, not {list(values)}")
        if not all(v > 0 for v in self.std):
            raise UserError(f"model spec: std must be positive, not {list(self.std)}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UserError(f"model spec: unknown interpolation {self.interpolation!r}; one of {known}")
        if not _is_number(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise UserError(f"model spec: crop_pct must lie in (0, 1], not {self.crop_pct!r}")
        if self.crop_mode not in CROP_MODES:
            raise UserError(
                f"model spec: unknown crop_mode {self.crop_mode!r}; one of {', '.join(CROP_MODES)}"
            )
        if not _is_number(self.temperature) or not self.temperature > 0:
            raise UserError(f"model spec: temperature must be a positive number, not {self.temperature!r}")
        if not isinstance(self.fused, bool):
            raise UserError(f"model spec: fused must be true or false, not {self.fused!r}")

    @property
    def num_classes(self) -> int:
        """Number of outputs of the model."""
        return len(self.classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """What to call the classes: their descriptions, where there are any."""
        return self.descriptions or self.classes

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `data.build_transform` needs to prepare an image for the network."""
        names = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        return {name: getattr(self, name) for name in names}

    def to_json(self) -> str:
        """The spec as one JSON object, with ``format`` and ``num_classes``."""
        return json.dumps(
            {"format": FORMAT, "num_classes": self.num_classes, **asdict(self)}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The inverse of `to_json`.

        Keys this version does not know are passed over: within one ``format`` a later release may
        only add what an earlier one can do without. Another ``format`` is refused.

        Raises:
            UserError: not JSON, another format, a missing key, or an impossible value.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the model spec is not JSON ({error})") from error
        if not isinstance(values, dict) or "format" not in values:
            raise UserError("the model spec is not an object with a 'format'")
        if values["format"] != FORMAT or type(values["format"]) is not int:
            raise UserError(
                f"format {values['format']!r} of the model spec is unknown here (known: {FORMAT});"
                " update conformer-vision"
            )
        names = (*cls.__dataclass_fields__, "num_classes")
        if missing := [name for name in names if name not in values and name not in _LATER_KEYS]:
            raise UserError(f"the model spec lacks {', '.join(missing)}")
        spec = cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
        if values["num_classes"] != spec.num_classes:
            raise UserError(
                f"the model spec says {values['num_classes']} classes and names {spec.num_classes}"
            )
        return spec


def _is_unicode(text: str) -> bool:
    """Whether the text can be written; the name of a folder that is not UTF-8 holds lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def save_model(model: nn.Module, spec: ModelSpec, path: str | Path) -> None:
    """Writes parameters and buffers with the spec to a safetensors file, in one step or not at all.

    The spec gets to say whether the model is fused. Tensors that share memory are written once under
    each of their names, and any memory layout (channels-last, transposed views) is written contiguous.

    Raises:
        UserError: the file cannot be written, or the spec has another number of classes than the model.
    """
    outputs = getattr(model, "num_classes", spec.num_classes)
    if outputs != spec.num_classes:
        raise UserError(f"the model has {outputs} outputs, but its spec names {spec.num_classes} classes")
    fused = isinstance(model, Conformer) and model.fused
    save_weights(model.state_dict(), replace(spec, fused=fused), path)


def save_weights(weights: Mapping[str, Tensor], spec: ModelSpec, path: str | Path) -> None:
    """As `save_model`, from the model's state."""
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={METADATA_KEY: spec.to_json()})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from error


def save_temperature(path: str | Path, temperature: float) -> ModelSpec:
    """Writes another temperature into the spec of a safetensors file; the weights stay bit for bit.

    Args:
        path: the file, replaced in one step or not at all.
        temperature: see `ModelSpec`.

    Returns:
        The new spec.

    Raises:
        UserError: not a file that `load_model` reads, an impossible temperature, or no right to write.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata: dict[str, str] = file.metadata() or {}
            spec = replace(_read_spec(metadata, path), temperature=temperature)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata | {METADATA_KEY: spec.to_json()})
        except SafetensorError as error:
            raise UserError(f"cannot write {path}: {error}") from error
    return spec


def load_model(path: str | Path) -> tuple[nn.Module, ModelSpec]:
    """The model of a safetensors file or of a run folder, on the CPU and in eval mode.

    Of a run folder ``best.safetensors`` is taken; where training ended before the first validation
    there is none, and ``last.safetensors`` is taken with a logged warning.

    Raises:
        UserError: no such path, a folder without weights, not a whole safetensors file, no spec or
            an impossible one, a model that timm does not know, or weights of another model.
    """
    path = weights_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            spec = _read_spec(file.metadata(), path)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            model = _build(spec, path)
            _check_shapes(model, shapes, spec, path)
            wanted = model.state_dict()
            # Copies: in the file's memory they are not aligned, and libraries round otherwise there.
            weights = {name: file.get_tensor(name).to(wanted[name].dtype, copy=True) for name in shapes}
            model.load_state_dict(weights, assign=spec.model in VARIANTS)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return model.eval(), spec


def weights_file(path: str | Path) -> Path:
    """The safetensors file that `load_model` reads for a file or a run folder.

    Raises:
        UserError: no such path, or a folder without weights.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{path} does not exist; give a run folder, a .safetensors file or the name of a model of timm"
        )
    if not path.is_dir():
        return path
    if (best := path / BEST_WEIGHTS).is_file():
        return best
    if (last := path / LAST_WEIGHTS).is_file():
        _log.warning("%s has no %s (training ended early); using %s", path, BEST_WEIGHTS, LAST_WEIGHTS)
        return last
    raise UserError(f"{path} holds neither {BEST_WEIGHTS} nor {LAST_WEIGHTS}; is it a run folder?")


def _read_spec(metadata: dict[str, str] | None, path: Path) -> ModelSpec:
    if metadata is None or METADATA_KEY not in metadata:
        raise UserError(
            f"{path} has no model spec (metadata {METADATA_KEY!r}); 'conformer-vision train' writes one"
        )
    try:
        return ModelSpec.from_json(metadata[METADATA_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _build(spec: ModelSpec, path: Path) -> nn.Module:
    # Only names of the registry: timm also takes "hf-hub:..." and "local-dir:...", which fetch things.
    if not timm.is_model(spec.model):
        near = difflib.get_close_matches(spec.model, timm.list_models(), n=1)
        hint = f"; the nearest known is {near[0]!r}" if near else ""
        raise UserError(f"{path}: timm knows no model {spec.model!r}{hint}")
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
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot build {spec.model!r} with {spec.model_kwargs}: {reason}") from error
    if not spec.fused:
        return model
    if not isinstance(model, Conformer):
        raise UserError(f"{path}: the spec says fused, but {spec.model!r} is no Conformer")
    with device:
        return model.fuse()


def _check_shapes(model: nn.Module, shapes: dict[str, tuple[int, ...]], spec: ModelSpec, path: Path) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    faults = {
        "missing": sorted(wanted.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {list(shapes[name])} for {list(wanted[name])}"
            for name in sorted(wanted.keys() & shapes.keys())
            if shapes[name] != wanted[name]
        ],
    }
    if any(faults.values()):
        lines = [f"{kind}: {_some(names)}" for kind, names in faults.items() if names]
        raise UserError(f"{path} holds weights of another model than {spec.model!r} ({'; '.join(lines)})")


def _some(names: list[str], limit: int = 3) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
