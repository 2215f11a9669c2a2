"""One small run and each export format of it, made once in a test session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save

from command_line import run
from conformer_vision.export import torch_export
from conformer_vision.inference.conversion import graph, onnx
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

FILES = {
    "folded": "model-folded.safetensors",
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "torch-export": "model.pt2",
}
# In one process of pytest-xdist: making the files takes longer than looking at them.
WITH_EXPORTS = [pytest.mark.xdist_group("export"), pytest.mark.timeout(300)]


def with_exports(test: Callable[..., Any]) -> Callable[..., Any]:
    """Mark one test of a file as `WITH_EXPORTS` marks whole files."""
    for mark in WITH_EXPORTS:
        test = mark(test)
    return test


SPEC = ModelSpec(
    "conformer_nano_patch8_64",
    {
        "depths": [2, 1, 2],
        "channel_ratio": 0.5,
        "embed_dim": 32,
        "num_heads": 2,
        "stem_width": 32,
        "zero_init_last": False,
    },
    tuple("0123456789"),
    (3, 32, 32),
    crop_pct=1.0,
)


def write_run(folder: Path, spec: ModelSpec) -> Path:
    """A run folder whose network answers different images differently, and each head on its own."""
    folder.mkdir()
    torch.manual_seed(1)
    shape = {"num_classes": spec.num_classes, "in_chans": spec.in_chans}
    model = timm.create_model(spec.model, **shape, **spec.model_kwargs)
    batch = torch.randn(32, *spec.input_size)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    with torch.no_grad():
        for _ in range(5):  # running statistics that fit the activations
            model.train()(batch)
        model.eval()
        for head in (layer for layer in layers if layer.out_features == spec.num_classes):
            seen: list[torch.Tensor] = []  # to spread the logits around 0 with a deviation of 2
            with head.register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output)):
                model(batch)
            head.weight.mul_(2 / seen[0].std())
            head.bias.sub_(2 * seen[0].mean(dim=0) / seen[0].std())
    save_model(model, spec, folder / "best.safetensors")
    return folder


def make_run(folder: Path) -> Path:
    """A run folder for the digits."""
    write_run(folder, SPEC)
    (folder / "config.yaml").write_text("data: digits\nval_fraction: 0.1\nseed: 0\n")
    return folder


_MADE: dict[tuple[Any, ...], Any] = {}


def _once(make: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(make)
    def made(model: torch.nn.Module, spec: ModelSpec, precision: Any, *, features: bool = False) -> Any:
        kind = "fp32" if precision == "int8" else precision  # int8 starts from float32
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        weights = sha256(save(state)).digest()
        key = (make.__name__, spec.model, spec.input_size, kind, features, weights)
        if key not in _MADE:
            _MADE[key] = make(model, spec, precision, features=features)
        return deepcopy(_MADE[key])

    return made


@contextmanager
def shared_graphs() -> Iterator[None]:
    """Make the program and the ONNX graph of each model once, which takes longer than all else.

    OpenVINO's files and int8 start from the graph in float32.
    """
    with pytest.MonkeyPatch.context() as patch:
        build_program = _once(graph.build_program)
        patch.setattr(onnx, "build_program", build_program)
        patch.setattr(torch_export, "build_program", build_program)
        patch.setattr(onnx, "build_graph", _once(onnx.build_graph))
        yield


def make_exports(folder: Path) -> Path:
    """The run folder with every format in float32, written by the command."""
    make_run(folder)
    with shared_graphs():
        for name, file in FILES.items():
            done = run("export", folder, "--format", name)
            assert done.status == 0, done.err
            assert f"{folder / file}: {name}, fp32" in done.out
            assert "largest difference from the model on 19 images" in done.out
    return folder
