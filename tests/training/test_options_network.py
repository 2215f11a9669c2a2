"""Options of the weights and their gradients: frozen, averaged, accumulated, recomputed, compiled."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from conformer_vision import evaluate
from conformer_vision.data import Splitting
from conformer_vision.errors import UserError
from conformer_vision.models import Conformer
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.averaging import _Average
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.network import build_model
from option_tools import VIT, batch, group_rates, module, rates, rows_of, shows

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]


def initial(config: TrainConfig) -> dict[str, Tensor]:
    """The weights that a run begins with."""
    lightning.seed_everything(config.data.seed, verbose=False)
    return {name: tensor.clone() for name, tensor in build_model(config.model, 3).state_dict().items()}


# ---- freezing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({"freeze_branch": "conv"}, r"stem\.|blocks\.\d+\.(bottleneck|fusion)\."),
        (
            {"freeze_blocks": 2, "freeze_branch": "trans"},
            r"stem\.|patch_embed\.|cls_token|blocks\.[01]\.|blocks\.\d+\.transformer\.",
        ),
    ],
    ids=str,
)
@shows("freeze_blocks", "freeze_branch")
def test_frozen_weights_stay(
    tiny: Tiny, tmp_path: Path, weights: Weights, changes: dict[str, Any], frozen: str
) -> None:
    """Bit for bit, BatchNorm's statistics too, over steps with weight decay and a validation between."""
    config = tiny(**changes, lr=0.01, weight_decay=0.5, max_steps=3, output=str(tmp_path / "run"))
    before, after = initial(config), weights(train(config))
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if re.match(frozen, name)}


def test_freezing_that_cannot_be(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="freeze_blocks is for Conformers; model resnet18 is none"):
        build_model(tiny(model="resnet18", model_kwargs={}, freeze_blocks=1).model, 3)
    with pytest.raises(UserError, match="freeze_branch is for Conformers; model resnet18 is none"):
        build_model(tiny(model="resnet18", model_kwargs={}, freeze_branch="conv").model, 3)
    with pytest.raises(UserError, match="freeze_blocks 6: the model has 5 blocks"):
        build_model(tiny(freeze_blocks=6).model, 3)


# ---- learning rates --------------------------------------------------------------------------------


@shows("layer_decay")
def test_layer_decay(tiny: Tiny) -> None:
    """From each block to the one before it the rate falls by the factor, at every step of the schedule."""
    config = tiny(layer_decay=0.5, lr=0.1, min_lr=0.01, epochs=3, max_steps=None)
    classifier = module(config)
    parts: Any = classifier.configure_optimizers()
    names = {id(parameter): name for name, parameter in classifier.model.named_parameters()}
    groups = parts["optimizer"].param_groups
    layers = [{names[id(parameter)].rsplit(".", 1)[0] for parameter in group["params"]} for group in groups]

    def rates_of(pattern: str, seen: list[float]) -> float:
        """The one learning rate of the layers whose names begin so."""
        found = {
            rate
            for rate, inside in zip(seen, layers, strict=True)
            if any(re.match(pattern, name) for name in inside)
        }
        assert len(found) == 1, (pattern, found)
        return found.pop()

    every = group_rates(config)
    plain = rates(tiny(lr=0.1, min_lr=0.01, epochs=3, max_steps=None))
    for seen, whole in zip(every, plain, strict=True):
        blocks = [rates_of(rf"blocks\.{number}\.", seen) for number in range(5)]
        assert [b / a for a, b in pairwise(blocks)] == pytest.approx([2.0] * 4)
        assert rates_of("stem", seen) == pytest.approx(blocks[0] / 2)
        assert rates_of("conv_head|trans_head", seen) == pytest.approx(whole)
        assert max(seen) == pytest.approx(whole)
    assert len(set(group_rates(tiny(layer_decay=1.0))[0])) == 1


# ---- averaging -------------------------------------------------------------------------------------


