"""Which run a path means, and whether a configuration is still the one that it was begun with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.opening import absolute_spec, describe
from ..errors import UserError, option, resuming
from ..runs import CONFIG_FILE, LAST_CHECKPOINT, run_folder_of
from .class_weights import BALANCED, NONE
from .config import OPTIONS, TrainConfig
from .network import build_preprocessing
from .precision import as_before
from .start import with_rates, with_stages

_MAY_DIFFER = ("output", "auto_resume", "progress")
"""Options that a run does not keep."""


def run_of(path: str | Path) -> Path:
    """Return the run folder that a path to resume from means: the folder, or a file that keeps its state.

    Raises:
        UserError: it means none.
    """
    path = Path(path)
    folder = path.parent if path.name in (LAST_CHECKPOINT, CONFIG_FILE) and not path.is_dir() else path
    if (folder / CONFIG_FILE).is_file():
        return folder
    if path.is_file() and (run := run_folder_of(path)) is not None:
        raise UserError(
            f"{path} has no state to resume from; give its run folder {run}, "
            f"or begin another run from it with {option('checkpoint')}"
        )
    raise UserError(f"{folder} has no {CONFIG_FILE}, so it is no run to resume; give an interrupted run")


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return a configuration that means the same in any working folder."""
    data, checkpoint = config.data, config.model.checkpoint
    spec = data.data if not isinstance(data.data, str) else absolute_spec(data.data, data.data_dir)
    data = replace(data, data=spec, data_dir=_absolute(data.data_dir), exclude=_absolute(data.exclude))
    weights = config.regularization.class_weights
    if weights not in (BALANCED, NONE):
        weights = str(_absolute(weights))
    distillation = config.distillation
    if distillation.teacher is not None and Path(distillation.teacher).expanduser().exists():
        distillation = replace(distillation, teacher=_absolute(distillation.teacher))
    if distillation.unlabelled is not None:
        unlabelled = absolute_spec(distillation.unlabelled, config.data.data_dir)
        distillation = replace(distillation, unlabelled=unlabelled)
    if checkpoint is not None and "://" not in checkpoint:
        checkpoint = _absolute(checkpoint)
    return replace(
        config,
        data=data,
        model=replace(config.model, checkpoint=checkpoint),
        regularization=replace(config.regularization, class_weights=weights),
        distillation=distillation,
    )


def check_same(given: TrainConfig, kept: TrainConfig, folder: Path) -> None:
    """Check that a configuration is the one that a run keeps, apart from what the run itself decided.

    Raises:
        UserError: it is not; the message names what differs.
    """
    found = list(_differences(with_absolute_paths(given), with_absolute_paths(kept)))
    if found:
        raise UserError(
            f"{folder} was begun with {', '.join(found)}; give the same options, "
            f"continue it as it was with {resuming(folder)}, or choose another {option('output')}"
        )


def _differences(given: TrainConfig, kept: TrainConfig) -> Iterator[str]:
    options, before = (_comparable(config) for config in (_filled_in(given, kept), kept))
    for name in OPTIONS:
        if name in _MAY_DIFFER or options[name] == before[name]:
            continue
        if name == "augment":
            yield from _augment_differences(options[name], before[name])
        else:
            yield f"{name} {_shown(before[name])}, not {_shown(options[name])}"


def _comparable(config: TrainConfig) -> dict[str, Any]:
    own = {"data": describe(config.data.data), "input_size": config.model.image_size}
    return config.to_options() | own | {"loggers": config.output.logger_names}


def decided(config: TrainConfig) -> TrainConfig:
    """Return a configuration with its input decided, as the runs of its folds decide it."""
    return _filled_in(config, config)


def _filled_in(given: TrainConfig, kept: TrainConfig) -> TrainConfig:
    """Decide what is left open as the run did; the weights that it began with may be gone by now."""
    model, was = given.model, kept.model
    if model.model is None and model.checkpoint is not None:  # the checkpoint said which
        model = replace(model, model_kwargs=was.model_kwargs | model.model_kwargs)
    if model.checkpoint and was.checkpoint and Path(was.checkpoint).parent == Path(model.checkpoint):
        model = replace(model, checkpoint=was.checkpoint)  # the run folder of those weights
    model = replace(
        model,
        model=was.model if model.model is None else model.model,
        pretrained=was.pretrained if model.pretrained is None else model.pretrained,
    )
    schedule = with_stages(given.schedule, model)
    own = build_preprocessing(model)
    model = replace(model, input_size=own["input_size"][1:], crop_pct=own["crop_pct"])
    loss, before = given.regularization, kept.regularization
    loss = replace(
        loss,
        loss=before.loss if loss.loss == "auto" else loss.loss,
        label_smoothing=before.label_smoothing if loss.label_smoothing is None else loss.label_smoothing,
    )
    batch_size = kept.data.batch_size if given.data.batch_size == "auto" else given.data.batch_size
    return replace(
        given,
        data=replace(given.data, batch_size=batch_size),
        model=model,
        optimizer=with_rates(given.optimizer, model, schedule),
        schedule=schedule,
        regularization=loss,
        hardware=as_before(given.hardware, kept.hardware),
    )


def _augment_differences(given: dict[str, Any], kept: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if value != kept[name] and not (name == "hflip" and value is None):
            yield f"augment.{name} {_shown(kept[name])}, not {_shown(value)}"


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
