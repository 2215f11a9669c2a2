"""Whole trainings, of a second each: the run folder, and that the same recipe gives the same weights."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from command_line import NETWORK
from conformer_vision import Run, evaluate
from conformer_vision.data import Splitting
from conformer_vision.errors import UserError
from conformer_vision.plotting import draw_curves
from conformer_vision.runs import RUN_MARKER
from conformer_vision.training import TrainConfig, folder, train
from conformer_vision.training.recipe import read_config, recipes
from conformer_vision.weights import load_model
from option_tools import opened, rows_of, same

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
FILES = {
    "best.safetensors",
    "classes.txt",
    "config.yaml",
    "curves.png",
    "last.ckpt",
    "last.safetensors",
    "metrics.csv",
    "results.json",
}
"""What a run folder holds at the end."""


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Three epochs of three steps."""
    output = tmp_path_factory.mktemp("runs") / "run"
    return tiny(epochs=3, max_steps=None, val_fraction=0.25, lr=3e-3, output=str(output))


@pytest.fixture(scope="module")
def run(config: TrainConfig) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "draw_curves", draw_curves)  # elsewhere replaced: tests/conftest.py
        return train(config)


def test_run_folder(run: Path, config: TrainConfig) -> None:
    assert {path.name for path in run.iterdir()} == FILES
    assert (run / "config.yaml").read_text().startswith(RUN_MARKER)
    assert (run / "classes.txt").read_text() == "blue\ngreen\nred\n"
    kept = read_config(run / "config.yaml")
    assert kept == config.with_options(
        output=None,
        precision="32",  # as the run is too short to measure
        loss="ce",
        label_smoothing=0.1,
        input_size=(32, 32),
        crop_pct=1.0,
        augment=dataclasses.replace(config.regularization.augment, hflip=0.5),
    )
    with Image.open(run / "curves.png") as curves:
        curves.verify()
        assert min(curves.size) > 300


def test_a_checkpoint_alone_says_how_to_build_its_network(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "last.ckpt", tmp_path / "copied.ckpt")
    model, spec = load_model(tmp_path / "copied.ckpt")
    expected, same = load_model(run / "last.safetensors")
    assert spec == same
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in model.state_dict().items())


def test_metrics(run: Path, images: Path) -> None:
    rows = rows_of(run)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6), (3, 9)]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert all(row["images_per_second"] > 0 for row in rows)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert rows[-1]["lr"] < rows[0]["lr"]
    evaluation = evaluate(run / "last.safetensors", images, splitting=Splitting(0.25, 0), device="cpu")
    best = evaluate(run, images, splitting=Splitting(0.25, 0), device="cpu").heads["fused"].top1.value
    assert best == pytest.approx(max(row["val_top1_fused"] for row in rows), abs=1e-5)  # the best weights
    for head, figures in evaluation.heads.items():
        top1 = figures.top1
        for suffix, value in (("", top1.value), ("_low", top1.low), ("_high", top1.high)):
            assert rows[-1][f"val_top1_{head}{suffix}"] == pytest.approx(value, abs=1e-5)
    losses = [evaluation.heads[head].log_loss.value for head in ("conv", "trans")]
    assert rows[-1]["val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_the_kept_recipe_gives_the_same_weights(run: Path, weights: Weights, tmp_path: Path) -> None:
    kept = read_config(run / "config.yaml")
    again = kept.with_options(output=str(tmp_path / "again"), report=False)
    train(again)
    for name in ("last.safetensors", "best.safetensors"):
        assert same(weights(run, name), weights(tmp_path / "again", name)), name


@pytest.mark.parametrize("name", recipes())
def test_shipped_recipes_train(name: str, images: Path, tmp_path: Path) -> None:
    """Two steps with everything that the recipe says, but smaller and without what it downloads."""
    import conformer_vision

    shipped = Path(conformer_vision.__file__).parent / "recipes" / f"{name}.yaml"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{shipped.read_text(encoding='utf-8')}\ndata: {images}\n", encoding="utf-8")
    config = read_config(recipe)
    run = train(
        config.with_options(
            pretrained=False,
            model_kwargs=NETWORK,
            batch_size=8,
            input_size=32,
            max_steps=2,
            workers=0,
            device="cpu",
            report=False,
            output=str(tmp_path / "run"),
        )
    )
    assert isinstance(run, Run) and "epoch 1 of 1, the best" in str(run._repr_html_())
    assert rows_of(run)[-1]["step"] == 2
    assert math.isfinite(rows_of(run)[-1]["train_loss"])


def test_another_seed_gives_other_weights(
    config: TrainConfig, run: Path, weights: Weights, tmp_path: Path
) -> None:
    """Of the same split and steps."""
    other = train(config.with_options(seed=1, output=str(tmp_path / "run")))
    assert not same(weights(run), weights(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"in_chans": 1, "mixup": 0.2, "cutmix": 1.0},
        {"precision": "bf16-mixed", "clip_grad": 1.0, "channels_last": True, "input_size": (32, 48)},
    ],
    ids=str,
)
def test_trained_with_options_and_used(
    tiny: Tiny, changes: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    config = tiny(**changes, output=str(tmp_path / "run"))
    run = train(config)
    assert math.isfinite(rows_of(run)[-1]["train_loss"])
    assert evaluate(run, images, device="cpu").samples == len(opened(config).val_images)


def test_resnet_is_trained_by_the_same_code(tiny: Tiny, images: Path, tmp_path: Path) -> None:
    run = train(tiny(model="test_resnet", model_kwargs={}, max_steps=1, output=str(tmp_path / "run")))
    assert {path.name for path in run.iterdir()} == FILES - {"curves.png"}
    assert "val_top1_fused" in rows_of(run)[0]
    assert "val_top1_conv" not in rows_of(run)[0]
    assert evaluate(run, images, device="cpu").heads.keys() == {"fused"}


def test_trained_weights_start_another_training(
    tiny: Tiny, run: Path, weights: Weights, tmp_path: Path
) -> None:
    checkpoint = str(run / "last.safetensors")
    config = tiny(
        data="digits", checkpoint=checkpoint, reset_head=True, max_steps=1, lr=1e-6, min_lr=0.0,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    model, spec = load_model(train(config))
    assert spec.num_classes == 10
    torch.testing.assert_close(model.state_dict()["cls_token"], weights(run)["cls_token"], atol=1e-4, rtol=0)


def test_failure_in_the_middle_leaves_what_was_trained(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformer_vision.training.module import ClassifierModule

    step = ClassifierModule.training_step
    steps = iter(range(100))

    def failing(self: ClassifierModule, batch: Any, batch_idx: int) -> Tensor:
        if next(steps) == 5:
            raise RuntimeError("a fault of our own")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="a fault of our own"):
        train(tiny(max_steps=None, output=str(tmp_path / "run")))
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"curves.png"}


def test_foreign_files_in_the_folder_are_kept(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        train(tiny(output=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
