"""A core installation: what works without the extras, and the line where one is missing."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from conformer_vision import extras
from conformer_vision.errors import UserError
from conformer_vision.extras import check_installed, naming_extras, require

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
CORE_ONLY = """
import sys
from conformer_vision.extras import _EXTRAS

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in _EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Uninstalled())
"""


def core_only(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which no library of an extra can be imported."""
    command = [sys.executable, "-c", CORE_ONLY + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_models_loading_and_prediction_need_the_core_alone() -> None:
    done = core_only("""
import timm, torch
from PIL import Image
import conformer_vision

model = timm.create_model("conformer_nano_patch8_64", num_classes=3)
assert model(torch.rand(1, 3, 64, 64)).shape == (1, 3)
(answer,) = conformer_vision.Predictor("conformer_nano_patch8_64")([Image.new("RGB", (80, 60))])
assert answer.labels
try:
    conformer_vision.train
except ImportError as error:
    print(error)
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "lightning is not installed: pip install 'conformer-vision[train]'"


@pytest.mark.parametrize(
    ("arguments", "library"),
    [
        (("train", "--data", "digits"), "lightning"),
        (("predict", "model.onnx", "photo.jpg"), "onnxruntime"),
        (("export", "conformer_nano_patch8_64", "--format", "onnx"), "onnx"),
    ],
)
def test_a_command_that_needs_an_extra_says_so_in_one_line(
    arguments: tuple[str, ...], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").touch()
    Path("photo.jpg").touch()
    done = core_only("from conformer_vision.cli import main; sys.exit(main(sys.argv[1:]))", *arguments)
    line = f"error: {library} is not installed: pip install 'conformer-vision[{extras._EXTRAS[library]}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


def test_the_table_of_extras_is_that_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for module, extra in extras._EXTRAS.items():
        names = {Requirement(line).name for line in project["optional-dependencies"][extra]}
        assert DISTRIBUTIONS.get(module, module) in names, module


def test_a_broken_library_is_told_from_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UserError, match=r"^onnx cannot be imported \(no libprotobuf\): pip install"),
        naming_extras(),
    ):
        raise ImportError("no libprotobuf", name="onnx.onnx_cpp2py_export")
    with pytest.raises(ImportError, match="no such function"), naming_extras():
        raise ImportError("no such function", name="conformer_vision.models")
    monkeypatch.setitem(extras._EXTRAS, "not_there", "export")
    for look in (require, check_installed):
        with pytest.raises(UserError, match=r"^not_there is not installed: .*\[export\]"):
            look("not_there")
    check_installed("json")
    assert require("importlib.metadata") is metadata


def test_the_oldest_constraints_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras_tested = [*project["optional-dependencies"]["train"], *project["optional-dependencies"]["check"]]
    bounds = {
        requirement.name: Version(specifier.version)
        for requirement in map(Requirement, [*project["dependencies"], *extras_tested])
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    start, end = (number for number, line in enumerate(lines) if line.endswith(":"))
    pins = dict(line.split("==") for line in lines[start + 1 : end])
    # numpy 1.26 and 1.26.0 are the same version to pip.
    assert {name: Version(version) for name, version in pins.items()} == bounds
