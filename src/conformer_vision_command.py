"""The entry point of the command ``conformer-vision``: the one line for what goes wrong before it starts."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; return the exit status."""
    try:
        from conformer_vision.cli import main as run
    except KeyboardInterrupt:  # an impatient Ctrl-C
        return 130
    except ModuleNotFoundError as error:  # installed without dependencies, for exported files
        if error.name is None or error.name.partition(".")[0] == "conformer_vision":
            raise
        print(f"error: {error.name} is not installed: pip install {error.name}", file=sys.stderr)
        return 2
    return run()
