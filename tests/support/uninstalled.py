"""Libraries that a new process does not find."""

from collections.abc import Iterable

_HIDE = """
from importlib.machinery import PathFinder

hidden, find_installed = {names}, PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find_installed(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
"""


def without(names: Iterable[str]) -> str:
    """The beginning of a program for which libraries are not installed."""
    return _HIDE.format(names=set(names))
