"""A trained model on a device, with the transform that prepares its input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line, option, words
from conformer_vision.inference.conversion.choice import RuntimeChoice, check_export
from conformer_vision.inference.conversion.computing import Computing
from conformer_vision.inference.conversion.original import Original
from conformer_vision.inference.decisions import head_probabilities
from conformer_vision.inference.runtimes import Outputs, Runtime, WeightsRuntime, open_runtime
from conformer_vision.inference.runtimes.base import heads
from conformer_vision.inference.unsure import Judge
from conformer_vision.inference.views import Views
from conformer_vision.memory import check_batch
from conformer_vision.runs import ModelSource, find_model
from conformer_vision.spec import MIN_SIZE, ModelSpec
from conformer_vision.tensors import evaluation_transform
from conformer_vision.thresholds import SetRule, Thresholds, check_share

InputSize = int | tuple[int, int]


class TrainedModel:
    """A trained or exported model with its specification, device and evaluation transform.

    ``path`` is the file that it comes from, or the name of published weights.

    Args:
        model: As for `open_runtime`.
        device: ``auto`` or a torch device.
        input_size: Pixels of the square input, or (height, width), instead of the specification's.
        views: Looks at every image that the answers are the mean of; one by default.
        choice: What may compute it, see `prepare`; by default PyTorch alone, and of an exported file its
            own runtime.

    Raises:
        UserError: As `open_runtime` and `Computing`, or an input size or a view that the network cannot take.
    """

    def __init__(
        self,
        model: str | Path | ModelSource,
        *,
        device: str | torch.device = "auto",
        input_size: InputSize | None = None,
        views: Views | None = None,
        choice: RuntimeChoice | None = None,
    ) -> None:
        source = model if isinstance(model, ModelSource) else find_model(model)
        self.path = source.path
        converted = choice is not None and choice.is_asked_for and not source.exported
        self.runtime: Runtime = open_runtime(source, device="cpu" if converted else device)
        self.spec = self.runtime.spec
        if input_size is not None:
            self.spec = _resized(self.spec, input_size, self.runtime)
        self.views = views or Views()
        _check_views(self.views, self.spec, self.runtime)
        self.device = self.runtime.device
        self.transform = evaluation_transform(self.spec)
        self._computing: Computing | None = None
        if choice is not None and isinstance(self.runtime, WeightsRuntime):
            height, width = self.spec.input_size[1:]
            edges = tuple(view.edges(height, width) for view in self.views)
            original = Original(source, self.runtime, self.spec, edges)
            self._computing = Computing(original, choice, device=device)
        elif choice is not None:
            check_export(choice, source, precision=self.runtime.precision)

    def prepare(self, images: int | None, *, batch_size: int) -> None:
        """Let the fastest exact runtime compute, if it pays for so many images, or the one asked for.

        Args:
            images: How many will be computed; None where that is not known.
            batch_size: Images per forward pass.

        Raises:
            UserError: The runtime that is asked for cannot compute the model.
        """
        if self._computing is not None:
            self.runtime = self._computing.runtime_for(images, batch_size=batch_size)
            self.device = self.runtime.device

    def check_batch(self, images: int, *, read_ahead: int = 0) -> None:
        """Check that main memory holds so many images at once, and batches that are read ahead.

        Raises:
            UserError: It does not.
        """
        if images and self.device.type == "cpu":
            height, width = self.spec.input_size[1:]
            edges = max((view.edges(height, width) for view in self.views), key=math.prod)
            shape = (images, self.spec.in_chans, *edges)
            check_batch(self.runtime.network, _compute, shape, batches=2 + read_ahead)

    def outputs(self, batch: Tensor) -> Outputs:
        """Compute logits and pooled features, each the mean over the views.

        Args:
            batch: (B, C, H, W) as the transform gives them.
        """
        runtime = self.runtime  # another thread may prepare it
        found = [runtime.outputs(view.of(batch)) for view in self.views]
        if len(found) == 1:
            return found[0]
        heads = {head: torch.stack([each.logits[head] for each in found]).mean(0) for head in found[0].logits}
        features = [each.features for each in found if each.features is not None]
        return Outputs(heads, torch.stack(features).mean(0) if features else None)

    def judge(self, *, coverage: float | None = None) -> Judge | None:
        """Return what tells unsure answers; None for a model without thresholds.

        Args:
            coverage: See `Judge`; with it, a model without thresholds is an error.

        Raises:
            UserError: As `Judge`.
        """
        thresholds = self.spec.thresholds
        if coverage is not None:
            thresholds = self.need_thresholds(option("coverage", coverage))
        if not isinstance(thresholds, Thresholds):
            return None
        return Judge(thresholds, self.runtime.class_means, coverage=coverage)

    def set_rule(self, error_rate: float) -> SetRule:
        """Return the rule of conformal sets.

        Raises:
            UserError: The model has none, it would not hold for other inputs than those it was fitted on, or
                as `SetRule.threshold`.
        """
        name = option("conformal", error_rate)
        check_share("conformal", error_rate)
        thresholds = self.need_thresholds(name)
        if self.views != Views():
            raise UserError(f"{name} holds for a single look at each image; leave {option('tta')} out")
        if self.spec.input_size[1:] != thresholds.input_size:
            own = "x".join(map(str, thresholds.input_size))
            raise UserError(f"{name} holds for the input size {own}; leave {option('input_size')} out")
        thresholds.sets.threshold(error_rate)
        return thresholds.sets

    def need_thresholds(self, name: str) -> Thresholds:
        """Return the model's thresholds, for an option that needs them.

        Raises:
            UserError: It has none.
        """
        if self.spec.multilabel:
            raise UserError(
                f"{name} is for models of one label per image; {self.path} answers any number of them, so no "
                "answer is unsure: leave it out"
            )
        if not isinstance(self.spec.thresholds, Thresholds):
            report = words("'conformer-vision report RUN'", "conformer_vision.report.write_report")
            raise UserError(f"{name}: {self.path} has no thresholds; {report} fits those of a run")
        return self.spec.thresholds

    @property
    def notes(self) -> list[str]:
        """What a reader of the answers should know, in lines."""
        lines = []
        if self.views != Views():
            lines.append(f"test-time augmentation: {self.views.cost}")
        thresholds = self.spec.thresholds
        if thresholds is not None and self.spec.input_size[1:] != thresholds.input_size:
            size = "x".join(map(str, thresholds.input_size))
            what = "the thresholds of the classes were" if self.spec.multilabel else "what is unsure was"
            less = "they are" if self.spec.multilabel else "it is"
            lines.append(f"{what} fitted at {size} pixels; at another size {less} less reliable")
        return lines

    def probabilities(self, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """Turn logits into probabilities per head (B, K); those of ``fused`` at the model's temperature."""
        return head_probabilities(logits, self.spec)


