"""pytest plugin: timm's model registry, as timm's tests see it, holds the Conformer models alone.

timm's tests take their parameters from ``timm.list_models`` when they are collected. The plugin replaces
that function before, so that every test over "all models" runs over ours. Tests that name other models
are left out; of these, the ones that hold for any model are named in ANY_MODEL and given ours.
"""

from fnmatch import fnmatch
from typing import Any

import pytest
import timm

import conformer_vision  # noqa: F401 - registers the models

CONFORMERS = timm.list_models("conformer*")

# Tests of timm over a list of chosen models, whose statement holds for any model.
ANY_MODEL = {
    "test_prune_intermediate_layers_params_used": CONFORMERS,
    "test_forward_after_prune_intermediate_layers": CONFORMERS,
    "test_feature_getter_stage_ends_torchscript": CONFORMERS,
}


def _list_models(
    filter: str | list[str] = "",  # noqa: A002 - timm's name
    module: str | list[str] = "",
    pretrained: bool = False,
    exclude_filters: str | list[str] = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Answer like ``timm.list_models`` from our models, which have what each list of modules stands for."""
    if pretrained:  # tests that download weights: tests/models/test_pretrained.py serves them locally instead
        return []
    wanted = [filter] if isinstance(filter, str) else list(filter)
    unwanted = [exclude_filters] if isinstance(exclude_filters, str) else list(exclude_filters)
    return [
        name
        for name in CONFORMERS
        if (wanted in ([], [""]) or any(fnmatch(name, pattern) for pattern in wanted))
        and not any(fnmatch(name, pattern) for pattern in unwanted)
    ]


timm.list_models = _list_models
timm.list_pretrained = lambda *args, **kwargs: []


def pytest_generate_tests(metafunc: Any) -> None:
    """Give ours to the tests in ANY_MODEL in place of the models that they name."""
    names = ANY_MODEL.get(metafunc.function.__name__)
    if names is None:
        return
    marks = [mark for mark in metafunc.definition.own_markers if mark.name == "parametrize"]
    for mark in marks:
        if mark.args[0] == "model_name":
            mark.args[1][:] = names


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that run one of our models."""
    ours = [item for item in items if "conformer" in item.name]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
