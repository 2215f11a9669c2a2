"""A model of PyTorch that another runtime computes: converted once, checked, and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from conformer_vision import __version__
from conformer_vision.console import note
from conformer_vision.errors import UserError, words
from conformer_vision.extras import naming_extras, require
from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.runs import ModelSource
from conformer_vision.runtime.base import Floats, Outputs, Runtime
from conformer_vision.spec import ModelSpec

from .compare import compare_outputs
from .formats import CALIBRATION_IMAGES, Format, Precision
from .graph import has_fixed_size
from .images import calibration_of, find_images, sample_photos
from .kept import Slot, discard, find_kept, keep, name_of
from .original import Edges, Original


class ConvertedRuntime(Runtime):
    """A model that another runtime computes, with the answers of PyTorch up to rounding.

    Args:
        original: What was converted; its network and weights need not stay in memory.
        graphs: The opened conversion for each size of images.
    """

    def __init__(self, original: Original, graphs: dict[Edges, Runtime]) -> None:
        self._graphs = graphs
        first = next(iter(graphs.values()))
        self.device, self.precision = first.device, first.precision
        self.spec, self.parameters = original.runtime.spec, original.runtime.parameters
        self.class_means = original.runtime.class_means

    def outputs(self, images: Floats) -> Outputs:
        """Compute the logits, and the pooled features where the model gives them."""
        return self._graphs[(images.shape[2], images.shape[3])].outputs(images)

    def check_batch(self, shape: tuple[int, ...], *, batches: int) -> None:
        """Check that main memory holds the computation of images (B, C, H, W)."""
        self._graphs[(shape[2], shape[3])].check_batch(shape, batches=batches)


@dataclass(frozen=True)
class _Graph:
    """One graph to be converted: for one size of images, or for several where the model leaves it free."""

    spec: ModelSpec
    edges: tuple[Edges, ...]
    fixed: bool

    def batches(self) -> Iterator[Floats]:
        """Yield real images (B, C, H, W) of each size, several and one alone."""
        for edges in self.edges:
            photos = sample_photos(_at(self.spec, edges)).numpy()
            yield from (photos, photos[:1])

    def glances(self) -> Iterator[Floats]:
        """Yield an image (1, C, H, W) of each size, made without other libraries."""
        for edges in self.edges:
            coarse = torch.randn(1, self.spec.in_chans, 4, 4, generator=torch.Generator().manual_seed(0))
            yield F.interpolate(coarse, edges, mode="bilinear").numpy()


def open_conversion(
    original: Original, entry: Format, precision: Precision, *, device: str | torch.device, make: bool
) -> ConvertedRuntime | None:
    """Open the conversion of a model that is kept; make it where there is none, or it is not whole.

    Args:
        original: The model.
        entry: Format of the conversion.
        precision: Precision of the conversion.
        device: Where it computes, as for `open_runtime`.
        make: Whether to make it; otherwise the answer is None where none is kept.

    Raises:
        UserError: The model cannot be converted, its answers differ, nothing can be written, or int8 without
            images to calibrate with.
    """
    graphs: dict[Edges, Runtime] = {}
    weights = original.runtime.digest()
    converting = False
    for graph in _graphs(original):
        slot = _slot(original, graph, entry, precision, weights)
        place = find_kept(original.source, slot)
        runtime = None if place is None else _open_kept(original, graph, entry, place, device)
        if runtime is None:
            if not make:
                return None
            if place is not None:
                discard(place)
            if not converting:
                note(f"runtime {entry.name}: converting {original.source.path} once, checked and kept")
                converting = True
            place = _make(original, graph, entry, precision, slot, device)
            runtime = open_runtime(_file(place, entry), device=device)
        graphs |= dict.fromkeys(graph.edges, runtime)
    if not converting:
        note(f"runtime {entry.name}: the conversion of {original.source.path} that is kept")
    return ConvertedRuntime(original, graphs)


def _graphs(original: Original) -> Iterator[_Graph]:
    network = original.runtime.network
    free: list[Edges] = []
    for edges in dict.fromkeys(original.views):
        spec = _at(original.spec, edges)
        if has_fixed_size(network, spec):
            yield _Graph(spec, (edges,), fixed=True)
        else:
            free.append(edges)
    if free:
        yield _Graph(_at(original.spec, free[0]), tuple(free), fixed=False)


def _slot(original: Original, graph: _Graph, entry: Format, precision: Precision, weights: str) -> Slot:
    spec = graph.spec
    facts = {
        "package": __version__,
        "weights": weights,
        "network": [spec.model, spec.model_kwargs, spec.num_classes, spec.in_chans, spec.members],
        "size": spec.input_size if graph.fixed else None,
        "format": [entry.name, precision],
        "libraries": {name: _version(name) for name in ("torch", "timm", *entry.libraries)},
    }
    name = f"{name_of(original.source)}-{entry.name}-{precision}"
    if graph.fixed:
        name += f"-{spec.input_size[1]}x{spec.input_size[2]}"
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Slot(name, key, tuple(path.name for path in entry.files(Path(f"model{entry.suffix}"))))


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
        return str(require(library).__version__)


def _open_kept(
    original: Original, graph: _Graph, entry: Format, place: Path, device: str | torch.device
) -> Runtime | None:
    """Open a conversion that is kept; None where it cannot be, or no longer answers as PyTorch does."""
    try:
        runtime = open_runtime(_file(place, entry), device=device)
        if runtime.precision == "fp32":  # the others were compared on photos, which is all that they are for
            _compare(original, runtime, graph, graph.glances())
    except UserError:
        return None
    return runtime


def _make(
    original: Original,
    graph: _Graph,
    entry: Format,
    precision: Precision,
    slot: Slot,
    device: str | torch.device,
) -> Path:
    calibration = _calibration(original, entry) if precision == "int8" else []

    def write(folder: Path) -> None:
        file = _file(folder, entry)
        spec = replace(graph.spec, folded=False)
        import_module(entry.module).write(
            original.runtime.plain(),
            spec,
            file.path,
            precision=precision,
            calibration=calibration,
            features=True,
        )
        _compare(original, open_runtime(file, device=device), graph, graph.batches())

    with naming_extras():
        return keep(original.source, slot, write)


def _calibration(original: Original, entry: Format) -> list[Tensor]:
    """Prepare the images that `export` calibrates with: training images of the run."""
    other = words(
        f"'conformer-vision export {original.source.path} --format {entry.name} --precision int8 --data ...'",
        "conformer_vision.export with data",
    )
    calibrating = f"{other} writes a file to give instead"
    images = find_images(original.source, None, original.spec, calibrating=calibrating)
    assert images is not None
    return calibration_of(images, original.spec, count=CALIBRATION_IMAGES)


def _compare(original: Original, runtime: Runtime, graph: _Graph, batches: Iterator[Floats]) -> None:
    precision: Precision = runtime.precision  # type: ignore[assignment]
    compare_outputs(
        runtime.outputs,
        original.runtime.outputs,
        graph.spec,
        batches,
        precision=precision,
        temperature=graph.spec.temperature,
    )


def _file(folder: Path, entry: Format) -> ModelSource:
    assert entry.runtime is not None  # a conversion is read back
    return ModelSource(entry.runtime, folder / f"model{entry.suffix}")


def _at(spec: ModelSpec, edges: Edges) -> ModelSpec:
    return replace(spec, input_size=(spec.in_chans, *edges))
