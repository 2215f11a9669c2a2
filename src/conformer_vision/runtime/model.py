"""A trained model in its runtime, with the transform that prepares its input."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from conformer_vision.errors import UserError, first_line, option, words
from conformer_vision.preprocessing import array_pipeline
from conformer_vision.spec import MIN_SIZE, ModelSpec
from conformer_vision.thresholds import SetRule, Thresholds, check_share

from .base import Floats, Outputs, Runtime
from .unsure import Judge
from .views import Views

InputSize = int | tuple[int, int]


class AnsweringModel:
    """A model that is ready to answer: its runtime, specification and evaluation transform.

    Args:
        path: The file that it comes from, or the name of published weights.
        runtime: What computes it.
        input_size: Pixels of the square input, or (height, width), instead of the specification's.
        views: Looks at every image that the answers are the mean of; one by default.

    Raises:
        UserError: An input size or a view that the network cannot take.
    """

    explainable = False
    """Whether it is one network, inside which `explain` can look."""

    def __init__(
        self, path: Path, runtime: Runtime, *, input_size: InputSize | None = None, views: Views | None = None
    ) -> None:
        self.path, self.runtime = path, runtime
        self.spec = runtime.spec if input_size is None else _resized(runtime.spec, input_size, runtime)
        self.views = views or Views()
        _check_views(self.views, self.spec, runtime)
        self.transform = array_pipeline(self.spec.preprocessing)

    def prepare(self, images: int | None, *, batch_size: int) -> None:
        """Get ready to compute images; an exported file always is.

        Args:
            images: How many will be computed; None where that is not known.
            batch_size: Images per forward pass.
        """

    def check_batch(self, images: int, *, read_ahead: int = 0) -> None:
        """Check that main memory holds so many images at once, and batches that are read ahead.

        Raises:
            UserError: It does not.
        """
        if images and self.runtime.on_cpu:
            height, width = self.spec.input_size[1:]
            edges = max((view.edges(height, width) for view in self.views), key=math.prod)
            self.runtime.check_batch((images, self.spec.in_chans, *edges), batches=2 + read_ahead)

    def outputs(self, images: Floats) -> Outputs:
        """Compute logits and pooled features, each the mean over the views.

        Args:
            images: (B, C, H, W) as the transform gives them.
        """
        runtime = self.runtime  # another thread may prepare it
        found = [runtime.outputs(view.of(images)) for view in self.views]
        if len(found) == 1:
            return found[0]
        heads = {head: np.mean([each.logits[head] for each in found], axis=0) for head in found[0].logits}
        features = [each.features for each in found if each.features is not None]
        return Outputs(heads, np.mean(features, axis=0) if features else None)

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
            runtime(np.zeros((1, spec.in_chans, *edges), dtype=np.float32))
        except Exception as error:  # every runtime has kinds of its own
            raise UserError(f"{problem} ({first_line(error)}); {remedy}") from error


def _resized(spec: ModelSpec, input_size: InputSize, runtime: Runtime) -> ModelSpec:
    """Return the specification with another input size, after trying it with a black image."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    resized = replace(spec, input_size=(spec.in_chans, height, width))
    try:
        runtime(np.zeros((1, *resized.input_size), dtype=np.float32))
    except Exception as error:  # every runtime has kinds of its own
        own = "x".join(map(str, spec.input_size[1:]))
        raise UserError(
            f"input_size {height}x{width}: {spec.model} cannot take it ({first_line(error)}); "
            f"its own size is {own}"
        ) from error
    return resized
