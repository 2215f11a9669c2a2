"""From models to subjects: the file of every form, and the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from conformer_vision.errors import UserError
from conformer_vision.export import write_network
from conformer_vision.export.formats import FORMATS, find_format
from conformer_vision.inference.conversion.images import sample_photos
from conformer_vision.models import Conformer
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

from .config import COMPILE_MODES, TORCH_KINDS, ComparisonConfig, Runtime
from .sources import Source, check_names, first_spec, open_source
from .subjects import Subject, save_reference

_AT_ONCE = 8
"""Images of one batch of the calibration."""


@dataclass
class Prepared:
    """Everything that `compare` measures."""

    shape: tuple[int, int, int]
    """(C, H, W) of every image."""
    images: Tensor
    """Some prepared photos (N, C, H, W)."""
    subjects: list[Subject] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    random_weights: bool = False
    kept_float: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Model and runtime -> parts that int8 leaves in float."""

    def leave_out(self, line: str, *, strict: bool) -> None:
        """Notes what cannot be measured.

        Raises:
            UserError: it was asked for by name.
        """
        if strict:
            raise UserError(line)
        self.left_out.append(line)

    def batch(self, size: int) -> Tensor:
        """So many images; they repeat."""
        return self.images[torch.arange(size) % len(self.images)]


def prepare(
    config: ComparisonConfig, folder: Path, *, device: torch.device, say: Callable[[str], None]
) -> Prepared:
    """Builds all models and writes each in every form that is wanted.

    Args:
        config: what is wanted.
        folder: takes the files.
        device: of the subjects.
        say: is told every step in one line.

    Raises:
        UserError: no such model, one that does not take the images, or a form that was asked for by name
            and cannot be had.
    """
    check_names(config)
    spec = first_spec(config)
    prepared = Prepared(spec.input_size, _images(spec))
    own = _supported(config.own_runtimes, prepared, strict=config.is_strict(peer=False))
    of_peers = _supported(config.runtimes_of_peers, prepared, strict=True)
    names = [(name, False) for name in config.models] + [(name, True) for name in config.own_peers]
    for number, (name, peer) in enumerate(names):
        say(f"preparing {name}")
        try:
            source = open_source(name, spec)
        except UserError as error:
            prepared.leave_out(str(error), strict=not peer or config.is_strict(peer=True))
            continue
        prepared.random_weights |= source.random
        place = folder / str(number)
        place.mkdir()
        files: dict[str, Path] = {}
        for runtime in _runtimes(source, of_peers if peer else own):
            try:
                path, kept = _write(source, runtime, place, files, prepared.images)
            except UserError as error:
                line = f"{source.label} {runtime.name}: {error}"
                prepared.leave_out(line, strict=config.is_strict(peer=peer))
                continue
            if kept:
                prepared.kept_float[f"{source.label} {runtime.name}"] = kept
            prepared.subjects.append(
                Subject(
                    model=name,
                    runtime=runtime,
                    path=str(path),
                    device=str(device),
                    peer=peer,
                    parameters=source.parameters,
                    macs=source.macs(runtime),
                )
            )
    return prepared


def _supported(runtimes: list[Runtime], prepared: Prepared, *, strict: bool) -> list[Runtime]:
    """Those whose libraries are installed."""
    found = []
    for runtime in runtimes:
        try:
            if runtime.kind not in TORCH_KINDS:
                find_format(runtime.kind).check(runtime.precision, among=FORMATS.values())
        except UserError as error:
            prepared.leave_out(str(error), strict=strict)
            continue
        found.append(runtime)
    return found


def _runtimes(source: Source, wanted: list[Runtime]) -> list[Runtime]:
    """What can run a source: the plain formulation is of Conformers alone."""
    return [runtime for runtime in wanted if runtime != Runtime("reference") or source.reference is not None]


def _write(
    source: Source, runtime: Runtime, folder: Path, files: dict[str, Path], images: Tensor
) -> tuple[Path, tuple[str, ...]]:
    """The file of a runtime, and what int8 leaves in float in it; PyTorch's own kinds share theirs.

    Raises:
        UserError: the model cannot be had in this form.
    """
    in_torch = runtime.kind in TORCH_KINDS
    form = runtime.kind
    if form in COMPILE_MODES:
        form = "folded" if form.startswith("folded") else "eager"
    key = form if in_torch else runtime.name
    if key in files:
        return files[key], ()
    path = folder / f"{key}{find_format('folded' if in_torch else form).suffix}"
    model = source.model
    kept: tuple[str, ...] = ()
    if form == "reference":
        if source.reference is None:
            raise UserError("there is no plain formulation of this model")
        save_reference(source.reference, path, head_fusion=getattr(model, "head_fusion", "mean"))
    elif form == "folded":
        if not isinstance(model, Conformer):
            raise UserError("only Conformers are folded")
        save_model(model.fold(), source.spec, path)
    elif form == "eager":
        save_model(model, source.spec, path)
    else:
        kept = write_network(
            model,
            source.spec,
            path,
            format=form,
            precision=runtime.precision,
            calibration=images.split(_AT_ONCE) if runtime.precision == "int8" else (),
        )
    files[key] = path
    return path, kept


def _images(spec: ModelSpec) -> Tensor:
    """Prepared crops (N, C, H, W) of photos that an installed package ships, and their mirror images."""
    photos = sample_photos(spec)
    return torch.cat([photos, photos.flip(3)])
