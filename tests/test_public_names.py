"""The public names, and when the models are registered, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import conformer_vision
from command_line import class_folders
from conformer_vision import check, data, export, inference, runtime, training

MODEL = "conformer_nano_patch8_64"


def python(*arguments: object) -> str:
    """What a process printed."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", [conformer_vision, check, data, export, inference, runtime, training])
def test_every_name_is_there(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert set(names) <= set(dir(package))
    for name in names:
        value = getattr(package, name)
        # A name that a submodule has too would be the one or the other, depending on what was imported.
        assert isinstance(value, ModuleType) == bool(find_spec(f"{package.__name__}.{name}")), name  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018


ORDERS = """
import inspect, os, pydoc, sys
import sklearn.model_selection, timm, torch, torchmetrics
STEPS = {
    "import conformer_vision.export": "conformer_vision.export",
    "from conformer_vision.export import export": "export",
    "import conformer_vision.check.run": "conformer_vision.check",
    "from conformer_vision import check": "check",
}
def mistake(function, *arguments, **options):
    from conformer_vision.errors import UserError
    try:
        function(*arguments, **options)
    except UserError as error:
        return str(error)
for order in ((0, 1), (1, 0), (2, 3), (3, 2), (0, 3), (2, 1)):  # of one package, then across both
    order = [list(STEPS)[number] for number in order]
    if not (child := os.fork()):
        names = {}
        for step in order:
            exec(step, names)
            function = eval(STEPS[step], names)
            if "export" in step:
                assert "format 'gif'" in mistake(function, "run", format="gif"), order
            else:
                assert "nowhere" in mistake(function, "nowhere"), order
        import conformer_vision
        for package in (conformer_vision.export, conformer_vision.check):
            name = package.__name__.split(".")[1]
            assert package is sys.modules[package.__name__]
            assert inspect.signature(package) == inspect.signature(getattr(package, name))
            assert inspect.getdoc(getattr(package, name)).splitlines()[0] in pydoc.plaintext.document(package)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""


def test_packages_that_are_called_in_any_order_of_imports() -> None:
    """`conformer_vision.export(...)` and `from conformer_vision.export import export` are the same."""
    python("-c", ORDERS)


WORKERS = """
import multiprocessing, sys

def report():
    import conformer_vision
    import conformer_vision.data
    print("torch" in sys.modules, flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    process = context.Process(target=report)
    process.start(), process.join()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_the_command_register_no_models(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(WORKERS.format(method=method))
    assert python(program) == "False\n"


def test_a_program_with_check_in_it_keeps_its_models(tmp_path: Path) -> None:
    """Its processes run the program's own top level, where the models must be known."""
    program = tmp_path / "conformer-vision.py"
    program.write_text(f"""
import sys
import timm
import conformer_vision
assert timm.is_model({MODEL!r})
from conformer_vision.check import check
if __name__ == "__main__":
    result = check(sys.argv[1], workers=1)
    print(sys.argv[1:])
""")
    images = class_folders(tmp_path / "images", a=3, b=3)
    assert python(program, images).splitlines()[-1] == str([str(images)])


def test_the_installed_command_is_the_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"conformer-vision": "conformer_vision_command:main"}
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["src/conformer_vision", "src/conformer_vision_command.py"]
