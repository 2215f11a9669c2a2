"""Fine-tuning in two stages: the heads first, then all layers."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from conformer_vision import ClassifierModule
from conformer_vision.errors import UserError
from conformer_vision.models.freezing import freeze_trunk
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.groups import ScheduleConfig
from conformer_vision.training.run import resume
from conformer_vision.training.schedule import Schedule
from conformer_vision.training.stages import HeadsFirst
from conformer_vision.training.start import settle
from option_tools import VIT, killed_after, rates, rows_of, same, shows, untimed

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
RESNET: dict[str, Any] = {"model": "test_resnet", "model_kwargs": {}}
STAGES: dict[str, Any] = {
    "epochs": 4,
    "max_steps": None,
    "freeze_share": 0.5,
    "unfreeze_lr_scale": 0.1,
    "lr": 0.01,
}
"""Four epochs of four steps; the heads alone in the first two."""


@pytest.fixture(scope="module")
def start(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """Weights to start from, which fine-tuning has to keep: those of a run of a single step."""
    made: dict[str, Path] = {}

    def weights(network: dict[str, Any]) -> Path:
        name = network.get("model", "conformer")
        if name not in made:
            run = tmp_path_factory.mktemp("start") / name
            made[name] = train(tiny(**network, max_steps=1, output=str(run))) / "last.safetensors"
        return made[name]

    return weights


@pytest.mark.parametrize("network", [{}, RESNET, VIT], ids=["conformer", "resnet", "vit"])
@shows("freeze_share", "unfreeze_lr_scale")
def test_the_heads_learn_first_and_then_all(
    tiny: Tiny, tmp_path: Path, weights: Weights, start: Any, network: dict[str, Any]
) -> None:
    """Bit for bit, buffers too: after the first stage only the heads differ, after the second everything."""
    begun = start(network)
    before = weights(begun.parent)
    options = network | STAGES | {"checkpoint": str(begun), "weight_decay": 0.5}
    first = weights(train(tiny(**options | {"epochs": 2, "freeze_share": 1}, output=str(tmp_path / "first"))))
    both = weights(train(tiny(**options, output=str(tmp_path / "both"))))
    heads = {name for name in before if "head" in name or name.startswith("fc.")}
    assert heads
    changed = {name for name in before if not torch.equal(before[name], first[name])}
    assert changed == heads
    changed = {name for name in before if not torch.equal(first[name], both[name])}
    assert changed == set(before)


def test_the_rate_in_each_stage(tiny: Tiny, start: Any) -> None:
    """Each has its own warm-up and cosine; the second's peak is the scale times the first's."""
    config = tiny(
        **STAGES | {"epochs": 10, "freeze_share": 0.4},
        min_lr=1e-5,
        layer_decay=1.0,
        checkpoint=str(start({})),
    )
    seen = rates(config)
    assert len(seen) == 100
    at_once = {"freeze_share": 0.0}
    alone = rates(config.with_options(epochs=4, **at_once))
    assert seen[:40] == pytest.approx(alone)
    second = config.with_options(epochs=6, lr=1e-3, **at_once)
    assert seen[40:] == pytest.approx(rates(second))
    assert max(seen[40:]) == pytest.approx(1e-3, rel=1e-2)
    short = rates(config.with_options(max_steps=50))  # a shorter run has shorter stages
    assert short[:20] == pytest.approx(rates(config.with_options(max_steps=20, **at_once)))
    assert short[20:] == pytest.approx(rates(second.with_options(max_steps=30)))


def test_time_ends_each_stage_too() -> None:
    """Of a minute the first fifth is the heads', which the rate follows; what has ended stays ended."""
    config = ScheduleConfig(
        epochs=1000, freeze_share=0.2, unfreeze_lr_scale=0.1, max_minutes=1, min_lr=0, warmup_epochs=0
    )
    schedule = Schedule(config, lr=1.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule.scheduler(optimizer, 10_000)
    assert schedule.frozen_steps == 2000
    rates, frozen = [], []
    for step, second in enumerate((0, 6, 11, 12, 36, 60)):
        schedule.clock.load_state_dict({"elapsed": float(second), "reserve": 0.0})
        frozen.append(schedule.is_frozen(step))
        scheduler.last_epoch = step - 1
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert frozen == [True, True, True, False, False, False]
    half = 0.5 * (1 + math.cos(math.pi * 0.5))
    assert rates == pytest.approx([1, half, rates[2], 0.1, 0.1 * half, 0], rel=1e-3, abs=1e-6)
    assert rates[2] < 0.02
    schedule.clock.load_state_dict({"elapsed": 1.0, "reserve": 0.0})
    assert not schedule.is_frozen(4)
    assert schedule.work(10) == pytest.approx(3 * 0.35 + 7)


def test_a_run_resumes_in_the_stage_that_the_clock_had_ended() -> None:
    config = ScheduleConfig(epochs=10, freeze_share=0.5, max_minutes=1)
    schedule, later = Schedule(config, lr=1.0), Schedule(config, lr=1.0)
    schedule.frozen_steps = 7
    state = HeadsFirst(schedule).state_dict()
    callback = HeadsFirst(later)
    callback.load_state_dict(state)
    later.frozen_steps = 50  # as making the optimizer sets it
    module: Any = SimpleNamespace(model=timm.create_model("test_resnet"), train=lambda: None)
    callback.on_train_start(SimpleNamespace(global_step=8), module)  # type: ignore[arg-type]
    assert later.frozen_steps == 7
    assert not callback.active


def test_the_rate_that_is_not_given_is_the_second_stages(tiny: Tiny, start: Any) -> None:
    options = {"checkpoint": str(start({})), "freeze_share": 0.25, "unfreeze_lr_scale": 0.1}
    assert settle(tiny(**options)).config.optimizer.lr == pytest.approx(2e-2)
    assert settle(tiny(**options, lr=0.5)).config.optimizer.lr == 0.5


EVERYTHING: dict[str, Any] = STAGES | {
    "batch_size": 8,
    "accumulate": 2,
    "ema_decay": 0.9,
    "mixup": 0.4,
    "drop_path_rate": 0.2,
    "save_minutes": 1e-9,
    "patience": 9,
}


@pytest.mark.parametrize("batches", [5, 16, 17, 21])
def test_resuming_in_either_stage_and_between_them(
    tiny: Tiny,
    start: Any,
    tmp_path: Path,
    weights: Weights,
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
) -> None:
    """Killed before any of these batches (16 make the first stage), the run ends bit for bit the same."""
    run = tmp_path / "run"
    killed_after(batches, tiny(**EVERYTHING, checkpoint=str(start({})), output=str(run)), monkeypatch)
    resume(run)
    assert same(weights(run), weights(whole))
    assert same(weights(run, "best.safetensors"), weights(whole, "best.safetensors"))
    assert untimed(run) == untimed(whole)


@pytest.fixture(scope="module")
def whole(tiny: Tiny, start: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without an interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return train(tiny(**EVERYTHING, checkpoint=str(start({})), output=str(run)))


def test_patience_begins_with_the_second_stage(tiny: Tiny, start: Any, tmp_path: Path) -> None:
    """Without a learning rate top-1 never rises."""
    options = VIT | STAGES | {"epochs": 9, "freeze_share": 4 / 9, "lr": 1e-30, "min_lr": 0.0, "patience": 2}
    run = train(tiny(**options, checkpoint=str(start(VIT)), output=str(tmp_path / "run")))
    assert [row["epoch"] for row in rows_of(run)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_distilled_patch16_224",
        "test_convnext",
        "test_efficientnet",
        "test_nfnet",
        "test_byobnet",
        "mobilenetv3_small_050",
        "conformer_nano_patch8_64",
    ],
)
def test_nothing_but_the_heads_of_any_model_learns(name: str) -> None:
    """A step with a large rate and with dropout: buffers stay, and what the trunk computes draws nothing."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, drop_path_rate=0.0).train()
    size = (32, 32) if "conformer" in name else model.default_cfg["input_size"][1:]
    freeze_trunk(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    logits = model(torch.randn(2, 3, *size))
    sum(out.sum() for out in (logits if isinstance(logits, tuple) else [logits])).backward()
    optimizer.step()
    found = model.get_classifier()
    heads = {id(p) for head in (found if isinstance(found, tuple) else [found]) for p in head.parameters()}
    names = {key for key, p in model.named_parameters() if id(p) in heads}
    after = model.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == names


def test_the_callback_in_ones_own_trainer(tiny: Tiny) -> None:
    """Hooks of one's own see every step; parts that were frozen before stay so, and all else learns again."""
    model: Any = timm.create_model("test_resnet", num_classes=3)
    model.conv1.requires_grad_(False)
    seen: list[bool] = []
    model.bn1.register_forward_hook(lambda layer, *_: seen.append(layer.training))
    batches = DataLoader(TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 3), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=[HeadsFirst(1)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(ClassifierModule(model), batches, batches)
    # Two steps and a validation of two batches in each epoch.
    assert seen == [False] * 4 + [True] * 2 + [False] * 2
    assert all(p.requires_grad != name.startswith("conv1.") for name, p in model.named_parameters())


def test_from_scratch_all_layers_learn_at_once(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to keep, and the run says so; its configuration says what happened."""
    run = train(tiny(**VIT | STAGES, output=str(tmp_path / "run")))
    assert "note: all layers learn at once, as there is nothing to keep" in capsys.readouterr().out
    config = (run / "config.yaml").read_text()
    assert "freeze_share: 0.0\n" in config


def test_values_that_do_not_fit(tiny: Tiny, start: Any) -> None:
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match=f"freeze_share {share}: must be from 0 to 1"):
            tiny(freeze_share=share)
    for scale in (0.0, 1.5, math.nan):
        with pytest.raises(UserError, match=f"unfreeze_lr_scale {scale}: must be above 0 and at most 1"):
            tiny(freeze_share=0.5, unfreeze_lr_scale=scale)
    with pytest.raises(ValueError, match="the model has no classifier heads"):
        freeze_trunk(timm.create_model("test_resnet", num_classes=0))
