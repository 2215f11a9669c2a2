"""What an exported PyTorch file may hold, looked at before PyTorch loads it.

``torch.export.load`` unpickles and evaluates parts of a file, and a TorchScript file may write to the disk:
loading one runs what is in it. A file of ``conformer-vision export`` needs nothing of the kind, so that
whatever else there is can be refused.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from conformer_vision.errors import UserError

_PLAIN_ENTRIES = re.compile(
    r"\.data/\w+|byteorder|version|archive_(format|version)|extra/\w+"
    r"|data/(weights|constants)/(\w+_config\.json|(weight|tensor)_\d+)"
    r"|models/model\.json|data/sample_inputs/model\.pt"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|torch\.sym_(max|min|int|float|not|ite)"
)
_DANGEROUS_ATEN = re.compile(r"torch\.ops\.aten\.(save|from_file|_from_file|to_mkldnn)\b")
_FUNCTIONS = frozenset(
    {"Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "Max", "Min"}
    | {"FloorDiv", "CleanDiv", "CeilToInt", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "Eq", "Ne", "Equality"}
    | {"Unequality", "Relational", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"}
    | {"And", "Or", "Not", "ceiling", "floor"}
)
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Load, ast.keyword),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_TORCHSCRIPT_FORBIDDEN = re.compile(
    r"\btorch\.(save|from_file|load|classes)\b|\bops\.(?!prim\b)|__setstate__|__getstate__|__torch__\.torch\.classes"
)


def check_export_archive(path: Path) -> None:
    """Refuses a ``torch.export`` file that holds pickled objects, or operators beside PyTorch's own.

    Raises:
        UserError: it does, or it is not such a file.
    """
    with _archive(path) as archive:
        entries = {name.partition("/")[2]: name for name in archive.namelist()}
        for entry in entries:
            if not _PLAIN_ENTRIES.fullmatch(entry):
                raise _refused(path, f"the unexpected entry {entry!r}")
        model = _json(archive, entries.get("models/model.json"), path)
        for entry, name in entries.items():
            if entry.endswith("_config.json"):
                _check_payloads(_json(archive, name, path), path)
        if (inputs := entries.get("data/sample_inputs/model.pt")) is not None:
            _check_pickle(archive.read(inputs), path)
    for key, value in _strings(model):
        if key in ("target", "as_operator"):
            if not _OPERATORS.fullmatch(value) or _DANGEROUS_ATEN.match(value):
                raise _refused(path, f"the operator {value!r}")
        elif key in ("expr_str", "guards_code"):
            _check_expression(value, path)


def check_torchscript(path: Path) -> None:
    """Refuses a TorchScript file whose code reads or writes files or calls other libraries.

    Raises:
        UserError: it does, or it is not such a file.
    """
    with _archive(path) as archive:
        names = archive.namelist()
        if not any(PurePosixPath(name).name == "data.pkl" for name in names):
            raise UserError(f"{path} is no TorchScript file; export the model again")
        for name in names:
            if name.endswith(".py") and (found := _TORCHSCRIPT_FORBIDDEN.search(_text(archive, name, path))):
                raise _refused(path, repr(found[0]))


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds {what}, which an export of conformer-vision never does; it is not loaded, for what it"
        " holds would be run"
    )


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{path} is not a whole {path.suffix} file ({error}); copy it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _text(archive: zipfile.ZipFile, name: str, path: Path) -> str:
    try:
        return archive.read(name).decode()
    except (zipfile.BadZipFile, UnicodeDecodeError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: cannot read its {name} ({error}); copy it again") from error


def _json(archive: zipfile.ZipFile, name: str | None, path: Path) -> Any:
    if name is None:
        raise UserError(
            f"{path} is no file of torch.export as PyTorch 2.8 and later write it; export the model again"
        )
    try:
        return json.loads(_text(archive, name, path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {name} is not JSON ({error}); export the model again") from error


def _check_payloads(config: Any, path: Path) -> None:
    payloads = config.get("config") if isinstance(config, dict) else None
    if not isinstance(payloads, dict):
        raise UserError(f"{path}: the list of its weights cannot be read; export the model again")
    for payload in payloads.values():
        plain = isinstance(payload, dict) and payload.get("use_pickle") is False
        if not plain or not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
            raise _refused(path, "a pickled object")


def _check_pickle(content: bytes, path: Path) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError) as error:
        raise _refused(path, "a pickled object") from error


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value with the key it lies under."""
    pending = [(key, value)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += [(key, item) for item in value]
        elif isinstance(value, str):
            yield key, value


def _check_expression(text: str, path: Path) -> None:
    """Arithmetic on sizes only: PyTorch evaluates the text."""
    try:
        tree = ast.parse(text, mode="eval")
        allowed = all(_is_arithmetic(node) for node in ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        allowed = False
    if not allowed:
        raise _refused(path, f"the expression {text[:60]!r}")


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or bool(re.fullmatch(r"\w+", str(node.value)))
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name | ast.Attribute)
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or node.id == "L" or bool(re.fullmatch(r"[a-z]+\d+", node.id))
    if isinstance(node, ast.Attribute):  # L['images'].size()[2]
        return node.attr == "size" and isinstance(node.value, ast.Subscript)
    return isinstance(node, (*_ARITHMETIC, ast.Subscript))
