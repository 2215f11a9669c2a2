"""A model as a graph of operators, for any number of images and, if the model allows it, any size."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from conformer_vision.errors import UserError, first_line
from conformer_vision.inference.runtimes.network import Answers, heads, heads_and_features
from conformer_vision.memory import measured_memory
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.runtime.base import INPUT, OUTPUTS
from conformer_vision.spec import ModelSpec

from .formats import Precision

_MEASURED = 4
"""Images whose memory is measured."""
_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


class InferenceForm(nn.Module):
    """A classifier with float32 input and outputs, whatever type it computes in.

    Args:
        model: The classifier.
        dtype: The type it computes in.
        features: Whether to give the pooled features too, where the model has any.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, features: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype
        self.features = features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the logits (B, K) of every head, in the order of `OUTPUTS`, then the features (B, F)."""
        images = images.to(self.dtype)
        if self.features:
            found = heads_and_features(self.model, images)
        else:
            found = Answers(heads(self.model, images), None)
        logits = tuple(found.logits[head].float() for head in OUTPUTS if head in found.logits)
        return logits if found.features is None else (*logits, found.features.float())


def inference_form(model: nn.Module, precision: Precision, *, features: bool = False) -> InferenceForm:
    """Copy a model for inference: folded if it is a Conformer, converted, with all its heads as outputs.

    Args:
        model: Left as it was.
        precision: int8 gives a float32 model, to be quantised.
        features: As for `InferenceForm`.
    """
    if isinstance(model, Conformer | Ensemble):
        model = deepcopy(model).eval() if model.folded else model.fold()
        for member in model.modules():
            if isinstance(member, Conformer):
                member.set_distilled_training(False)
    else:
        model = deepcopy(model).eval()
    model = model.cpu().requires_grad_(False).to(_TYPES[precision]).to(memory_format=torch.contiguous_format)
    return InferenceForm(model, _TYPES[precision], features=features)


def has_fixed_size(model: nn.Module, spec: ModelSpec) -> bool:
    """Tell whether the exported model takes images of the specification's size only.

    torch.export turns a size of 1 into a constant. A Conformer whose last feature map has a single cell at
    the specification's size is therefore fixed to that size, and so is every other model, which may have more
    such conditions.
    """
    if isinstance(model, Ensemble):
        return has_fixed_size(model.members[0], spec)
    if not isinstance(model, Conformer):
        return True
    return min(spec.input_size[1:]) <= int(model.feature_info[-1]["reduction"])


def example(model: nn.Module, spec: ModelSpec) -> Tensor:
    """Make two images (2, C, H, W) for tracing; H and W differ if they are free."""
    channels, height, width = spec.input_size
    return torch.zeros(2, channels, height if has_fixed_size(model, spec) else height + 32, width)


def build_program(
    model: nn.Module, spec: ModelSpec, precision: Precision, *, features: bool = False
) -> ExportedProgram:
    """Trace the graph of `inference_form`.

    Raises:
        UserError: The model cannot be exported.
    """
    form = inference_form(model, precision, features=features)
    size = {} if has_fixed_size(model, spec) else {2: Dim.AUTO, 3: Dim.AUTO}
    try:
        with torch.no_grad(), quiet():
            program = export(form, (example(model, spec),), dynamic_shapes={INPUT: {0: Dim.AUTO, **size}})
    except Exception as error:  # torch.export raises anything on other models' code
        raise UserError(f"model {spec.model} cannot be exported ({first_line(error)})") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


@torch.no_grad()
def memory_per_image(model: nn.Module, spec: ModelSpec) -> str:
    """Return the bytes that computing an image takes, as a file says it; measured with a few."""
    images = torch.zeros(_MEASURED, *spec.input_size)
    return str(measured_memory(lambda: heads(model, images)) // _MEASURED)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress and advice of the exporters, which also goes to the root logger and to stdout."""
    loggers = {logger: logger.level for logger in (logging.getLogger(), logging.getLogger("torch.onnx"))}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
