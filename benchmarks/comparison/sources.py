"""The models to measure, by name with random weights or from files, with what they cost."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.models import Conformer
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model
from oracle import ReferenceConformer, build_pair, count_macs, plain_copy

from .config import ComparisonConfig, Runtime

CLASSES = tuple(f"class {number}" for number in range(1000))
"""Of models with random weights."""
_IMPOSSIBLE = (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError, TypeError)


@dataclass(frozen=True)
class Source:
    """A model that was asked for, before it is written in its forms.

    Args:
        label: name or path, as it was given.
        spec: of the model, with the size that is measured.
        model: in eval mode.
        reference: the plain formulation with the same weights, where there is one.
        random: whether the weights are.
    """

    label: str
    spec: ModelSpec
    model: nn.Module
    reference: ReferenceConformer | None = None
    random: bool = False

    @property
    def parameters(self) -> int:
        """As trained."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def macs(self, runtime: Runtime) -> int:
        """Multiply-adds of one image; of the plain formulation its own, which are more.

        Raises:
            UserError: the model does not take images of this size.
        """
        plain = runtime.kind == "reference" and self.reference is not None
        network: nn.Module = cast(nn.Module, self.reference) if plain else self.model
        try:
            return count_macs(network, self.spec.input_size)
        except _IMPOSSIBLE as error:
            size = "x".join(map(str, self.spec.input_size[1:]))
            raise UserError(
                f"size {size}: {self.label} cannot take it ({first_line(error)}); give another one"
            ) from error


def check_names(config: ComparisonConfig) -> None:
    """Looks for every model before the first is built: there may be minutes between them.

    Raises:
        UserError: there is no such model or file.
    """
    for name in config.models:
        if not timm.is_model(name) and not Path(name).exists():
            raise UserError(
                f"models {name}: neither a model of timm nor a file or run folder{_nearest(name)}"
            )
    for name in config.peers or ():
        if not timm.is_model(name):
            raise UserError(f"peers {name}: timm knows no such model{_nearest(name)}")


def first_spec(config: ComparisonConfig) -> ModelSpec:
    """The spec of the first model, with the size that everything is measured with.

    Raises:
        UserError: its file cannot be read.
    """
    name = config.models[0]
    if timm.is_model(name):
        cfg = get_pretrained_cfg(name)
        spec = ModelSpec(name, {}, CLASSES, (3, 224, 224) if cfg is None else cfg.input_size)
    else:
        spec = load_model(name)[1]
    if config.size is None:
        return spec
    return replace(spec, input_size=(spec.input_size[0], config.size, config.size))


def open_source(name: str, spec: ModelSpec) -> Source:
    """A model by its name in timm's registry or by its path.

    Args:
        name: as `check_names` found it possible.
        spec: of the first model.

    Raises:
        UserError: it cannot be read or built, or takes other images.
    """
    source = _by_name(name, spec) if timm.is_model(name) else _by_path(name, spec)
    source.macs(Runtime("eager"))  # whether it takes the size
    return source


def _by_name(name: str, spec: ModelSpec) -> Source:
    """A model with random weights; statistics of BatchNorms are random too, so that folding is work."""
    channels, height, width = spec.input_size
    own = ModelSpec(name, {}, CLASSES, spec.input_size, mean=spec.mean, std=spec.std)
    if isinstance(_untrained(own), Conformer):
        model, reference = build_pair(name, num_classes=len(CLASSES), in_chans=channels)
        return Source(name, own, model.eval(), reference.eval(), random=True)
    cfg = get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size and tuple(cfg.input_size[1:]) != (height, width):
        own = replace(own, model_kwargs={"img_size": [height, width]})
    torch.manual_seed(0)
    other = _built(
        lambda: timm.create_model(name, num_classes=1000, in_chans=channels, **own.model_kwargs), own
    )
    _randomize_statistics(other)
    return Source(name, own, other, random=True)


def _by_path(name: str, spec: ModelSpec) -> Source:
    """A trained model, and the plain formulation with its weights where that computes the same."""
    model, own = load_model(name)
    if own.input_size[0] != spec.input_size[0]:
        raise UserError(
            f"{name} takes images of {own.input_size[0]} channels, the first model of"
            f" {spec.input_size[0]}; compare them apart"
        )
    own = replace(own, input_size=spec.input_size)
    plain = isinstance(model, Conformer) and not own.folded and model.config.upsample == "nearest"
    return Source(name, own, model, plain_copy(cast(Conformer, model)) if plain else None)


def _untrained(spec: ModelSpec) -> nn.Module:
    """The network of a spec, without weights."""
    with torch.device("meta"):
        return _built(
            lambda: timm.create_model(
                spec.model, num_classes=spec.num_classes, in_chans=spec.in_chans, **spec.model_kwargs
            ),
            spec,
        )


def _built(build: Callable[[], nn.Module], spec: ModelSpec) -> nn.Module:
    try:
        return build().eval()
    except _IMPOSSIBLE as error:
        size = "x".join(map(str, spec.input_size[1:]))
        raise UserError(f"{spec.model} cannot be built for size {size} ({first_line(error)})") from error


def _randomize_statistics(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            cast(Tensor, module.running_var).uniform_(0.5, 1.5, generator=generator)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean {near[0]}?" if near else ""
