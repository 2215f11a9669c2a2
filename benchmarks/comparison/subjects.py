"""One network in one form, opened from its file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.runtime.base import FUSED
from conformer_vision.weights import load_model
from oracle import ReferenceConfig, ReferenceConformer

from .config import COMPILE_MODES, TORCH_KINDS, Runtime

_REFERENCE_KEY = "plain_formulation"
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_MOST_GRAPHS = 1024
"""Graphs that torch.compile may keep of one function: all Conformers share their code."""

Call = Callable[[Tensor], Tensor]
"""Images (B, C, H, W), float32, to logits (B, K), float32; when it returns the work is done."""


@dataclass(frozen=True)
class Subject:
    """What takes turns with the others.

    Args:
        model: name or path, as it was given.
        runtime: what runs it.
        path: file that it is opened from.
        device: torch's name of the device.
        peer: measured beside the models that were asked for.
        parameters: as trained; None where that is not known.
        macs: multiply-adds per image; None where that is not known.
    """

    model: str
    runtime: Runtime
    path: str
    device: str = "cpu"
    peer: bool = False
    parameters: int | None = None
    macs: int | None = None

    @property
    def name(self) -> str:
        """Of model and runtime."""
        return f"{self.model} {self.runtime.name}"

    def to_json(self) -> str:
        """For `from_json` in another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Subject:
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(**values | {"runtime": Runtime(**values["runtime"])})


class _Mean(nn.Module):
    """The plain formulation with its heads joined as in the model whose weights it has."""

    def __init__(self, reference: ReferenceConformer, factor: float) -> None:
        super().__init__()
        self.reference = reference
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        branches = self.reference(images)
        logits: Tensor = (branches.conv + branches.trans) * self.factor
        return logits


def save_reference(reference: ReferenceConformer, path: Path, *, head_fusion: str = "mean") -> None:
    """Writes the plain formulation for `open_subject`."""
    note = {"config": asdict(reference.config), "factor": 0.5 if head_fusion == "mean" else 1.0}
    tensors = {name: tensor.detach().contiguous() for name, tensor in reference.state_dict().items()}
    save_file(tensors, path, metadata={_REFERENCE_KEY: json.dumps(note)})


def _load_reference(path: str) -> nn.Module:
    with safe_open(path, framework="pt", device="cpu") as file:
        note = json.loads(file.metadata()[_REFERENCE_KEY])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config: dict[str, Any] = note["config"] | {"depths": tuple(note["config"]["depths"])}
    with torch.device("meta"):
        reference = ReferenceConformer(ReferenceConfig(**config))
    reference.load_state_dict(weights, assign=True)
    return _Mean(reference, note["factor"])


def open_subject(subject: Subject) -> Call:
    """The network of a subject's file, ready to be called.

    Raises:
        UserError: as `load_model` and `open_runtime`.
    """
    device = torch.device(subject.device)
    in_torch = subject.runtime.kind in TORCH_KINDS
    as_predict = subject.runtime.kind == "folded" and subject.runtime.precision == "fp32"
    call = _open_torch(subject, device) if in_torch and not as_predict else _open_runtime(subject)
    if device.type != "cuda":
        return call

    def finished(images: Tensor) -> Tensor:
        logits = call(images)
        torch.cuda.synchronize(device)
        return logits

    return finished


def _open_torch(subject: Subject, device: torch.device) -> Call:
    kind, dtype = subject.runtime.kind, _TYPES[subject.runtime.precision]
    model = _load_reference(subject.path) if kind == "reference" else load_model(subject.path)[0]
    model = model.eval().requires_grad_(False).to(device, dtype)
    # On the CPU the layout in which `open_runtime` has it; on a GPU the one that its tensor cores read.
    if kind.startswith("folded") and (device.type == "cpu" or dtype != torch.float32):
        model = model.to(memory_format=torch.channels_last)
    network: Callable[[Tensor], Tensor] = model
    if kind in COMPILE_MODES:
        # One graph per size of the batch: a graph for all of them would be slower.
        network = torch.compile(model, dynamic=False, mode=COMPILE_MODES[kind])

    @torch.inference_mode()
    def call(images: Tensor) -> Tensor:
        return network(images.to(device, dtype)).float()

    return call


def _open_runtime(subject: Subject) -> Call:
    """Open a file as predict does."""
    network = open_runtime(subject.path, device=subject.device)
    return lambda images: torch.from_numpy(network(images.cpu().numpy())[FUSED])


@contextmanager
def measuring(threads: int) -> Iterator[None]:
    """Settings of PyTorch under which subjects are opened and called; restored afterwards.

    float32 is exact on a GPU too (without TF32), and torch.compile may keep a graph for every subject.

    Args:
        threads: on the CPU.
    """
    import torch._dynamo

    before = torch.get_num_threads()
    # It warns where there is nvcc but no GPU, which is nothing to a benchmark on the CPU.
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False)
    # The names of both limits in torch 2.6, which later ones keep as aliases.
    limits = ("cache_size_limit", "accumulated_cache_size_limit")
    graphs = torch._dynamo.config.patch(dict.fromkeys(limits, _MOST_GRAPHS))
    try:
        with cudnn, graphs:
            yield
    finally:
        torch.set_num_threads(before)
        logger.setLevel(level)
