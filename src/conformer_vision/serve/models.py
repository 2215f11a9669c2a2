"""The model that a server answers with, and what its answers say of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from conformer_vision.errors import UserError, first_line
from conformer_vision.model_version import version_of
from conformer_vision.runs import ModelSource, find_model

if TYPE_CHECKING:
    from conformer_vision.explain import Explainer
    from conformer_vision.inference import Prediction, Predictor, Prepared
    from conformer_vision.inference.conversion.choice import RuntimeName
    from conformer_vision.inference.conversion.formats import Precision
    from conformer_vision.runtime.model import InputSize


class Answering(Protocol):
    """What of a `Predictor` a server uses."""

    def read(self, image: bytes, *, name: str | None = None) -> Prepared:
        """Decode and transform one image."""

    def answer(self, images: Sequence[Prepared], *, top_k: int | None = None) -> list[Prediction]:
        """Classify images that were read."""


class ModelInfo(NamedTuple):
    """What answers say of the model."""

    name: str
    """The last part of the path that was given, or the name of published weights."""
    version: str
    """The beginning of the SHA-256 of the file, or the package's version for weights that it downloads."""
    architecture: str
    format: str
    """weights, checkpoint, hf, published, onnx or openvino."""


@dataclass(frozen=True, eq=False)
class Served:
    """A loaded model."""

    info: ModelInfo
    predictor: Answering
    classes: tuple[str, ...]
    multilabel: bool = False
    input_size: tuple[int, ...] = ()
    """Channels, height and width of the network's input."""
    explainer: Explainer | None = None
    """None for an exported file, an ensemble, or a server without explanations."""


@dataclass(frozen=True)
class PredictKey:
    """What images have in common that are answered in one forward pass."""

    model: Served
    top_k: int | None

    def compute(self, prepared: Sequence[Prepared]) -> list[Prediction]:
        """Answer the images."""
        return self.model.predictor.answer(prepared, top_k=self.top_k)


Loader = Callable[[], Served]


@dataclass(frozen=True)
class ModelOptions:
    """Which model is served, and how it computes; as the arguments of `Predictor`."""

    model: str | None = None
    device: str = "auto"
    input_size: InputSize | None = None
    arch: str | None = None
    reject: bool = True
    coverage: float | None = None
    conformal: float | None = None
    tta: str | None = None
    runtime: RuntimeName = "auto"
    precision: Precision | None = None
    explain: bool = True
    """Whether to load the model for explanations too, which takes its memory a second time."""

    def load(self) -> Served:
        """Load the model and answer one grey image with it.

        Raises:
            UserError: As `Predictor`, a file that changes meanwhile, or a model that answers nothing.
        """
        from conformer_vision.inference import Predictor

        name = self.model or _bundled()
        source = find_model(name, arch=self.arch)
        version = version_of(source)
        predictor = Predictor(
            self.model,
            device=self.device,
            input_size=self.input_size,
            arch=self.arch,
            reject=self.reject,
            coverage=self.coverage,
            conformal=self.conformal,
            tta=self.tta,
            runtime=self.runtime,
            precision=self.precision,
        )
        explainer = None
        if self.explain and predictor.explainable:
            from conformer_vision.explain import Explainer

            explainer = Explainer(self.model, device=self.device, input_size=self.input_size, arch=self.arch)
        _try(predictor)
        if version_of(source) != version:
            raise UserError(f"{source.path} changed while it was loaded; load it again when it is complete")
        spec = predictor.spec
        info = ModelInfo(name_of(name, source), version, spec.model, source.kind)
        return Served(info, predictor, predictor.classes, predictor.multilabel, spec.input_size, explainer)


def _bundled() -> str:
    from conformer_vision.models.variants import SHIPPED

    return SHIPPED


def _try(predictor: Predictor) -> None:
    from PIL import Image

    image = Image.new("RGB", (64, 64), "grey")
    try:
        (answer,) = predictor.answer([predictor.read(image, name="a grey image")])
    except UserError:
        raise
    except Exception as error:  # every runtime has kinds of its own
        raise UserError(f"the model answers no image: {first_line(error)}") from error
    if answer.error is not None:
        raise UserError(answer.error)


def name_of(given: str, source: ModelSource) -> str:
    """Return what a model is called in answers: no path of the server."""
    return given if source.kind == "published" else Path(given).absolute().resolve().name