@shows("ema_decay", "ema_warmup")
def test_average_of_the_weights(
    tiny: Tiny,
    images: Path,
    tmp_path: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is kept and evaluated is the average of the weights after each step, by its definition.

    The warm-up decides after one step, the decay itself after the others.
    """
    steps: list[dict[str, Tensor]] = []

    def noting(self: ClassifierModule, *_: Any) -> None:
        steps.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})

    monkeypatch.setattr(ClassifierModule, "on_train_batch_end", noting)
    config = tiny(
        ema_decay=0.22,
        ema_warmup=True,
        lr=0.01,
        max_steps=4,
        output=str(tmp_path / "run"),
        val_fraction=0.25,
    )
    run = train(config)
    assert len(steps) == 4
    average = {name: tensor.double() for name, tensor in steps[0].items()}
    for count, current in enumerate(steps[1:], start=1):
        decay = min(0.22, (1 + count) / (10 + count))
        for name in average:
            average[name] = decay * average[name] + (1 - decay) * current[name].double()
    kept = weights(run)
    for name, tensor in kept.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), average[name], rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(tensor, steps[-1][name])
    assert not torch.equal(kept["cls_token"], steps[-1]["cls_token"])
    evaluation = evaluate(run / "last.safetensors", images, splitting=Splitting(0.25, 0), device="cpu")
    row = rows_of(run)[-1]
    losses = [evaluation.heads[head].log_loss.value for head in ("conv", "trans")]
    assert row["val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_average_without_warmup() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = _Average(model, device=torch.device("cpu"), decay=0.4, warmup=False)
    for value in (1.0, 2.0):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert average.module.weight.item() == pytest.approx(0.4 * 1 + 0.6 * 2)


# ---- accumulation ----------------------------------------------------------------------------------


@shows("accumulate")
def test_accumulated_gradients_are_those_of_the_whole_batch(
    tiny: Tiny, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    step = ClassifierModule.training_step

    def noting(self: ClassifierModule, images: Any, number: int) -> Tensor:
        sizes.append(len(images.labels))
        return step(self, images, number)

    monkeypatch.setattr(ClassifierModule, "training_step", noting)
    runs = {}
    for accumulate in (1, 4):
        config = tiny(
            **VIT, accumulate=accumulate, optimizer="sgd", lr=0.5, warmup_epochs=0, clip_grad=0.5,
            max_steps=3, output=str(tmp_path / str(accumulate)),
        )  # fmt: skip
        runs[accumulate] = train(config)
    assert sizes == [8] * 3 + [2] * 12
    begun = initial(config)
    whole, parts = weights(runs[1]), weights(runs[4])
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-6)
    assert max(float((whole[name] - begun[name]).abs().max()) for name in begun) > 1e-2
    one, four = rows_of(runs[1])[-1], rows_of(runs[4])[-1]
    for name in ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1_fused"):
        assert four[name] == pytest.approx(one[name], rel=1e-3), name


# ---- memory and speed ------------------------------------------------------------------------------


@shows("grad_checkpointing")
def test_recomputed_gradients_are_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stochastic depth and BatchNorm's statistics included; every block is computed twice."""
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    images = batch(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3)
    seen: list[tuple[dict[str, Tensor], dict[str, Tensor], Counter[str]]] = []
    for recompute in ("off", "full"):
        classifier = module(tiny(grad_checkpointing=recompute, drop_path_rate=0.5)).train()
        count: Counter[str] = Counter()
        for number, block in enumerate(classifier.model.blocks):
            block.transformer.register_forward_hook(
                lambda *_, number=number, count=count: count.update([str(number)])
            )
        classifier.training_step(images, 0).backward()
        gradients = {name: p.grad for name, p in classifier.model.named_parameters() if p.grad is not None}
        seen.append((gradients, dict(classifier.model.named_buffers()), count))
    (plain, statistics, once), (recomputed, statistics_too, twice) = seen
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(statistics[name], statistics_too[name]) for name in statistics)
    assert set(once.values()) == {1}
    assert set(twice.values()) == {2}


def test_cheap_recomputation_trains_the_same_weights(tiny: Tiny, tmp_path: Path, weights: Weights) -> None:
    """Bit for bit after two steps, BatchNorm's statistics included."""
    plain, cheap = (
        weights(train(tiny(grad_checkpointing=how, drop_path_rate=0.5, lr=0.01, output=str(tmp_path / how))))
        for how in ("off", "cheap")
    )
    assert plain.keys() == cheap.keys()
    assert all(torch.equal(tensor, cheap[name]) for name, tensor in plain.items())


