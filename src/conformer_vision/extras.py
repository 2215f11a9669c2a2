"""The optional libraries: which extra installs each, and one clear line where one is missing."""

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
    "mlflow": "mlflow",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Top-level module -> extra of this package that installs it; tests compare it with the metadata."""


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
        try:
            found = find_spec(library) is not None
        except ImportError:  # an import hook that hides it
            found = False
        if not found:
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
        if library not in _EXTRAS:
            raise
        missing = isinstance(error, ModuleNotFoundError) and error.name == library
        problem = "is not installed" if missing else f"cannot be imported ({first_line(error)})"
        raise MissingExtraError(_line(library, problem)) from error


def _line(library: str, problem: str) -> str:
    return f"{library} {problem}: pip install 'conformer-vision[{_EXTRAS[library]}]'"
