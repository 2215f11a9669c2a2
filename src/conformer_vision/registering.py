"""Register the models with timm as soon as a program uses timm, and not before.

Programs that import this package for other things, such as exported files, need neither timm nor PyTorch, and
do not wait for them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_MODELS = "conformer_vision.models"


def register_with_timm() -> None:
    """Register the models now if timm is loaded, else right after it is imported for the first time."""
    if sys.modules.get("timm") is not None:
        import_module(_MODELS)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds timm as Python would, and lets it be loaded by `_RegisteringLoader`.

    It stays until timm is loaded: programs such as transformers look for timm long before they import it.
    """

    def __init__(self) -> None:
        self._looking = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm" or getattr(self._looking, "begun", False):
            return None
        self._looking.begun = True
        try:
            spec = find_spec("timm")
        except (ImportError, ValueError):  # something hides it
            spec = None
        finally:
            self._looking.begun = False
        if spec is None or spec.loader is None:
            return None  # it may be installed later
        spec.loader = _RegisteringLoader(spec.loader, self)
        return spec


class _RegisteringLoader(Loader):
    """Loads timm, then the models, which register themselves."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        """Answer whoever looks at timm without importing it as Python's own loader does."""
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader  # nobody else sees this one
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        import_module(_MODELS)
