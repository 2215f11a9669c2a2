"""The configuration: what it refuses, and recipes as the same thing written down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer_vision.data.augment import AugmentConfig
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig
from conformer_vision.training.config import OPTIONS
from conformer_vision.training.groups import HardwareConfig, OutputConfig
from conformer_vision.training.recipe import read_config, read_recipe

NAMES = list(OPTIONS)


IMPOSSIBLE: dict[Any, str] = {
    0: "epochs max_steps batch_size patience accumulate aug_repeats epoch_images nodes devices input_size"
    " lr max_minutes clip_grad val_fraction crop_pct layer_decay ema_decay save_minutes",
    -1: "epochs batch_size workers seed freeze_blocks save_top_k fold lr max_minutes devices",
    10**400: "epochs max_steps batch_size",
    float("inf"): "lr max_minutes clip_grad",
    float("nan"): "weight_decay warmup_epochs min_lr mixup cutmix max_broken",
    -0.1: "weight_decay warmup_epochs min_lr mixup cutmix label_smoothing drop_path_rate max_broken",
    1: "label_smoothing drop_path_rate conv_drop_path_rate val_fraction ema_decay folds fold",
    1.1: "crop_pct max_broken layer_decay conv_loss_share",
    2**32: "seed",
    (32, -1): "input_size",
    "all": "batch_size devices",
    "other": "freeze_branch sampling precision device progress grad_checkpointing",
    2: "in_chans",
}
"""Options that refuse a value."""
TOGETHER: list[dict[str, Any]] = [
    {"lr": 1e-4, "min_lr": 1e-3},
    {"folds": 3, "fold": 3},
    {"loggers": ["tensorboard", "neptune"]},
    {"ema_warmup": True},
    {"auto_resume": True},
    {"aug_repeats": 2, "sampling": "balanced"},
    {"pretrained": True, "checkpoint": "weights.safetensors"},
    {"reset_head": True},
]


def test_impossible_values_are_named() -> None:
    single = [{name: value} for value, names in IMPOSSIBLE.items() for name in names.split()]
    for changes in single + TOGETHER:
        with pytest.raises(UserError) as caught:
            TrainConfig.from_options(data="digits", **changes)
        line = str(caught.value)
        assert "\n" not in line
        assert any(name in line for name in changes), changes


def test_groups_check_themselves() -> None:
    """Made from Python, without the parser."""
    with pytest.raises(UserError, match="device 'foo': must be one of auto, cpu, cuda, mps"):
        HardwareConfig(device="foo")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="loggers 'neptune': must be one of"):
        OutputConfig(loggers=["neptune"])  # type: ignore[list-item]


def test_edges_that_are_possible() -> None:
    TrainConfig.from_options(
        data="digits", workers=0, weight_decay=0, warmup_epochs=0, min_lr=0, label_smoothing=0, seed=2**32 - 1
    )
    TrainConfig.from_options(
        data="digits", crop_pct=1.0, lr=1e-3, min_lr=1e-3, batch_size=1, mixup=0, epochs=1
    )
    TrainConfig.from_options(
        data="digits", batch_size="auto", devices="auto", folds=2, fold=1, max_broken=0, layer_decay=1.0
    )
    TrainConfig.from_options(
        data="digits", max_broken=1, save_top_k=0, freeze_blocks=0, freeze_branch=None, loggers=[]
    )


def test_size_of_a_square_is_one_number() -> None:
    assert TrainConfig.from_options(data="digits").model.image_size is None
    assert TrainConfig.from_options(data="digits", input_size=48).model.image_size == (48, 48)
    assert TrainConfig.from_options(data="digits", input_size=(48, 64)).model.image_size == (48, 64)


FULL = TrainConfig.from_options(
    data="犬 und Bücher: '#1'",
    model="resnet18",
    model_kwargs={"drop_rate": 0.1, "depths": [2, 1, 2]},
    input_size=(48, 64),
    in_chans=1,
    max_minutes=1.5,
    min_lr=1e-7,
    lr=3e-4,
    augment=AugmentConfig(scale=(0.3, 1.0), hflip=0.0, auto_augment="rand-m9-mstd0.5-inc1"),
    precision="bf16-mixed",
    batch_size="auto",
    devices=2,
    freeze_branch="trans",
    ema_decay=0.99,
    ema_warmup=True,
    folds=5,
    fold=4,
    loggers=["tensorboard", "mlflow"],
    save_minutes=0.5,
)


@pytest.mark.parametrize(
    "config",
    [FULL, TrainConfig.from_options(data="digits"), TrainConfig.from_options(data="d", input_size=32)],
)
def test_yaml_and_back(config: TrainConfig, tmp_path: Path) -> None:
    recipe = tmp_path / "config.yaml"
    recipe.write_text(config.to_yaml(), encoding="utf-8")
    assert read_config(recipe) == config
    assert list(read_recipe(recipe)) == NAMES


BROKEN: dict[str, tuple[bytes, str]] = {
    "broken YAML": (b"epochs: [1", "is not YAML"),
    "list": (b"- epochs\n- 3", "must hold names with values"),
    "number": (b"3", "must hold names with values"),
    "binary": (bytes(range(256)), "is not YAML"),
    "Latin-1": ("data: Café".encode("latin-1"), "is not YAML"),
    "impossible date": (b"seed: 2001-13-45", "is not YAML"),
    "deep": (b"data: " + b"[" * 1000, "is not YAML"),
    "endless": (b"model_kwargs: &a {b: *a}", "is not YAML"),
    "code": (b"data: !!python/object/apply:os.getcwd []", "is not YAML"),
    "unknown key": (b"data: digits\nepoch: 3", "'epoch'; did you mean epochs?"),
    "unknown augmentation": (b"augment: {hflp: 0.5}", "'hflp'; did you mean hflip?"),
    "key that is no text": (b"7: 3", "unknown key 7"),
    "augment without keys": (b"augment:", "augment must hold names with values"),
    "model_kwargs without keys": (b"model_kwargs: [1]", "model_kwargs must hold names with values"),
    "text for a number": (b"data: digits\nepochs: ten", "epochs ten: must be a whole number"),
    "text for a pair": (
        b"data: digits\naugment: {scale: x}",
        "augment.scale x: must be two numbers such as [0.5,1]",
    ),
    "number for a choice": (b"data: digits\ndevice: 3", "device 3: must be one of"),
    "value that cannot be": (b"data: digits\nlr: 0", "lr 0.0: must be a number above 0"),
    "null for a number": (b"data: digits\nbatch_size: null", "batch_size null: give a value"),
    "null for a share": (b"data: digits\naugment: {re_prob: null}", "augment.re_prob null: give a value"),
    "null for a choice": (b"data: digits\nprecision: ", "precision null: give a value"),
    "no data": (b"epochs: 3", "data is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_recipes(name: str, tmp_path: Path) -> None:
    text, wanted = BROKEN[name]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text)
    with pytest.raises(UserError) as caught:
        read_config(recipe)
    line = str(caught.value)
    assert wanted in line
    assert str(recipe) in line
    assert "\n" not in line


def test_unreadable_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the recipe .*nothing\.yaml"):
        read_recipe(tmp_path / "nothing.yaml")


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
KEYS = st.sampled_from([*NAMES, "augment", "model_kwargs"]) | st.text(max_size=6) | st.integers()
KNOWN_KEYS = st.sampled_from(NAMES)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "recipe.yaml"


def accepted(read: Callable[[Path], Any], recipe: Path) -> bool:
    """Whether the recipe is taken; anything raised but a UserError of one line fails the test."""
    try:
        read(recipe)
    except UserError as error:
        assert "\n" not in str(error)
        return False
    return True


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(KNOWN_KEYS, VALUES, max_size=3))
def test_any_value_is_taken_or_refused_in_one_line(recipe_file: Path, values: dict[str, Any]) -> None:
    recipe_file.write_text(yaml.safe_dump({"data": "digits"} | values, allow_unicode=True), encoding="utf-8")
    if accepted(read_config, recipe_file):
        assert read_recipe(recipe_file).keys() <= set(NAMES)


@settings(max_examples=100, deadline=None)
@given(values=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_keys_are_taken_or_refused_in_one_line(recipe_file: Path, values: dict[object, Any]) -> None:
    recipe_file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert accepted(read_recipe, recipe_file) or not (
        values.keys() <= set(NAMES)
        and isinstance(values.get("augment", {}), dict)
        and isinstance(values.get("model_kwargs", {}), dict)
        and not values.get("augment")
    )


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_taken_or_refused_in_one_line(recipe_file: Path, data: bytes) -> None:
    recipe_file.write_bytes(data)
    accepted(read_recipe, recipe_file)
