"""Where a training starts: the model, its initial weights, and the rates and stages that suit them."""

from __future__ import annotations

import os
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache

from ..console import say
from ..errors import UserError, nearest, reason_of
from ..models.checkpoints import fetch_pretrained, pretrained_path
from ..models.variants import SHIPPED
from ..runs import ENSEMBLE_WEIGHTS, HF_WEIGHTS, find_weights, fold_name, is_hf_folder
from ..weights import load_model
from .config import TrainConfig
from .groups import HardwareConfig, ModelConfig, OptimizerConfig, ScheduleConfig

SCRATCH = "conformer_nano_patch16_224"
"""The model that is trained from scratch where none is named."""
_BUNDLED = SHIPPED.partition(".")[0]
_SMALL, _LARGE = "conformer_tiny_patch16_224", "conformer_small_patch16_224"
_CHANGED = "published weights do not fit the network that model_kwargs make"
_OFFLINE = "HF_HUB_OFFLINE"
_SECONDS = 2.0
"""Time in which it must turn out whether weights can be downloaded."""


class Start(NamedTuple):
    """Where a training starts."""

    config: TrainConfig
    """With the model, whether its weights are loaded, the learning rate and the stages decided."""
    weights: str
    """What the initial weights are, in words."""
    note: str = ""
    """Why they are no better."""


class _Choice(NamedTuple):
    config: ModelConfig
    weights: str
    note: str = ""


def settle(config: TrainConfig, *, download: bool = True) -> Start:
    """Decide what a configuration leaves open: the model, its initial weights, the learning rate.

    Without a model the best weights at hand are taken: those of ImageNet where they are cached or can be
    downloaded, else the bundled ones. Without a network that takes two seconds.

    Args:
        config: of the run.
        download: whether weights may be downloaded that nobody asked for by name; processes that train
            together might come to different ends of it.

    Raises:
        UserError: an unknown model, one without the published weights that are asked for, or a checkpoint
            that does not say which model it is for.
    """
    given = config.model
    if given.model is not None and not timm.is_model(given.model):
        raise UserError(f"model {given.model!r} is unknown{nearest(given.model, timm.list_models())}")
    if given.checkpoint is not None:
        choice = _of_checkpoint(given, given.checkpoint)
    elif given.pretrained is False:
        choice = _from_scratch(given)
    elif given.model is None:
        choice = _best_at_hand(given, config.hardware, download=download)
    else:
        choice = _of_model(given, given.model, download=download)
    model, weights, note = choice
    schedule = with_stages(config.schedule, model)
    optimizer = with_rates(config.optimizer, model, schedule)
    if schedule != config.schedule:
        note = "; ".join([*([note] if note else []), "all layers learn at once, as there is nothing to keep"])
    return Start(replace(config, model=model, optimizer=optimizer, schedule=schedule), weights, note)


def _from_scratch(config: ModelConfig, note: str = "") -> _Choice:
    chosen = replace(config, model=config.model or SCRATCH, pretrained=False)
    return _Choice(chosen, "none, training from scratch", note)


