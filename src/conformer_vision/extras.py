"""Libraries that may be missing: what installs each, and one clear line where one is.

An installation that only reads exported files lacks PyTorch too (docs/predict.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from conformer_vision.errors import UserError, first_line

_EXTRAS = {
    "datasets": "train",
    "jinja2": "train",
    "lightning": "train",
    "markupsafe": "train",
    "matplotlib": "train",
    "psutil": "train",
    "pyarrow": "train",
    "scipy": "train",
    "sklearn": "train",
    "torchmetrics": "train",
    "imagehash": "check",
    "torchcam": "explain",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "openvino": "export",
    "prometheus_client": "serve",
    "python_multipart": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "httpx": "client",
    "ray": "scale",
    "mlflow": "mlflow",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Top-level module -> extra of this package that installs it; tests compare it with the metadata."""
_FOR_EXPORTS = ("onnxruntime", "openvino")
"""What runs exported files; installed alone where there is no PyTorch."""
_CORE = ("timm", "torch", "torchvision", "safetensors", "yaml")
"""Modules that the package installs without any extra, and that exported files do without."""


class MissingExtraError(UserError, ImportError):
    """An optional library is missing; the message has the pip command that installs it."""


def require(module: str) -> Any:
    """Import a module of an optional library.

    Raises:
        MissingExtraError: It is not installed or cannot be imported.
    """
    with naming_extras():
        return import_module(module)


def check_installed(*libraries: str) -> None:
    """Check that optional libraries are there, without the time that importing them takes.

    Raises:
        MissingExtraError: One is not installed.
    """
    for library in libraries:
        if not _is_installed(library):
            raise MissingExtraError(_line(library, "is not installed"))


@contextmanager
def naming_extras() -> Iterator[None]:
    """Turn the failed import of an optional library inside the block into a line that names its extra.

    Raises:
        MissingExtraError: Instead of the library's ImportError; all other errors pass unchanged.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS and library not in _CORE:
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        problem = "is not installed" if missing else f"cannot be imported ({first_line(error)})"
        raise MissingExtraError(_line(library, problem)) from error


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # something hides it
        return False


def _line(library: str, problem: str) -> str:
    if library in _FOR_EXPORTS and not _is_installed("torch"):
        return f"{library} {problem}: pip install {library}"
    package = f"'conformer-vision[{_EXTRAS[library]}]'" if library in _EXTRAS else "conformer-vision"
    return f"{library} {problem}: pip install {package}"
