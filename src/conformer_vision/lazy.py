"""Public names that are imported when they are first used.

A package lists its public names once, as imports under ``if TYPE_CHECKING:``, which type checkers and editors
read::

    if TYPE_CHECKING:
        from .evaluation import evaluate as evaluate

    __getattr__, __dir__, __all__ = attach(__name__)

`attach` reads the same lines. Users of the network do not wait for the libraries of training, nor need them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from conformer_vision.extras import naming_extras


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__`` (PEP 562), ``__dir__`` and ``__all__`` of a package.

    Args:
        package: Its ``__name__``. A name that is imported ``from .`` is a subpackage or module of it.
    """
    module = sys.modules[package]
    assert module.__spec__ is not None and module.__spec__.loader is not None
    homes = dict(_public_names(module.__spec__.loader.get_source(package)))  # type: ignore[attr-defined]

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with naming_extras():
            home = homes[name]
            value = import_module(f"{package}.{home}") if home else import_module(f"{package}.{name}")
            value = getattr(value, name) if home else value
        setattr(module, name, value)  # found at once from now on
        return value

    def names() -> list[str]:
        return sorted({*homes, *(name for name in vars(module) if name.startswith("__"))})

    return find, names, sorted(homes)


def _public_names(source: str) -> Iterator[tuple[str, str]]:
    """Yield the names imported under ``if TYPE_CHECKING:`` with the module they come from."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for line in statement.body:
                if isinstance(line, ast.ImportFrom) and line.level == 1:
                    yield from ((name.asname or name.name, line.module or "") for name in line.names)