def _compute(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        heads(model, images)


def _check_views(views: Views, spec: ModelSpec, runtime: Runtime) -> None:
    """Try the views that are of another size than the input, with a black image."""
    height, width = spec.input_size[1:]
    for edges in {view.edges(height, width) for view in views} - {(height, width)}:
        size = "x".join(map(str, edges))
        problem = f"tta: {spec.model} cannot take {size}, a scale of {height}x{width}"
        remedy = "give other scales, or flip alone"
        if min(edges) < MIN_SIZE:
            raise UserError(f"{problem} (each edge must be {MIN_SIZE} pixels or more); {remedy}")
        try:
            runtime(torch.zeros(1, spec.in_chans, *edges))
        except Exception as error:  # every runtime has kinds of its own
            raise UserError(f"{problem} ({first_line(error)}); {remedy}") from error


def _resized(spec: ModelSpec, input_size: InputSize, runtime: Runtime) -> ModelSpec:
    """Return the specification with another input size, after trying it with a black image."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    resized = replace(spec, input_size=(spec.in_chans, height, width))
    try:
        runtime(torch.zeros(1, *resized.input_size))
    except Exception as error:  # every runtime has kinds of its own
        own = "x".join(map(str, spec.input_size[1:]))
        raise UserError(
            f"input_size {height}x{width}: {spec.model} cannot take it ({first_line(error)}); "
            f"its own size is {own}"
        ) from error
    return resized