def _of_checkpoint(config: ModelConfig, checkpoint: str) -> _Choice:
    """Take weights that are given, and where no model is named the one that they are for."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        found = path / HF_WEIGHTS if is_hf_folder(path) else find_weights(path)
        if found is None:
            raise UserError(f"checkpoint {checkpoint}: the folder holds no weights of a run or of the Hub")
        checkpoint = str(found)
        if found.name == ENSEMBLE_WEIGHTS:
            raise UserError(
                f"checkpoint {path} is an ensemble, and training starts from one network; give one of its "
                f"folds, such as {path / fold_name(0)}"
            )
    chosen = replace(config, checkpoint=checkpoint, pretrained=False)
    if config.model is None:
        if "://" in checkpoint:
            raise UserError(f"checkpoint {checkpoint}: name its model too")
        _, spec = load_model(path if path.is_dir() else checkpoint)
        chosen = replace(chosen, model=spec.model, model_kwargs=spec.model_kwargs | config.model_kwargs)
    return _Choice(chosen, checkpoint)


def _of_model(config: ModelConfig, name: str, *, download: bool) -> _Choice:
    """Take the published weights of a model that is named: if asked for in any case, else where at hand."""
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        if config.pretrained:
            raise UserError(
                f"pretrained: {name} has no published weights; leave pretrained out to train it from "
                "scratch, or leave model out for one that has weights"
            )
        return _from_scratch(config, f"{name} has no published weights")
    if config.pretrained is None:
        if not _fits(name, config):
            return _from_scratch(config, _CHANGED)
        if missing := find_missing(name, download=download):
            return _from_scratch(config, missing)
    return _Choice(replace(config, pretrained=True), _described(name))


def _best_at_hand(config: ModelConfig, hardware: HardwareConfig, *, download: bool) -> _Choice:
    """Choose the model by the weights that are at hand."""
    names = (_LARGE, _SMALL) if _has_accelerator(hardware) else (_SMALL, _LARGE)
    cached = [name for name in names if not find_missing(name, download=False)]
    note = "" if cached else find_missing(names[0], download=download)
    chosen = _BUNDLED
    for name in cached or ([] if note else names[:1]):
        if not cached:
            say(f"downloading the ImageNet weights of {name}")
        try:
            fetch_pretrained(str(timm.get_pretrained_cfg(name).url))  # type: ignore[union-attr]
            chosen, note = name, ""
            break
        except UserError as error:  # a connection that broke off, a damaged file in the cache
            note = str(error)
    if config.pretrained is None and not _fits(chosen, config):
        return _from_scratch(config, _CHANGED)
    return _Choice(replace(config, model=chosen, pretrained=True), _described(chosen), note)


def _described(name: str) -> str:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    tag = f".{cfg.tag}" if cfg.tag else ""
    return f"{name}{tag}, {'bundled with the package' if cfg.file else 'published'}"


def find_missing(name: str, *, download: bool) -> str:
    """Return why a model's published weights are not at hand; empty where they are.

    Args:
        name: of a model in timm's registry that has published weights.
        download: whether it is enough that they can be downloaded now.
    """
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None
    url, file = cfg.url, cfg.hf_hub_filename or "model.safetensors"
    if cfg.file or (isinstance(url, str) and url and pretrained_path(url).is_file()):
        return ""
    if cfg.hf_hub_id:
        if isinstance(try_to_load_from_cache(cfg.hf_hub_id, file), str):
            return ""
        url = hf_hub_url(cfg.hf_hub_id, file)
    if not download:
        return f"the published weights of {name} are not in the cache"
    if os.environ.get(_OFFLINE, "0").upper() not in ("", "0", "FALSE", "NO", "OFF"):
        reason = f"{_OFFLINE} is set"
    else:
        reason = _unreachable(str(url))
    return reason and f"the published weights of {name} cannot be downloaded: {reason}"


def _unreachable(url: str) -> str:
    """Return why an address does not answer within two seconds; empty where it does."""
    found = ["no answer from the network"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS):
                found[0] = ""
        except Exception as error:  # of the resolver, of a proxy, of the server
            reason = getattr(error, "reason", None)
            found[0] = reason_of(reason if isinstance(reason, Exception) else error)

    # In a thread: no timeout holds for the search of the server's address.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return found[0]


def _fits(name: str, config: ModelConfig) -> bool:
    """Tell whether the published weights of a model fit it with `model_kwargs`."""
    if not config.model_kwargs:
        return True

    def shapes(**kwargs: Any) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {key: value.shape for key, value in timm.create_model(name, **kwargs).state_dict().items()}

    try:
        return shapes(**config.model_kwargs) == shapes()
    except Exception:  # an option that the model does not take, which building it names
        return False


def with_rates(config: OptimizerConfig, model: ModelConfig, schedule: ScheduleConfig) -> OptimizerConfig:
    """Fill in the learning rate and its layer-wise decay, where they are left open, for a decided model.

    In two stages it is the second whose rate is that of fine-tuning.
    """
    lr: float
    decay: float | None
    if _is_from_scratch(model):
        lr, decay = 1e-3, None
    elif model.name.startswith("conformer_nano"):
        lr, decay = 2e-3, 0.9
    else:
        lr, decay = 5e-4, 0.75
    return replace(
        config,
        lr=lr / schedule.last_stage_scale if config.lr is None else config.lr,
        layer_decay=decay if config.layer_decay is None else config.layer_decay,
    )


def with_stages(config: ScheduleConfig, model: ModelConfig) -> ScheduleConfig:
    """Take the stages of fine-tuning out of a schedule where a decided model has no weights to keep."""
    return replace(config, freeze_share=0.0) if _is_from_scratch(model) else config


def _is_from_scratch(model: ModelConfig) -> bool:
    return not model.pretrained and model.checkpoint is None


def _has_accelerator(config: HardwareConfig) -> bool:
    cuda = config.device in ("auto", "cuda") and torch.cuda.is_available()
    return cuda or (config.device in ("auto", "mps") and torch.backends.mps.is_available())
