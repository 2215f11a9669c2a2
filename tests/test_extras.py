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
from uninstalled import without

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "sklearn": "scikit-learn",
}


PREDICT = """
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
"""
COMMANDS = """
from conformer_vision.cli import main

assert main(["train", "--data", "digits"]) == 2
assert main(["predict", "model.onnx", "photo.jpg"]) == 2
assert main(["export", "conformer_nano_patch8_64", "--format", "onnx"]) == 2
"""


def test_a_core_installation(tmp_path: Path) -> None:
    """Models, loading and prediction work; a command that needs an extra says so in one line."""
    (tmp_path / "model.onnx").touch()
    (tmp_path / "photo.jpg").touch()
    command = [sys.executable, "-c", without(extras._EXTRAS) + PREDICT + COMMANDS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "lightning is not installed: pip install 'conformer-vision[train]'\n"
    assert done.stderr.splitlines() == [
        f"error: {library} is not installed: pip install 'conformer-vision[{extras._EXTRAS[library]}]'"
        for library in ("lightning", "onnxruntime", "onnx")
    ]


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


def test_the_runtime_without_pytorch_has_the_packages_own_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {*project["dependencies"], *project["optional-dependencies"]["export"]}
    lines = (ROOT / "requirements-runtime.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} < ranges


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
