"""The models are registered when timm is imported, whoever imports it, and as if nothing were in between."""

import subprocess
import sys

from uninstalled import without

MODEL = "conformer_nano_patch8_64"
AFTERWARDS = f"""
import inspect, sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import SourceFileLoader

import conformer_vision
assert not {{"torch", "timm"}} & sys.modules.keys()
finders = list(sys.meta_path)
from importlib.util import find_spec
assert find_spec("timm").loader.is_package("timm")  # as transformers looks whether it is installed
assert not {{"torch", "timm"}} & sys.modules.keys()

def known(number):
    from timm import is_model
    return is_model({MODEL!r})

with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(known, range(8)))
import timm
assert timm.create_model({MODEL!r}, num_classes=2).num_classes == 2
assert type(timm.__loader__) is type(timm.__spec__.loader) is SourceFileLoader
assert "__version__" in inspect.getsource(timm)
assert len(sys.meta_path) < len(finders) and not [each for each in sys.meta_path if "conformer" in repr(each)]
"""
INSTALLED_LATER = f"""
import sys
import conformer_vision, conformer_vision.spec
for _ in range(2):
    try:
        import timm
    except ModuleNotFoundError as error:
        assert error.name == "timm"
hidden.clear()
import timm
assert timm.is_model({MODEL!r})
"""


def run(code: str) -> None:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_before_timm() -> None:
    run(AFTERWARDS)


def test_timm_that_is_not_installed_at_first() -> None:
    run(without(["timm"]) + INSTALLED_LATER)
