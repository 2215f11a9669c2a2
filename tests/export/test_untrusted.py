"""Damaged and hostile files: one line, and nothing of them is run."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from command_line import one_line, run
from conformer_vision.errors import UserError
from conformer_vision.inference.networks import open_network

from .conftest import FILES, WITH_EXPORTS

pytestmark = WITH_EXPORTS


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with its entries changed; None leaves one out."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w") as after:
        for name in before.namelist():
            if (content := change(name, before.read(name))) is not None:
                after.writestr(name, content)
    return target


def edited(source: Path, target: Path, entry: str, edit: Callable[[Any], None]) -> Path:
    """The archive with one JSON entry edited."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(entry):
            return content
        value = json.loads(content)
        edit(value)
        return json.dumps(value).encode()

    return rewritten(source, target, change)


def first_node(model: Any) -> Any:
    return model["graph_module"]["graph"]["nodes"][0]


def replace_expression(model: Any, text: str) -> None:
    pending = [model]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "expr_str" in value:
                value["expr_str"] = text
                return
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    raise AssertionError("no expression in the file")


@pytest.fixture
def program(small_run: Path) -> Path:
    return small_run / FILES["torch-export"]


@pytest.mark.parametrize(
    "operator",
    [
        "torch.os.system",
        "torch.ops.aten.from_file.default",
        "math.sys.exit",
        "_operator.methodcaller",
        "#x:y",
    ],
)
def test_foreign_operators(operator: str, program: Path, tmp_path: Path) -> None:
    bad = edited(
        program, tmp_path / "bad.pt2", "models/model.json", lambda m: first_node(m).update(target=operator)
    )
    with pytest.raises(UserError, match="which an export of conformer-vision never does"):
        open_network(bad)


@pytest.mark.parametrize("place", ["expr_str", "guards_code"])
@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path('harm').touch()",
        "eval(chr(49))",
        "(lambda: 0)()",
        "[x for x in (1,)]",
        "L['images'].__class__",
        "Symbol('a b')",
        "1 +",
    ],
)
def test_code_for_arithmetic(place: str, text: str, program: Path, tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        if place == "expr_str":
            replace_expression(model, text)
        else:
            model["guards_code"] = [text]

    bad = edited(program, tmp_path / "bad.pt2", "models/model.json", edit)
    with pytest.raises(UserError, match="the expression"):
        open_network(bad)


@pytest.mark.parametrize("entry", ["sample inputs", "weight", "extra entry", "constant"])
def test_pickles(entry: str, program: Path, tmp_path: Path) -> None:
    harm, bad = tmp_path / "harm", tmp_path / "bad.pt2"
    buffer = io.BytesIO()
    torch.save(Harmful(harm), buffer)
    if entry == "sample inputs":
        rewritten(program, bad, lambda n, c: buffer.getvalue() if "sample_inputs" in n else c)
    elif entry == "weight":
        with_pickle = tmp_path / "a.pt2"

        def edit(config: Any) -> None:
            next(iter(config["config"].values()))["use_pickle"] = True

        edited(program, with_pickle, "model_weights_config.json", edit)
        rewritten(with_pickle, bad, lambda n, c: buffer.getvalue() if n.endswith("/weight_0") else c)
    elif entry == "constant":
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        edited(program, bad, "model_constants_config.json", lambda c: c["config"].update(x=payload))
    else:
        rewritten(program, bad, lambda n, c: c)
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("bad/data/constants/opaque_obj_0", pickle.dumps(Harmful(harm)))
    with pytest.raises(UserError, match=r"pickled object|unexpected entry"):
        open_network(bad)
    assert not harm.exists()


class Writes(torch.nn.Module):
    """Saves its input when it is called."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """As a classifier."""
        torch.save(images, "harm")
        return (images.mean((2, 3)),)


class Restores(torch.nn.Module):
    """Does something when it is loaded."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As a classifier."""
        return images

    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        print("run")


@pytest.mark.parametrize("module", [Writes, Restores])
def test_torchscript_that_does_more(module: type[torch.nn.Module], tmp_path: Path) -> None:
    bad = tmp_path / "bad.torchscript"
    torch.jit.save(torch.jit.script(module()), bad)
    with pytest.raises(UserError, match="which an export of conformer-vision never does"):
        open_network(bad)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["half", "empty", "noise", "text"])
def test_damaged_files(name: str, damage: str, small_run: Path, tmp_path: Path) -> None:
    source = small_run / FILES[name]
    content = source.read_bytes()
    bad = tmp_path / f"bad{source.suffix}"
    if name == "openvino":
        bad.with_suffix(".bin").write_bytes(source.with_suffix(".bin").read_bytes())
    bad.write_bytes(
        {"half": content[: len(content) // 2], "empty": b"", "noise": bytes(range(256)) * 64, "text": b"hi"}[
            damage
        ]
    )
    assert bad.name in one_line(run("predict", bad, small_run / "curves.png"))


def test_files_of_others(small_run: Path, tmp_path: Path) -> None:
    proto = onnx.load(small_run / FILES["onnx"])
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "bare.onnx")
    assert "has no model spec" in one_line(run("predict", tmp_path / "bare.onnx", small_run / "curves.png"))
    xml = tmp_path / "alone.xml"
    xml.write_bytes((small_run / FILES["openvino"]).read_bytes())
    assert "alone.bin does not exist" in one_line(run("predict", xml, small_run / "curves.png"))
    torch.jit.save(torch.jit.script(torch.nn.Identity()), tmp_path / "bare.torchscript")
    line = one_line(run("predict", tmp_path / "bare.torchscript", small_run / "curves.png"))
    assert "has no model spec" in line


def test_a_device_that_cannot_run_it(small_run: Path) -> None:
    for name in ("onnx", "openvino"):
        done = run("evaluate", small_run / FILES[name], "--data", "digits", "--device", "mps")
        assert "device 'mps' cannot be used" in one_line(done)
