"""The file of a trained model: what is written is what is read, and bad files give one clear line."""

import json
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from conformer_vision.errors import UserError
from conformer_vision.spec import METADATA_KEY, ModelSpec
from conformer_vision.weights import Calibrated, load_model, save_calibration, save_model

SPEC = ModelSpec(model="test_resnet", classes=("cat", "dog", "Ünïcode 犬"), input_size=(3, 64, 48))


def make_model(spec: ModelSpec = SPEC) -> nn.Module:
    torch.manual_seed(3)
    model = timm.create_model(
        spec.model, num_classes=spec.num_classes, in_chans=spec.in_chans, **spec.model_kwargs
    )
    model(torch.randn(4, *spec.input_size))  # running statistics that are not the initial ones
    return model.eval()


def rewrite(path: Path, *, spec: object = None, drop: str | None = None, add: dict | None = None) -> None:
    """The same file with the spec (an object or raw text) or tensors changed."""
    tensors = load_file(path) | (add or {})
    tensors.pop(drop, None)
    text = SPEC.to_json() if spec is None else spec if isinstance(spec, str) else json.dumps(spec)
    save_file(tensors, path, metadata={METADATA_KEY: text})


def edited(**changes: object) -> dict:
    return json.loads(SPEC.to_json()) | changes


@pytest.fixture(scope="module")
def saved_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "best.safetensors"
    save_model(make_model(), SPEC, path)
    return path.read_bytes()


@pytest.fixture
def saved(saved_bytes: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    path.write_bytes(saved_bytes)
    return path


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "conformer_nano_patch16_224"])
def test_read_is_what_was_written(tmp_path: Path, name: str) -> None:
    kwargs = {"img_size": [32, 32]} if name == "test_vit" else {"drop_rate": 0.1}
    spec = ModelSpec(name, kwargs, ("a", "b"), (1, 32, 32), (0.5,), (0.25,), "bilinear", 1.0, "squash")
    model = make_model(spec)
    save_model(model, spec, tmp_path / "m.safetensors")
    again, read = load_model(tmp_path / "m.safetensors")
    assert read == spec
    assert not again.training
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(again(x), model(x))
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    model = make_model().to(memory_format=torch.channels_last)
    wide = torch.randn(2 * model.fc.in_features, 3)
    model.fc.weight = nn.Parameter(wide.T[:, : model.fc.in_features])  # a transposed view of a larger storage
    model.layer1[0].bn1.bias = model.layer1[0].bn1.weight  # one tensor under two names
    save_model(model, SPEC, tmp_path / "m.safetensors")
    again, _ = load_model(tmp_path / "m.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_run_folder_takes_best_then_last(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(saved, spec=edited(classes=["x", "y", "z"]))
    assert load_model(tmp_path)[1].classes == ("x", "y", "z")
    saved.rename(tmp_path / "last.safetensors")
    assert not caplog.records
    assert load_model(str(tmp_path))[1].classes == ("x", "y", "z")
    assert "last.safetensors" in caplog.text
    (tmp_path / "last.safetensors").unlink()
    assert "best.safetensors" in message(tmp_path)


@settings(max_examples=30)
@given(keep=st.floats(0, 0.999))
def test_truncated_anywhere(
    saved_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, keep: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(saved_bytes[: int(keep * len(saved_bytes))])
    assert "cut.safetensors" in message(path)
    path.write_bytes(b"\x80\x04 a pickle")
    assert "cut.safetensors" in message(path)


def test_no_spec(saved: Path) -> None:
    save_file(load_file(saved), saved)
    assert "no model spec" in message(saved)
    save_file(load_file(saved), saved, metadata={"format": "pt"})
    assert "no model spec" in message(saved)


BAD_SPECS = {
    "not JSON": "{'format': 1",
    "not an object": "[1]",
    "deep": "[" * 100_000,
    "no format": {"model": "test_resnet"},
    "future": edited(format=2),
    "format of another type": edited(format=True),
    "lacks": {k: v for k, v in edited().items() if k != "mean"},
    "unknown model": edited(model="test_resnett"),
    "download": edited(model="hf-hub:timm/test_resnet.r160_in1k"),
    "local folder": edited(model="local-dir:/tmp"),
    "model of another type": edited(model=["test_resnet"]),
    "reserved": edited(model_kwargs={"pretrained": True}),
    "checkpoint": edited(model_kwargs={"checkpoint_path": "/tmp/x.pth"}),
    "kwargs": edited(model_kwargs=[1]),
    "unknown kwarg": edited(model_kwargs={"no_such_argument": 1}),
    "class count": edited(num_classes=4),
    "other head": edited(classes=["a", "b"], num_classes=2),
    "class twice": edited(classes=["a", "b", "a"]),
    "classes": edited(classes="abc"),
    "no classes": edited(classes=[], num_classes=0),
    "size": edited(input_size=[3, 0, 64]),
    "size of another type": edited(input_size=7),
    "channels": edited(in_chans=1),
    "mean": edited(mean=[0.5]),
    "std": edited(std=[0.5, 0.0, 0.5]),
    "nan": edited(mean=[0.5, float("nan"), 0.5]),
    "interpolation": edited(interpolation="cubic"),
    "crop_pct": edited(crop_pct=0),
    "crop_mode": edited(crop_mode="centre"),
}


@pytest.mark.parametrize("spec", BAD_SPECS.values(), ids=BAD_SPECS.keys())
def test_bad_spec_is_one_line_that_names_the_file(saved: Path, spec: object) -> None:
    rewrite(saved, spec=spec)
    assert str(saved) in message(saved)


def test_a_future_format_and_a_mistyped_model_name_the_remedy(saved: Path) -> None:
    rewrite(saved, spec=edited(format=2))
    assert "update conformer-vision" in message(saved)
    rewrite(saved, spec=edited(model="test_resnett"))
    assert "did you mean test_resnet?" in message(saved)


def test_keys_of_other_releases(saved: Path) -> None:
    """A file from before temperatures is read, and what a later release adds is passed over."""
    values = edited(trained_epochs=3)
    del values["temperature"]
    rewrite(saved, spec=values)
    assert load_model(saved)[1] == SPEC
    assert SPEC.temperature == 1.0


def test_weights_of_another_model(saved: Path) -> None:
    rewrite(saved, spec=edited(model="test_vit", model_kwargs={"img_size": 64}))
    line = message(saved)
    assert "does not fit test_vit" in line and "blocks.0.norm1.weight" in line


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"drop": "fc.bias"}, "1 missing (fc.bias)"),
        ({"add": {"extra.weight": torch.zeros(1)}}, "1 unexpected (extra.weight)"),
        ({"add": {"fc.bias": torch.zeros(7)}}, "fc.bias (7,) instead of (3,)"),
    ],
)
def test_faulty_entries_are_named(saved: Path, change: dict, named: str) -> None:
    rewrite(saved, **change)
    assert named in message(saved)


