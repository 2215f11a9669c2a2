"""What tells the content of a model from any other."""

from __future__ import annotations

import hashlib

from conformer_vision import __version__
from conformer_vision.errors import UserError
from conformer_vision.runs import HF_WEIGHTS, ModelSource

_DIGITS = 12
_CHUNK = 1 << 20


def version_of(source: ModelSource) -> str:
    """Return what tells the content of a model from any other.

    Raises:
        UserError: Its file cannot be read.
    """
    if source.kind == "published":
        return __version__
    paths = [source.path / HF_WEIGHTS] if source.kind == "hf" else [source.path]
    if source.kind == "openvino":
        paths.append(source.path.with_suffix(".bin"))
    digest = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:_DIGITS]
