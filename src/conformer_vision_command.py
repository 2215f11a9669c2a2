"""The entry point of the command ``conformer-vision``.

It is outside the package because importing the package registers its models with timm, for which it imports
torch. The package leaves that out where this module was imported before it: the subcommands that need the
models import them, ``--help`` and the processes that only read images do not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable


def main() -> int:
    """Run the command line; return the exit status."""
    try:
        from conformer_vision.cli import main as run
    except KeyboardInterrupt:  # an impatient Ctrl-C
        return 130
    return run()


def call(function: Callable[..., object], *arguments: object) -> None:
    """Call a function of the package in a process of the command's.

    A new process that unpickles this call imports this module first, so that the package does not register
    its models there.
    """
    function(*arguments)
