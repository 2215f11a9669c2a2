"""Run a script with this package's models registered with timm.

timm's own ``train.py`` and ``validate.py``, and others that build their models by name, need no change::

    python -m conformer_vision.timm train.py --model conformer_tiny_patch16_224 ...
    torchrun --nproc-per-node 4 -m conformer_vision.timm train.py --model conformer_tiny_patch16_224 ...

The script sees ``sys.argv``, ``sys.path`` and ``__main__`` as under ``python train.py``.
"""

import os
import runpy
import sys
from types import ModuleType

import conformer_vision.models  # noqa: F401 - registers the models
from conformer_vision.console import note, say

# Tells processes that multiprocessing spawns which script they belong to.
_SCRIPT_VARIABLE = "CONFORMER_VISION_SCRIPT"


_USAGE = "usage: python -m conformer_vision.timm SCRIPT.py [ARGUMENTS]"


def main() -> int:
    """Run the script that the command line names and return the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        say(_USAGE)
        return 0
    if not arguments:
        note(_USAGE)
        return 2
    try:
        with open(arguments[0], "rb") as file:
            source = file.read()
    except OSError as error:
        note(f"error: cannot read the script {arguments[0]} ({error.strerror})")
        return 2
    _run(source, arguments)
    return 0


def _run(source: bytes, arguments: list[str]) -> None:
    script = arguments[0]
    sys.argv = arguments
    if not sys.flags.safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    os.environ[_SCRIPT_VARIABLE] = os.path.abspath(script)
    module = ModuleType("__main__")
    module.__file__ = script
    module.__spec__ = __spec__  # a spawned process then imports this module, as its "__mp_main__"
    sys.modules["__main__"] = module
    exec(compile(source, script, "exec"), module.__dict__)


if __name__ == "__main__":
    sys.exit(main())
if __name__ == "__mp_main__":
    globals().update(runpy.run_path(os.environ[_SCRIPT_VARIABLE], run_name="__mp_main__"))
