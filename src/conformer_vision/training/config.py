"""The configuration of a training run: eight groups, filled from flat names.

Python, command line, recipes and `config.yaml` all use the same flat names (`lr`, `--lr`, `lr:`).
Nothing here imports torch, so `--help` stays fast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ..data.augment import AugmentConfig
from ..data.opening import describe
from ..errors import UserError
from ..hints import did_you_mean
from ..parsing import build_parser
from .groups import (
    DataConfig,
    DistillationConfig,
    HardwareConfig,
    ModelConfig,
    OptimizerConfig,
    OutputConfig,
    RegularizationConfig,
    ScheduleConfig,
)

GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "regularization": RegularizationConfig,
    "distillation": DistillationConfig,
    "hardware": HardwareConfig,
    "output": OutputConfig,
}
OPTIONS: dict[str, str] = {item.name: name for name, group in GROUPS.items() for item in fields(group)}
"""Every option by its flat name, with the group that it belongs to."""
AUGMENT_OPTIONS: tuple[str, ...] = tuple(item.name for item in fields(AugmentConfig))


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides how a run goes; `from_options` builds it from flat names.

    Args:
        data: images, batches and seed.
        model: network, initial weights and input.
        optimizer: optimizer and weight averaging.
        schedule: length and learning-rate schedule.
        regularization: loss, mixing and augmentation.
        distillation: the teacher, if any.
        hardware: device, precision and processes.
        output: run folder, loggers and progress.

    Raises:
        UserError: options of different groups contradict each other.
    """

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    regularization: RegularizationConfig = field(default_factory=RegularizationConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.data.sampling == "balanced" == self.regularization.class_weights:
            raise UserError("sampling and class_weights balanced both even out the classes; keep one")
        lr, min_lr = self.optimizer.lr, self.schedule.min_lr
        if lr is not None and min_lr > lr:
            raise UserError(f"min_lr {min_lr:g} is above lr {lr:g}; set a lower min_lr")

    @classmethod
    def from_options(cls, **options: Any) -> TrainConfig:
        """Build a configuration from flat names, as in a recipe.

        Args:
            options: e.g. `data="photos", lr=1e-3`; `augment` is an `AugmentConfig` or a mapping, `data` may
                be a `torch.utils.data.Dataset` with `classes`.
                Everything left out has its default.

        Raises:
            UserError: an unknown name (the message suggests the nearest), a wrong type or value.

        Example:
            >>> config = TrainConfig.from_options(data="photos", model="resnet18", epochs=10)
            >>> config.schedule.epochs
            10
        """
        for name in options:
            if name not in OPTIONS:
                raise UserError(f"unknown option {name!r}{did_you_mean(name, OPTIONS)}")
        data: Any = options.get("data")
        is_object = hasattr(data, "__getitem__") and not isinstance(data, str | list | tuple | dict)
        if is_object:  # a Python dataset, which the parser has no type for
            options["data"] = describe(data)
        parser = _parser()
        config = config_from(
            parser.parse_object({key: _plain(value) for key, value in options.items()}), parser
        )
        return replace(config, data=replace(config.data, data=data)) if is_object else config

    def with_options(self, **changes: Any) -> TrainConfig:
        """Return a copy with some options changed, by their flat names.

        Raises:
            UserError: as `from_options`.
        """
        return TrainConfig.from_options(**(self.to_options() | changes))

    def to_options(self) -> dict[str, Any]:
        """Return every option with its value, by flat name; `augment` is a dictionary."""
        groups = [getattr(self, name) for name in GROUPS]
        options = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
        return options | {"augment": asdict(options["augment"])}

    def to_yaml(self) -> str:
        """Return every option with its value as YAML: a recipe that repeats the run.

        Of data that is a Python object, only a name for messages is kept.
        """
        options = self.to_options() | {"data": describe(self.data.data)}
        plain = json.loads(json.dumps(options))  # tuples become lists
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def add_options(parser: ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Add a flag for every option, in the groups' order, without those named."""
    for group in GROUPS.values():
        skip = {item.name for item in fields(group)} & set(without)
        if len(skip) < len(fields(group)):
            parser.add_class_arguments(group, skip=skip)


def config_from(options: Namespace, parser: ArgumentParser) -> TrainConfig:
    """Build the configuration that `parser` (see `add_options`) found; options that it lacks have defaults.

    Raises:
        UserError: a value is out of range or contradicts another.
    """
    for group in GROUPS.values():
        _check_null(options, group)
    _check_null(options.augment, AugmentConfig, prefix="augment.")
    values = parser.instantiate(options)
    return TrainConfig(
        **{
            name: group(**{item.name: values[item.name] for item in fields(group) if item.name in values})
            for name, group in GROUPS.items()
        }
    )


@cache
def _parser() -> ArgumentParser:
    parser = build_parser("")
    add_options(parser)
    return parser


def _plain(value: Any) -> Any:
    """A value as a recipe would have it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return dict(value) if isinstance(value, Mapping) else value


def _check_null(options: Namespace, group: type, *, prefix: str = "") -> None:
    """jsonargparse accepts null for every option; we do only where it is the default."""
    for item in fields(group):
        if item.name in options and options[item.name] is None and item.default is not None:
            raise UserError(f"{prefix}{item.name} null: give a value, or leave it out for the default")
