"""Checkpoints of every layout and file type: loaded completely, or refused in one line with no trace."""

import argparse
import datetime
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from conformer_vision import load_checkpoint
from conformer_vision.errors import UserError
from conformer_vision.models.checkpoints import (
    read_checkpoint,
    to_openmmlab,
)
from small_checkpoints import (
    DONOR,
    LAYOUTS,
    OWN_NAMES,
    SMALL,
    Weights,
    make_model,
    quick,
    refused,
    same,
    snapshot,
)

# ---- files -----------------------------------------------------------------------------------------


def write(path: Path, weights: Weights, *, layout: str = "own") -> Path:
    """A checkpoint as the layout's own programs write it."""
    entries = LAYOUTS[layout](weights)
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in entries.items()}, path)
    elif layout == "openmmlab":
        torch.save({"meta": {"mmcls_version": "0.20.0", "CLASSES": ("a", "b")}, "state_dict": entries}, path)
    elif layout == "official":
        torch.save({"model": entries, "epoch": 299, "args": argparse.Namespace(lr=1e-3)}, path)
    else:
        torch.save(entries, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.ckpt", "w.bin", "w.pth.tar", "W.PTH", "w.safetensors"])
def test_every_layout_in_every_file_type(tmp_path: Path, layout: str, name: str) -> None:
    path = write(tmp_path / name, DONOR, layout=layout)
    model = make_model()
    load_checkpoint(model, str(path) if name == "w.pt" else path)
    assert same(snapshot(model), DONOR)


def test_lightning_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    weights = {f"model.{name}": tensor for name, tensor in DONOR.items()}
    torch.save({"state_dict": weights, "epoch": 1, "hyper_parameters": {"lr": 1e-3}, "callbacks": {}}, path)
    model = make_model()
    load_checkpoint(model, path)
    assert same(snapshot(model), DONOR)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_network_of_timm(tmp_path: Path, name: str) -> None:
    source, target = (timm.create_model("resnet18", num_classes=3) for _ in range(2))
    path = write(tmp_path / name, snapshot(source))
    load_checkpoint(target, path)
    assert same(snapshot(target), snapshot(source))
    load_checkpoint(target, {f"module.{name}": tensor for name, tensor in source.state_dict().items()})

    other = timm.create_model("resnet18", num_classes=5)
    assert "3 classes and the model's 5" in refused(other, path)
    fc = other.fc.weight.detach().clone()
    load_checkpoint(other, path, reset_head=True)
    assert torch.equal(other.fc.weight, fc)
    assert torch.equal(other.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


class _Runs:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "it_ran"
    entries: dict[str, Any] = {**DONOR, "extra": _Runs(marker)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(entries))
    else:
        torch.save(entries, path, _use_new_zipfile_serialization=form == "zip")
    line = refused(make_model(), path)
    assert not marker.exists()
    assert str(path) in line and "run" in line and "state_dict()" in line
    if form != "pickle":
        assert "refused" in line and "mkdir" in line
        torch.load(path, weights_only=False)  # the same file, trusted, would have run it
        assert marker.is_dir()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(make_model(), tmp_path / "model.pth")
    line = refused(make_model(), tmp_path / "model.pth")
    assert "Conformer" in line and "model.state_dict()" in line


def test_what_training_code_keeps_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of numpy, paths, dates, MMEngine's history with its methods: none of it is built."""
    history = types.ModuleType("mmengine.logging.history_buffer")
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, history.__name__, history)
    code = """class HistoryBuffer:
        def current(self): pass
        def __getstate__(self): return {"methods": [HistoryBuffer.current]}
        def __setstate__(self, state): raise AssertionError("it was built")"""
    exec(code, history.__dict__)
    history.HistoryBuffer.__module__ = history.HistoryBuffer.current.__module__ = history.__name__
    extra = {
        "best": np.float64(81.3),
        "curve": np.arange(3.0),
        "args": argparse.Namespace(output=Path("runs"), when=datetime.datetime(2021, 12, 6)),
        "message_hub": {"log_scalars": history.HistoryBuffer()},
    }
    for zipped in (True, False):
        torch.save({"model": DONOR, **extra}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        load_checkpoint(model := make_model(), tmp_path / "w.pth")
        assert same(snapshot(model), DONOR)


def test_a_suffix_that_is_not_that_of_the_content(tmp_path: Path) -> None:
    torch.save(DONOR, tmp_path / "a_pickle.safetensors")
    save_file(DONOR, tmp_path / "safetensors.pth")
    for path in tmp_path.iterdir():
        load_checkpoint(model := make_model(), path)
        assert same(snapshot(model), DONOR)


def test_what_is_not_a_checkpoint_is_named(tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / "empty.pth").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "text.pth").write_text("hello\nthis is text\n")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html><body>not found</body></html>")
    (tmp_path / "text.safetensors").write_text("hello\nthis is text\n")
    for name in (path.name for path in tmp_path.iterdir()):
        line = refused(model, tmp_path / name)
        assert str(tmp_path / name) in line and "damaged" in line

    assert "does not exist" in refused(model, tmp_path / "none.pth")
    assert "not a file" in refused(model, tmp_path)
    assert "does not exist" in refused(model, "a\0b.pth")
    (tmp_path / "w.npz").touch()
    assert "'.npz'" in refused(model, tmp_path / "w.npz") and "safetensors" in refused(
        model, tmp_path / "w.npz"
    )
    assert "only http and https" in refused(model, "s3://bucket/w.pth")
    for value, kind in ((torch.zeros(3), "Tensor"), ([1], "list")):
        torch.save(value, tmp_path / "other.pth")
        assert f"holds {kind}" in refused(model, tmp_path / "other.pth")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("files")
    weights = {name: tensor for name, tensor in DONOR.items() if "head" in name or "stem" in name}
    torch.save(weights, folder / "zip.pth")
    torch.save(weights, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    return contents | {"w.safetensors": save(weights)}


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "w.safetensors"])
def test_cut_short_anywhere(files: dict[str, bytes], tmp_path: Path, name: str) -> None:
    content = files[name]

    @quick
    @given(st.integers(0, len(content) - 1))
    def check(length: int) -> None:
        path = tmp_path / name
        path.write_bytes(content[:length])
        # Half a name ("collections.Order") is not one that may be read.
        with pytest.raises(UserError, match=r"damaged|refused") as caught:
            read_checkpoint(path)
        assert "\n" not in str(caught.value)

    check()


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "w.safetensors"])
def test_damaged_anywhere_is_a_checkpoint_or_one_line(
    files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    content = files[name]
    model = make_model()

    @quick
    @given(st.integers(0, len(content) - 1), st.binary(min_size=1, max_size=8))
    def check(position: int, damage: bytes) -> None:
        path = tmp_path / name
        path.write_bytes(content[:position] + damage + content[position + len(damage) :])
        refused(model, path)  # at the latest because blocks are missing

    check()


# ---- fit -------------------------------------------------------------------------------------------


@quick
@given(data=st.data(), layout=st.sampled_from(sorted(LAYOUTS)))
def test_whatever_does_not_fit_is_named_and_nothing_is_loaded(data: Any, layout: str) -> None:
    body = [name for name in OWN_NAMES if not name.endswith("num_batches_tracked") and "head" not in name]
    names = data.draw(st.lists(st.sampled_from(body), min_size=1, max_size=5, unique=True))
    weights = dict(DONOR)
    for name in names:
        match data.draw(st.sampled_from(["missing", "shape", "size", "int", "bool"])):
            case "missing":
                del weights[name]
            case "shape":
                weights[name] = weights[name].flatten()[None, None]
            case "size":
                weights[name] = torch.cat([weights[name], weights[name]])
            case "int":
                weights[name] = (weights[name] * 100).to(torch.int8)
            case "bool":
                weights[name] = weights[name] > 0.5
    extra = data.draw(st.sampled_from([(), ("blocks.7.fusion.bn1.bias",), ("loss.weight", "odd name")]))
    weights |= {name: torch.zeros(2) for name in extra}
    line = refused(make_model(), LAYOUTS[layout](weights))
    assert all(name in line for name in (*names, *extra))


def test_faults_are_counted_by_kind() -> None:
    weights = {name: t for name, t in DONOR.items() if not name.startswith("blocks.1.")}
    weights |= {"norm.bias": torch.zeros(3), "norm.weight": torch.zeros(8, dtype=torch.int64)}
    weights["line\nbreak"] = torch.zeros(1)
    line = refused(make_model(), weights)
    missing = sum(n.startswith("blocks.1.") and "num_batches" not in n for n in DONOR)
    assert (
        f"{missing} missing (blocks.1.bottleneck.conv1.weight" in line and f"and {missing - 5} more" in line
    )
    assert r"1 unexpected ('line\nbreak')" in line
    assert "1 of another shape (norm.bias (3,) instead of (8,))" in line
    assert "1 of another type (norm.weight int64 instead of float32)" in line


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_class_count(layout: str) -> None:
    checkpoint = LAYOUTS[layout](DONOR)
    model = make_model(num_classes=7)
    line = refused(model, checkpoint)
    assert "4 classes" in line and "7" in line and "reset_head=True" in line and "conv_head.weight" in line
    before = snapshot(model)
    load_checkpoint(model, checkpoint, reset_head=True)
    heads = {name for name in before if name.startswith(("conv_head.", "trans_head."))}
    assert len(heads) == 4
    after = snapshot(model)
    assert same({n: after[n] for n in heads}, {n: before[n] for n in heads})
    assert same(*({n: w[n] for n in before.keys() - heads} for w in (after, DONOR)))


def test_heads_on_one_side_only() -> None:
    body = {name: tensor for name, tensor in DONOR.items() if "head" not in name}
    headless = make_model(num_classes=0)
    assert "reset_head=True" in refused(headless, DONOR)
    load_checkpoint(headless, DONOR, reset_head=True)
    assert same(snapshot(headless), body)

    model = make_model()
    assert "reset_head=True" in refused(model, body)
    load_checkpoint(model, body, reset_head=True)
    assert torch.equal(model.state_dict()["norm.bias"], DONOR["norm.bias"])

    one = {name: tensor for name, tensor in DONOR.items() if not name.startswith("trans_head")}
    assert "2 missing (trans_head.weight, trans_head.bias)" in refused(model, one)
    for bias in (torch.tensor(1.0), torch.zeros(7)):  # no whole head of any number of classes
        assert "another shape" in refused(model, DONOR | {"conv_head.bias": bias})


def test_reset_head_excuses_nothing_else() -> None:
    weights = DONOR | {"norm.bias": torch.zeros(3)}
    assert "norm.bias" in refused(make_model(num_classes=7), weights, reset_head=True)
    plain = nn.Linear(2, 2)
    assert "reset_head" in refused(plain, plain.state_dict(), reset_head=True)


def test_another_number_of_channels() -> None:
    line = refused(make_model(in_chans=1), DONOR)
    assert "stem.conv.weight (8, 3, 3, 3) instead of (8, 1, 3, 3)" in line and "in_chans" in line


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("counters", [False, True])
def test_floating_point_types_are_converted(tmp_path: Path, dtype: torch.dtype, counters: bool) -> None:
    weights = {n: t.to(dtype) if t.is_floating_point() or counters else t for n, t in DONOR.items()}
    for name in ("w.pth", "w.safetensors"):
        model = make_model()
        load_checkpoint(model, write(tmp_path / name, weights))
        loaded = model.state_dict()
        for key, tensor in loaded.items():
            if tensor.is_floating_point():
                assert tensor.dtype == torch.float32 and torch.equal(tensor, weights[key].float())
            else:  # a counter that was halved says nothing
                assert tensor == (17 if counters else 18)
    half = make_model().half()
    load_checkpoint(half, weights)
    assert half.norm.bias.dtype == torch.float16
    assert torch.equal(half.norm.bias, weights["norm.bias"].half())


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
def test_quantised_sparse_and_meta_tensors_are_refused() -> None:
    for odd, word in (
        (DONOR["norm.bias"].to_sparse(), "sparse"),
        (DONOR["norm.bias"].to("meta"), "meta"),
        (DONOR["norm.bias"].to(torch.complex64), "complex64"),
        (torch.quantize_per_tensor(DONOR["norm.bias"], 0.1, 0, torch.qint8), "qint8"),
    ):
        assert word in refused(make_model(), DONOR | {"norm.bias": odd})


def test_counters_may_be_missing_and_values_are_not_judged() -> None:
    weights = {n: t for n, t in DONOR.items() if not n.endswith("num_batches_tracked")}
    weights |= {"norm.bias": torch.full((8,), torch.nan), "norm.weight": torch.full((8,), torch.inf)}
    model = make_model()
    load_checkpoint(model, weights)
    loaded = snapshot(model)
    assert same({name: loaded[name] for name in weights}, weights)
    assert loaded["stem.bn.num_batches_tracked"] == 17


def test_the_source_is_neither_changed_nor_shared() -> None:
    source = {name: tensor.clone() for name, tensor in DONOR.items()}
    wrapped = {"state_dict": to_openmmlab(source)}
    names = list(wrapped["state_dict"])
    model = make_model()
    load_checkpoint(model, wrapped)
    assert list(wrapped["state_dict"]) == names
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert same(source, DONOR)


def test_a_model_without_memory_is_refused() -> None:
    with torch.device("meta"):
        model = timm.create_model("conformer_nano_patch4_32", **SMALL)
    with pytest.raises(UserError, match="meta device"):
        load_checkpoint(model, DONOR)
