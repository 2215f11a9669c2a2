"""Public names that are imported when they are first used.

A package lists its public names once, as imports under ``if TYPE_CHECKING:``, which type checkers and editors
read::

    if TYPE_CHECKING:
        from .evaluation import evaluate as evaluate

    __getattr__, __dir__, __all__ = attach(__name__)

`attach` reads the same lines. Users of the network do not wait for the libraries of training, nor need them.

A package with a function of its own name, such as `export`, can be called: ``conformer_vision.export(run)``
and ``conformer_vision.export.export(run)`` are the same, whatever was imported before.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from conformer_vision.extras import naming_extras


class CallablePackage(ModuleType):
    """A package that calls the function of its own name, and shows that function's signature."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._function)

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(self, _last(self.__name__))
        return function


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__`` (PEP 562), ``__dir__`` and ``__all__`` of a package.

    Args:
        package: Its ``__name__``. A name imported from a subpackage of the same name means that subpackage,
            which can be called; type checkers see the function.
    """
    module = sys.modules[package]
    assert module.__spec__ is not None and module.__spec__.loader is not None
    homes = dict(_public_names(module.__spec__.loader.get_source(package)))  # type: ignore[attr-defined]
    if _last(package) in homes:
        module.__class__ = CallablePackage

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with naming_extras():
            home = import_module(f"{package}.{homes[name]}")
            value = home if homes[name] == name else getattr(home, name)
        setattr(module, name, value)  # found at once from now on
        return value

    def names() -> list[str]:
        return sorted({*homes, *(name for name in vars(module) if name.startswith("__"))})

    return find, names, sorted(homes)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _public_names(source: str) -> Iterator[tuple[str, str]]:
    """Yield the names imported under ``if TYPE_CHECKING:`` with the module they come from."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for line in statement.body:
                if isinstance(line, ast.ImportFrom) and line.level == 1 and line.module:
                    yield from ((name.name, line.module) for name in line.names)
