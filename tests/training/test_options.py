"""Every option has a test here or beside that shows its effect; the last test sees that none lacks."""

import ast
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conformer_vision.data.augment import AugmentConfig
from conformer_vision.errors import UserError
from conformer_vision.models import variants
from conformer_vision.training import TrainConfig, train
from conformer_vision.training import schedule as schedule_module
from conformer_vision.training.config import OPTIONS
from conformer_vision.training.network import build_model
from conformer_vision.training.schedule import Clock
from option_tools import first_batch, loaders, module, opened, rates, shows

Tiny = Callable[..., TrainConfig]


# ---- data ------------------------------------------------------------------------------------------


@shows("data")
def test_data(tiny: Tiny) -> None:
    assert opened(tiny()).classes == ("blue", "green", "red")
    assert len(opened(tiny(data="digits")).classes) == 10


@shows("val_fraction", "seed")
def test_split(tiny: Tiny) -> None:
    def held_out(**changes: Any) -> set[str]:
        source = opened(tiny(**changes)).val_images
        return {source.name(index) for index in range(len(source))}

    assert len(held_out(val_fraction=0.25)) == 9
    assert len(held_out(val_fraction=0.5)) == 18
    assert held_out(val_fraction=0.5) == held_out(val_fraction=0.5)
    assert held_out(val_fraction=0.5) != held_out(val_fraction=0.5, seed=1)


@shows("batch_size", "workers")
def test_batches(tiny: Tiny) -> None:
    train_loader, val_loader = loaders(tiny(batch_size=4, val_fraction=0.5))
    assert len(train_loader) == 18 // 4, "the incomplete batch is left out"
    assert len(val_loader) == 5, "of validation it is not"
    assert train_loader.num_workers == 0
    first = next(iter(train_loader))
    assert first.images.shape == (4, 3, 32, 32)
    assert first.labels.shape == (4,)
    assert loaders(tiny(workers=2))[0].num_workers == 2


@shows("input_size")
def test_input_size(tiny: Tiny) -> None:
    assert first_batch(tiny(input_size=(32, 48)), 0).images.shape[1:] == (3, 32, 48)
    assert first_batch(tiny(input_size=(32, 48)), 1).images.shape[1:] == (3, 32, 48)
    assert first_batch(tiny(input_size=None), 1).images.shape[1:] == (3, 64, 64), "the model's own"


@shows("in_chans")
def test_in_chans(tiny: Tiny) -> None:
    grey = first_batch(tiny(in_chans=1), 1).images
    assert grey.shape[1] == 1
    model = build_model(tiny(in_chans=1).model, 3)
    assert model(grey).shape[1] == 3


@shows("crop_pct")
def test_crop_pct(tiny: Tiny) -> None:
    whole = first_batch(tiny(), 1).images
    torch.testing.assert_close(whole, first_batch(tiny(crop_pct=1.0), 1).images)  # a small image's default
    assert not torch.equal(whole, first_batch(tiny(crop_pct=0.5), 1).images)


@shows("augment")
def test_augment(tiny: Tiny) -> None:
    still = AugmentConfig(crop="rrc", scale=(1, 1), ratio=(1, 1), hflip=0.0)
    mirrored = dataclasses.replace(still, hflip=1.0)
    images = first_batch(tiny(augment=still), 0).images
    torch.testing.assert_close(images.flip(-1), first_batch(tiny(augment=mirrored), 0).images)
    assert not torch.equal(images, first_batch(tiny(), 0).images)


# ---- network ---------------------------------------------------------------------------------------


@shows("model")
def test_model(tiny: Tiny) -> None:
    assert type(build_model(tiny().model, 3)).__name__ == "Conformer"
    assert type(build_model(tiny(model="resnet18", model_kwargs={}).model, 3)).__name__ == "ResNet"


@shows("model_kwargs")
def test_model_kwargs(tiny: Tiny) -> None:
    model: Any = build_model(tiny(model_kwargs={"depths": [2, 2, 2], "upsample": "bilinear"}).model, 3)
    assert (len(model.blocks), model.config.upsample) == (6, "bilinear")