def test_a_model_without_recomputation(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="grad_checkpointing: this model has none; leave it out"):
        module(tiny(model="inception_v4", model_kwargs={}, grad_checkpointing="full", input_size=96))


# ---- loss and input --------------------------------------------------------------------------------


@shows("conv_loss_share")
def test_losses_of_the_heads(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def loss(**changes: Any) -> tuple[float, Any]:
        classifier = module(tiny(label_smoothing=0.0, **changes)).train()
        return float(classifier.training_step(batch(images, labels), 0).detach()), classifier.model

    whole, model = loss()
    model.set_distilled_training(True)
    with torch.no_grad():
        conv, trans = model(images)
    alone = [float(nn.functional.cross_entropy(head, labels)) for head in (conv, trans)]
    assert whole == pytest.approx(sum(alone) / 2)
    assert loss(conv_loss_share=0.25)[0] == pytest.approx(0.25 * alone[0] + 0.75 * alone[1])
    with pytest.raises(UserError, match="conv_loss_share is for the two heads of a Conformer"):
        module(tiny(model="resnet18", model_kwargs={}, conv_loss_share=0.4))


@shows("progressive_from")
def test_the_input_grows(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    step = Conformer.forward_features

    def noting(model: Conformer, x: Tensor) -> Tensor:
        if model.training:
            sizes.append(tuple(x.shape[2:]))
        return step(model, x)

    monkeypatch.setattr(Conformer, "forward_features", noting)
    train(tiny(progressive_from=32, input_size=48, max_steps=4, output=str(tmp_path / "run")))
    assert sizes == [(32, 32), (40, 40), (40, 40), (48, 48)]
    with pytest.raises(UserError, match="progressive_from 48: must be below input_size, 48x48"):
        train(tiny(progressive_from=48, input_size=48, output=str(tmp_path / "no")))
    vit = {"model": "vit_tiny_patch16_224", "model_kwargs": {"depth": 1, "embed_dim": 48}}
    with pytest.raises(UserError, match=r"progressive_from 32x32: vit_tiny_patch16_224 cannot take it"):
        train(tiny(**vit, progressive_from=32, input_size=48, output=str(tmp_path / "no")))
    with pytest.raises(UserError, match="progressive_from 31: must be 32 or more"):
        tiny(progressive_from=31, input_size=48)
    assert not (tmp_path / "no").exists()


@shows("channels_last")
def test_layout_of_images_and_kernels(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as asked, and the gradients are the same; in float64, for rounding decides which ReLU is on."""
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4) % 3
    seen: list[Tensor] = []
    gradients = []
    for channels_last in (False, True):
        classifier = module(tiny(channels_last=channels_last)).train().double()
        classifier.model.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        classifier.training_step(batch(images, labels), 0).backward()
        parameters = dict(classifier.model.named_parameters())
        kernels = [p for p in parameters.values() if p.ndim == 4 and p[0, 0].numel() > 1]
        layouts = {t.is_contiguous(memory_format=torch.channels_last) for t in (seen[-1], *kernels)}
        assert layouts == {channels_last}
        gradients.append({name: p.grad for name, p in parameters.items() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-8, atol=1e-12, msg=name)


@shows("compile")
def test_compiled_network_keeps_names_and_loss(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiler's front end alone: its back end takes minutes and another's compiler."""
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    compiling = partial(torch.compile, backend="eager")
    traced: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda call, **_: (traced.append(call), compiling(call))[1])
    images = batch(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    losses, names = [], []
    for compiled in (False, True):
        classifier = module(tiny(compile=compiled, model_kwargs={"depths": [2, 1, 2]})).train()
        losses.append(classifier.training_step(images, 0).detach())
        names.append(list(classifier.model.state_dict()))
    assert len(traced) == 1
    torch.testing.assert_close(losses[0], losses[1])
    assert names[0] == names[1]
