"""Recipes: YAML files whose keys are the options of a training. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..hints import did_you_mean
from ..runs import read_yaml
from .config import AUGMENT_OPTIONS, OPTIONS, TrainConfig


def recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("conformer_vision") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def find_recipe(given: str) -> Path:
    """Return the file of a recipe, given by its path or by the name of a bundled one.

    Raises:
        UserError: neither exists.
    """
    path = Path(given)
    if path.is_file():
        return path
    if given not in recipes():
        hint = nearest(given, recipes()) or f"; give a YAML file, or one of {', '.join(recipes())}"
        raise UserError(f"recipe {given!r} is unknown{hint}")
    return Path(str(resources.files("conformer_vision") / "recipes" / f"{given}.yaml"))


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the keys and values of a recipe; their types are checked by `TrainConfig.from_options`.

    Raises:
        UserError: no such file, not YAML, or an unknown key (the message suggests the nearest).
    """
    values = read_yaml(path, label=f"the recipe {path}")
    _check_keys(values, list(OPTIONS), path)
    for name, example in (("augment", "hflip: 0.5"), ("model_kwargs", "upsample: bilinear")):
        if not isinstance(values.get(name, {}), dict):
            raise UserError(f"the recipe {path}: {name} must hold names with values, such as '{example}'")
    _check_keys(values.get("augment", {}), AUGMENT_OPTIONS, path)
    if values.get("grad_checkpointing") is False:
        values["grad_checkpointing"] = "off"  # YAML 1.1 reads a bare `off` as false
    return values


def read_config(path: Path) -> TrainConfig:
    """Read the configuration that a run folder keeps.

    Raises:
        UserError: as `read_recipe`, or a value of a wrong type or range.
    """
    values = read_recipe(path)
    try:
        return TrainConfig.from_options(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_keys(values: dict[Any, Any], known: Collection[str], path: Path) -> None:
    for key in values:
        if key not in known:
            raise UserError(f"the recipe {path} has an unknown key {key!r}{did_you_mean(key, known)}")
