"""Recipes: YAML files whose keys are the fields of `TrainConfig`. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ..data.augment import AugmentConfig
from ..errors import UserError
from ..parsing import build_parser, nearest
from ..runs import read_yaml
from .config import TrainConfig

_KEYS = [item.name for item in fields(TrainConfig)]
_AUGMENT_KEYS = [item.name for item in fields(AugmentConfig)]


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("conformer_vision") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def find_recipe(given: str) -> Path:
    """The file of a recipe given by its path, or by its name where it comes with the package.

    Raises:
        UserError: neither.
    """
    path = Path(given)
    if path.is_file():
        return path
    if given not in recipes():
        hint = nearest(given, recipes()) or f"; give a YAML file, or one of {', '.join(recipes())}"
        raise UserError(f"recipe {given!r} is unknown{hint}")
    return Path(str(resources.files("conformer_vision") / "recipes" / f"{given}.yaml"))


def read_recipe(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe; the types of the values are not checked yet.

    Raises:
        UserError: no such file, not YAML, or an unknown key, for which the nearest is suggested.
    """
    values = read_yaml(path, label=f"the recipe {path}")
    _check_keys(values, _KEYS, path)
    for name, example in (("augment", "hflip: 0.5"), ("model_kwargs", "upsample: bilinear")):
        if not isinstance(values.get(name, {}), dict):
            raise UserError(f"the recipe {path}: {name} has to be keys with values, as '{example}'")
    _check_keys(values.get("augment", {}), _AUGMENT_KEYS, path)
    return values


def read_config(path: Path) -> TrainConfig:
    """The configuration that a run folder keeps.

    Raises:
        UserError: as `read_recipe`, or a value that cannot be.
    """
    values = read_recipe(path)
    try:
        return config_from_values(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def config_from_values(values: dict[str, Any]) -> TrainConfig:
    """The configuration of keys and values as a recipe has them; what they leave out has its default.

    Raises:
        UserError: a value that cannot be.
    """
    parser = build_parser("")
    parser.add_class_arguments(TrainConfig)
    return config_from(parser.parse_object(values), parser)


def config_from(options: Namespace, parser: ArgumentParser) -> TrainConfig:
    """The configuration that `parser` found in a command line or a recipe.

    Raises:
        UserError: a value that cannot be.
    """
    _check_null(options, TrainConfig)
    _check_null(options.augment, AugmentConfig, prefix="augment.")
    options = parser.instantiate(options)
    return TrainConfig(**{name: options[name] for name in _KEYS})


def _check_null(options: Namespace, cls: type, *, prefix: str = "") -> None:
    """jsonargparse takes null for every option, the class only for those that are null by default."""
    for item in fields(cls):
        if options[item.name] is None and item.default is not None:
            raise UserError(f"{prefix}{item.name} null: give a value, or leave it out for the default")


def _check_keys(values: dict[Any, Any], known: Collection[str], path: Path) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"the recipe {path} has an unknown key {key!r}{nearest(key, list(known))}")