@pytest.mark.parametrize("name", ["drop_path_rate", "conv_drop_path_rate"])
@shows("drop_path_rate", "conv_drop_path_rate")
def test_stochastic_depth(tiny: Tiny, name: str) -> None:
    def varies(rate: float | None) -> bool:
        torch.manual_seed(0)
        model = build_model(tiny(**{name: rate}).model, 3).train()
        images = torch.randn(8, 3, 32, 32)
        with torch.no_grad():
            return not torch.equal(model(images), model(images))

    assert varies(0.9)
    assert not varies(0.0)
    assert not varies(None)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Weights of a Conformer-Ti of few blocks, with 1,000 classes."""
    path = tmp_path / "published.safetensors"
    torch.manual_seed(7)
    save_file(timm.create_model("conformer_tiny_patch16_224", depths=[2, 1, 2]).state_dict(), path)
    return path


@shows("pretrained")
def test_pretrained(tiny: Tiny, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "fetch_pretrained", lambda url, **_: published)
    changes = {"model": "conformer_tiny_patch16_224", "model_kwargs": {"depths": [2, 1, 2]}}
    loaded = build_model(tiny(**changes, pretrained=True).model, 3)
    drawn = build_model(tiny(**changes).model, 3)
    torch.manual_seed(7)
    weights = timm.create_model("conformer_tiny_patch16_224", depths=[2, 1, 2])
    torch.testing.assert_close(loaded.get_parameter("cls_token"), weights.get_parameter("cls_token"))
    assert not torch.equal(drawn.get_parameter("cls_token"), weights.get_parameter("cls_token"))
    assert loaded.get_parameter("conv_head.weight").shape[0] == 3


@shows("checkpoint", "reset_head")
def test_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    torch.manual_seed(7)
    donor = build_model(tiny().model, 5)
    path = str(tmp_path / "weights.safetensors")
    save_file(donor.state_dict(), path)
    same = build_model(tiny(checkpoint=path).model, 5)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), donor.parameters(), strict=True))
    with pytest.raises(UserError, match="head"):
        build_model(tiny(checkpoint=path).model, 3)
    other = build_model(tiny(checkpoint=path, reset_head=True).model, 3)
    torch.testing.assert_close(other.get_parameter("cls_token"), donor.get_parameter("cls_token"))
    assert other.get_parameter("trans_head.weight").shape[0] == 3


# ---- optimisation ----------------------------------------------------------------------------------


@shows("optimizer")
def test_optimizer(tiny: Tiny) -> None:
    for name, wanted in (("adamw", "AdamW"), ("sgd", "SGD")):
        parts: Any = module(tiny(optimizer=name)).configure_optimizers()
        assert type(parts["optimizer"]).__name__ == wanted


@shows("weight_decay")
def test_weight_decay_spares_norms_biases_and_the_class_token(tiny: Tiny) -> None:
    classifier = module(tiny(weight_decay=0.3))
    parts: Any = classifier.configure_optimizers()
    decay = {
        id(parameter): group["weight_decay"]
        for group in parts["optimizer"].param_groups
        for parameter in group["params"]
    }
    for name, parameter in classifier.model.named_parameters():
        spared = parameter.ndim < 2 or name == "cls_token"
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name
    assert set(decay.values()) == {0.0, 0.3}


@shows("lr", "min_lr", "warmup_epochs", "epochs", "max_steps")
def test_learning_rate(tiny: Tiny) -> None:
    plain = tiny(lr=0.5, min_lr=0.01, warmup_epochs=1, epochs=20, max_steps=None)
    seen = rates(plain)
    assert len(seen) == 200
    assert max(seen) == pytest.approx(0.5, rel=1e-3)
    assert seen.index(max(seen)) == 10
    assert seen[0] < 0.05
    assert seen[-1] == pytest.approx(0.01, rel=0.01)
    early = plain.with_options(warmup_epochs=0.0)
    assert rates(early)[0] == 0.5
    short = rates(plain.with_options(max_steps=40))
    assert len(short) == 40
    assert short[-1] == pytest.approx(0.01, rel=0.2), "the schedule is fitted to the steps"
    assert len(rates(plain.with_options(max_steps=1000))) == 200, "the first end counts"


@shows("label_smoothing")
@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_label_smoothing(tiny: Tiny, mixup: float) -> None:
    """The loss of perfect answers is that of the smoothed targets, with and without MixUp."""
    images, target = torch.rand(8, 3, 32, 32), torch.arange(8) % 3
    losses = {}
    for smoothing in (0.0, 0.3):
        classifier = module(tiny(label_smoothing=smoothing, mixup=mixup))
        if classifier.mixup is not None:
            classifier.mixup.mixup_enabled = False  # leaves the smoothing that it does
            target_in = classifier.mixup(images.clone(), target)[1]
        else:
            target_in = target
        sure = 50.0 * nn.functional.one_hot(target, 3)
        losses[smoothing] = float(classifier.train_loss(sure, target_in))
    assert losses[0.0] == pytest.approx(0, abs=1e-6)
    assert losses[0.3] == pytest.approx(0.2 * 50, rel=1e-3)  # 0.1 on each of the two other classes


@shows("mixup", "cutmix")
def test_mixup_and_cutmix(tiny: Tiny) -> None:
    dark, light = torch.zeros(4, 3, 32, 32), torch.ones(4, 3, 32, 32)
    images, target = torch.cat([dark, light]), torch.tensor([0] * 4 + [1] * 4)

    def mixed(**changes: float) -> tuple[Tensor, Tensor]:
        mixup = module(tiny(label_smoothing=0.0, **changes)).mixup
        assert mixup is not None
        for _ in range(20):  # until the share drawn is no extreme
            out, soft = mixup(images.clone(), target)
            if 0.1 < float(soft[0, 0]) < 0.9:
                return out, soft
        raise AssertionError("nothing was mixed")

    blended, soft = mixed(mixup=1.0)
    share = float(soft[0, 0])
    assert blended[0].unique().numel() == 1
    assert float(blended[0, 0, 0, 0]) == pytest.approx(1 - share, abs=1e-5)
    cut, soft = mixed(cutmix=1.0)
    assert sorted(cut.unique().tolist()) == [0.0, 1.0]
    assert float(cut[0].mean()) == pytest.approx(1 - float(soft[0, 0]), abs=1e-5)
    assert module(tiny()).mixup is None


@shows("clip_grad")
def test_clip_grad(tiny: Tiny, tmp_path: Path, weights: Callable[..., dict[str, Tensor]]) -> None:
    """Of plain gradient descent the first step is as long as the rate times the gradient."""

    def length(clip: float | None) -> float:
        config = tiny(
            optimizer="sgd", lr=0.1, warmup_epochs=0, weight_decay=0, max_steps=1, clip_grad=clip,
            output=str(tmp_path / f"{clip}"),
        )  # fmt: skip
        lightning.seed_everything(config.data.seed, verbose=False)
        before = dict(build_model(config.model, 3).named_parameters())
        after = weights(train(config))
        return float(torch.stack([(after[name] - before[name].detach()).norm() for name in before]).norm())

    clipped = length(1e-3)
    assert 1e-4 * 0.99 < clipped < 1e-4 * 2  # SGD here has Nesterov's momentum: up to 1.9 times
    assert length(None) > 100 * clipped


@shows("max_minutes")
def test_max_minutes(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a second."""
    seconds = iter(range(10**6))
    monkeypatch.setattr(schedule_module, "Clock", partial(Clock, now=lambda: float(next(seconds))))
    options: dict[str, Any] = {"max_minutes": 0.5, "max_steps": None, "epochs": 10**6, "precision": "32"}
    config = tiny(**options, warmup_epochs=0, output=str(tmp_path / "run"))
    rows = (train(config) / "metrics.csv").read_text().splitlines()
    names = rows[0].split(",")
    lrs = [float(row.split(",")[names.index("lr")]) for row in rows[1:]]
    assert 1 < len(lrs) < 15
    assert lrs == sorted(lrs, reverse=True)
    assert lrs[-1] < 1e-3 / 20


@shows("precision")
def test_precision(
    tiny: Tiny,
    tmp_path: Path,
    weights: Callable[..., dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[torch.dtype] = set()
    forward = nn.Linear.forward

    def noting(layer: nn.Linear, x: Tensor) -> Tensor:
        y = forward(layer, x)
        seen.add(y.dtype)
        return y

    monkeypatch.setattr(nn.Linear, "forward", noting)
    run = train(tiny(precision="bf16-mixed", max_steps=1, output=str(tmp_path / "run")))
    # The check of the input size is always in float32.
    assert seen == {torch.float32, torch.bfloat16}
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights(run).values())


def test_every_option_is_shown() -> None:
    """By a mark in one of the test files."""
    shown: list[str] = []
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "shows":
                shown += [ast.literal_eval(argument) for argument in node.args]
    assert set(shown) == set(OPTIONS)
