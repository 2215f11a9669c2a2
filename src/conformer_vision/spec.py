"""The specification of a trained model: how to build the network and how to prepare its input.

It travels as JSON in the metadata of every weights file and export. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from conformer_vision import __version__
from conformer_vision.errors import UserError
from conformer_vision.thresholds import UNFITTED, ClassThresholds, Thresholds, is_finite, read

FORMAT = 1
METADATA_KEY = "conformer_vision"
"""Key of the specification in the metadata of a file."""
MIN_SIZE = 32
"""Fewest pixels of an input's edge: with fewer a network runs, but has no feature maps to tell things by."""
MOST_MEMBERS = 100
"""Most networks of an ensemble; a file that asks for more is damaged, and would fill the memory."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
# Keys that were added to the format later: a file without them gets their defaults.
_LATER_KEYS = frozenset(
    {"temperature", "folded", "members", "descriptions", "version", "thresholds", "multilabel"}
)
# Arguments of timm.create_model that have their own field, or that would make timm read other files or the
# network.
_RESERVED_KWARGS = frozenset(
    {"model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
    | {"num_classes", "in_chans", "features_only", "scriptable", "exportable", "no_jit"}
)


@dataclass(frozen=True)
class Preprocessing:
    """What prepares an image for the network; see `ModelSpec` for the values.

    Raises:
        UserError: A value is invalid; the line names it.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        size = self.input_size
        if len(size) != 3 or not all(type(n) is int for n in size) or size[0] < 1:
            raise UserError(f"input_size must be [channels, height, width], not {list(size)}")
        if min(size[1:]) < MIN_SIZE:
            raise UserError(f"input_size {size[1]}x{size[2]}: each edge must be {MIN_SIZE} pixels or more")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != size[0] or not all(is_finite(v) for v in values):
                raise UserError(f"{name} must be {size[0]} numbers, not {list(values)}")
        if not all(v > 0 for v in self.std):
            raise UserError(f"std must be positive, not {list(self.std)}")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UserError(f"interpolation {self.interpolation!r}: must be one of {known}")
        if not is_finite(self.crop_pct) or not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct must be in (0, 1], not {self.crop_pct!r}")
        if self.crop_mode not in CROP_MODES:
            raise UserError(f"crop_mode {self.crop_mode!r}: must be one of {', '.join(CROP_MODES)}")


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network with timm and how to prepare its input.

    Args:
        model: Name in timm's registry.
        model_kwargs: Further arguments of ``timm.create_model``; JSON values.
        classes: Names of the outputs, in order and distinct.
        input_size: ``(channels, height, width)`` in pixels.
        mean: Mean per channel, on the scale [0, 1].
        std: Standard deviation per channel, on the same scale.
        interpolation: How images are resized; one of `INTERPOLATIONS`.
        crop_pct: Share of the resized image's edge that the crop keeps, in (0, 1].
        crop_mode: ``center``, ``squash`` or ``border``, as in timm.
        in_chans: Input channels; 0 (the default) takes them from ``input_size``.
        temperature: Divisor of the prediction's logits before the softmax, or sigmoid, which calibrates the
            probabilities (Guo et al., 2017); 1 leaves them as they are.
        folded: Whether the weights are those of `Conformer.fold`.
        members: Number of such networks whose logits are averaged (`Ensemble`); 1 for a single one.
        descriptions: Readable names of the classes, in their order, where ``classes`` holds codes; or empty.
        thresholds: When an answer is unsure, and which classes are in a set (docs/unsure.md); of a model of
            several labels per image, from which probability on an image has a class. None if they were not
            fitted.
        multilabel: Whether an image has any number of the classes instead of one; probabilities are then
            sigmoids of the logits.
        version: Version of the package that made the specification; empty for files older than this field.

    Raises:
        UserError: A value is invalid; the line names it.
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
    folded: bool = False
    members: int = 1
    descriptions: tuple[str, ...] = ()
    thresholds: Thresholds | ClassThresholds | None = None
    multilabel: bool = False
    version: str = field(default=__version__, compare=False)

    def __post_init__(self) -> None:
        for name in ("classes", "input_size", "mean", "std", "descriptions"):
            value = getattr(self, name)
            _require(isinstance(value, (tuple, list)), f"{name} must be a list, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name, text in (("model", self.model), ("version", self.version)):
            _require(isinstance(text, str), f"{name} must be text, not {text!r}")
        _require(self.model != "", "model must be the name of a timm model")
        self._check_kwargs()
        self._check_classes()
        self._check_input()
        self._check_thresholds()

    def _check_kwargs(self) -> None:
        named = isinstance(self.model_kwargs, dict) and all(isinstance(k, str) for k in self.model_kwargs)
        _require(named, "model_kwargs must be an object of named values")
        reserved = sorted(_RESERVED_KWARGS & self.model_kwargs.keys())
        _require(not reserved, f"model_kwargs may not hold {', '.join(reserved)}; leave it out")
        try:
            plain = json.loads(json.dumps(self.model_kwargs, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise UserError(f"model spec: model_kwargs must hold JSON values only ({error})") from error
        object.__setattr__(self, "model_kwargs", plain)  # a copy, as it will be read back

    def _check_classes(self) -> None:
        problem = "classes must be a list of at least one name, none of them empty"
        _require(bool(self.classes) and _are_texts(self.classes), problem)
        for name, count in Counter(self.classes).items():
            _require(_is_unicode(name), f"the class name {name!r} is not UTF-8; rename the class")
            _require(count == 1, f"the class name {name!r} occurs twice; names must be distinct")
        texts = self.descriptions
        fits = not texts or (len(texts) == len(self.classes) and _are_texts(texts))
        _require(fits, "descriptions must be one text per class, or none at all")

    def _check_input(self) -> None:
        size = self.preprocessing.input_size
        if self.in_chans == 0:
            object.__setattr__(self, "in_chans", size[0])
        _require(self.in_chans == size[0], f"in_chans {self.in_chans} contradicts input_size {list(size)}")
        positive = is_finite(self.temperature) and self.temperature > 0
        _require(positive, f"temperature must be a positive number, not {self.temperature!r}")
        counts = type(self.members) is int and 1 <= self.members <= MOST_MEMBERS
        _require(counts, f"members must be from 1 to {MOST_MEMBERS}, not {self.members!r}")
        for name in ("folded", "multilabel"):
            value = getattr(self, name)
            _require(isinstance(value, bool), f"{name} must be true or false, not {value!r}")

    def _check_thresholds(self) -> None:
        if self.thresholds is None:
            return
        found = read(ClassThresholds if self.multilabel else Thresholds, self.thresholds)
        if isinstance(found, ClassThresholds):
            found.check(self.num_classes)
        object.__setattr__(self, "thresholds", found)

    @property
    def class_thresholds(self) -> tuple[float, ...]:
        """From which probability on an image has each of the classes, where it has any number of them."""
        fitted = self.thresholds
        return fitted.values if isinstance(fitted, ClassThresholds) else (UNFITTED,) * self.num_classes

    @property
    def num_classes(self) -> int:
        """Number of outputs of the model."""
        return len(self.classes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes for people: the descriptions, where there are any."""
        return self.descriptions or self.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """What prepares an image for the network."""
        return Preprocessing(
            self.input_size, self.mean, self.std, self.interpolation, self.crop_pct, self.crop_mode
        )

    def to_json(self) -> str:
        """Return the specification as one JSON object, with ``format`` and ``num_classes``."""
        return json.dumps(
            {"format": FORMAT, "num_classes": self.num_classes, **asdict(self)}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what `to_json` wrote.

        Unknown keys are ignored: within one ``format`` a later release may only add what an earlier one can
        do without. Another ``format`` is refused.

        Raises:
            UserError: Not JSON, another format, a missing key, or an invalid value.
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
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        spec = cls(**{"version": "", **known})
        if values["num_classes"] != spec.num_classes:
            raise UserError(
                f"the model spec says {values['num_classes']} classes and names {spec.num_classes}"
            )
        return spec


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise UserError(f"model spec: {problem}")


def _are_texts(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _is_unicode(text: str) -> bool:
    """Tell whether the text can be encoded; a folder's name that is not UTF-8 holds lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