def test_failed_write_leaves_the_old_file(
    saved: Path, saved_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("conformer_vision.weights.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(make_model(), SPEC, saved)
    assert saved.read_bytes() == saved_bytes
    assert list(saved.parent.iterdir()) == [saved]


def test_save_refuses_what_could_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 outputs.* 3 classes"):
        save_model(timm.create_model("test_resnet", num_classes=5), SPEC, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="cannot write"):
        save_model(make_model(), SPEC, tmp_path / "no" / "folder" / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_class_name_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match=r"'b\\udce9te' is not UTF-8"):
        ModelSpec("test_resnet", classes=("ok", "b\udce9te"))


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "2", None, True])
def test_impossible_temperature(saved: Path, value: object) -> None:
    rewrite(saved, spec=edited(temperature=value))
    assert "temperature must be a positive number" in message(saved)
    save_model(make_model(), SPEC, saved)
    before = saved.read_bytes()
    with pytest.raises(UserError, match="temperature must be"):
        save_calibration(saved, Calibrated(value))  # type: ignore[arg-type]
    assert saved.read_bytes() == before


def test_another_temperature_and_the_same_weights(saved: Path) -> None:
    weights = load_file(saved)
    spec = save_calibration(saved, Calibrated(1.7))
    assert load_model(saved)[1] == spec
    assert spec.temperature == 1.7
    assert json.loads(spec.to_json()) == json.loads(SPEC.to_json()) | {"temperature": 1.7}
    again = load_file(saved)
    assert list(again) == list(weights)
    for name, tensor in weights.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    with pytest.raises(UserError, match="cannot read"):
        save_calibration(saved.with_name("none.safetensors"), Calibrated(2.0))
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        save_calibration(saved, Calibrated(2.0))
