"""A training that diverges: where it began is named, and the last good state is kept."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from command_line import TINY, one_line, run
from conformer_vision.data import datamodule
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.guard import TrainingDivergedError, branch_of, find_first
from conformer_vision.training.losses import BranchLoss
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.network import build_model
from conformer_vision.training.run import resume
from conformer_vision.weights import load_model
from option_tools import rows_of

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
AT = 5
"""Steps done when it happens: in the second epoch of four steps."""
BRANCHES = {
    "stem.conv": "stem",
    "patch_embed": "transformer branch",
    "blocks.1.bottleneck.conv2": "convolution branch",
    "blocks.2.fusion.conv1": "convolution branch",
    "blocks.2.transformer.mlp.fc1": "transformer branch",
    "blocks.2.fcu_down": "coupling from the convolution to the transformer branch",
    "blocks.2.fcu_up": "coupling from the transformer to the convolution branch",
    "conv_head": "convolution branch",
    "trans_head": "transformer branch",
}


class Poison(torch.autograd.Function):
    """Leaves the values as they are and makes the gradient not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * torch.nan


def infinite(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook that makes one value of the output infinite."""
    first = output if isinstance(output, Tensor) else output[0]
    first = torch.where(torch.arange(first.numel()).reshape(first.shape) == 0, torch.inf, first)
    return first if isinstance(output, Tensor) else (first, *output[1:])


def test_the_first_module_is_named(tiny: Tiny) -> None:
    model = build_model(tiny().model, 3).train()
    images = torch.randn(4, 3, 32, 32)
    for name, branch in BRANCHES.items():
        hook = model.get_submodule(name).register_forward_hook(infinite)
        assert find_first(model, images, parameter=None, autocast=nullcontext) == ("output", name)
        assert branch_of(name) == branch
        hook.remove()
    assert find_first(model, images, parameter=None, autocast=nullcontext) == ("loss", "loss")
    assert find_first(model, images * torch.nan, parameter=None, autocast=nullcontext) == ("input", "")
    weight = "blocks.3.transformer.attn.qkv.weight"
    with torch.no_grad():
        model.get_parameter(weight)[1, 2] = torch.inf
    assert find_first(model, images, parameter=None, autocast=nullcontext) == ("weights", weight)


Diverging = Callable[..., tuple[TrainingDivergedError, dict[str, Any]]]


@pytest.fixture
def diverging(tiny: Tiny, tmp_path: Path) -> Diverging:
    """Trains and lets `harm` the module after so many steps; what is raised, and not_finite.json."""

    def start(
        harm: Callable[[ClassifierModule, Any], None], **changes: Any
    ) -> tuple[TrainingDivergedError, dict[str, Any]]:
        step = ClassifierModule.training_step

        def training_step(self: ClassifierModule, batch: Any, number: int) -> Tensor:
            if self.trainer.global_step == AT:
                harm(self, batch)
            return step(self, batch, number)

        output = tmp_path / "run"
        settings = {"epochs": 2, "max_steps": None, "lr": 0.01, "warmup_epochs": 0.0, "output": str(output)}
        with pytest.MonkeyPatch.context() as patch, pytest.raises(TrainingDivergedError) as caught:
            patch.setattr(ClassifierModule, "training_step", training_step)
            train(tiny(**settings | changes))
        text = (output / "not_finite.json").read_text(encoding="utf-8")
        assert "NaN" not in text
        report = json.loads(text)
        line = str(caught.value)
        assert "\n" not in line
        assert f"training diverged in epoch 2 at step {AT} (lr " in line
        assert report["remedy"] in line
        assert (report["epoch"], report["step"]) == (2, AT)
        assert 0 < report["lr"] < 0.01
        return caught.value, report

    return start


@pytest.mark.parametrize("save_minutes", [15.0, 1e-9])
def test_the_last_good_state_is_kept(
    diverging: Diverging, tmp_path: Path, weights: Weights, save_minutes: float
) -> None:
    """Of the end of the epoch before, or of the step before."""

    def harm(module: ClassifierModule, batch: Any) -> None:
        module.model.get_submodule("stem.conv").register_forward_hook(infinite)

    error, report = diverging(harm, save_minutes=save_minutes)
    assert (report["what"], report["module"], report["branch"]) == ("output", "stem.conv", "stem")
    assert "the output of stem.conv (stem) is the first that is not finite" in str(error)
    assert "lower lr (to " in report["remedy"]
    run = tmp_path / "run"
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert state["global_step"] == (4 if save_minutes == 15 else AT)
    kept = weights(run)
    assert all(tensor.isfinite().all() for tensor in kept.values() if tensor.is_floating_point())
    mine = {name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items()}
    assert all(torch.equal(kept[name], mine[name]) for name in kept)
    load_model(run / "best.safetensors")
    assert len(rows_of(run)) == 1


def test_images_are_named_and_the_run_can_go_on(diverging: Diverging, tmp_path: Path) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        batch.images[2, 0, 3, 3] = torch.nan

    error, report = diverging(harm)
    assert (report["what"], report["module"], report["branch"]) == ("input", "", "")
    assert "the images of the batch hold values that are not finite" in str(error)
    assert len(report["images"]) == 8
    assert all(Path(name).is_file() for name in report["images"])
    assert "lr" not in report["remedy"].split()
    resume(tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == 2


def test_loss_alone_in_parts_of_a_step_and_less_precision(
    diverging: Diverging, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        forward = BranchLoss.forward
        monkeypatch.setattr(BranchLoss, "forward", lambda *inputs: forward(*inputs) * torch.inf)

    error, report = diverging(harm, accumulate=2, precision="bf16-mixed")
    assert (report["what"], report["branch"], report["precision"]) == ("loss", "", "bf16-mixed")
    assert "all outputs are finite, the loss is not" in str(error)
    assert "use precision 32" in report["remedy"]
    assert len(report["images"]) == 4


def test_gradient_alone(diverging: Diverging) -> None:
    """From the head on; of all parameters before it, the first in the network's order is named."""

    def harm(module: ClassifierModule, batch: Any) -> None:
        module.model.trans_head.register_forward_pre_hook(lambda _, inputs: (Poison.apply(inputs[0]),))

    error, report = diverging(harm)
    assert (report["what"], report["module"]) == ("gradient", "cls_token")
    assert "the loss is finite, the gradient of" in str(error)
    assert report["images"]


def test_gradient_of_one_parameter_of_a_network_without_branches(diverging: Diverging) -> None:
    def harm(module: ClassifierModule, batch: Any) -> None:
        weight = module.model.get_parameter("layer2.0.conv1.weight")
        weight.register_hook(lambda gradient: gradient * torch.nan)

    _, report = diverging(harm, model="test_resnet", model_kwargs={})
    assert (report["what"], report["module"]) == ("gradient", "layer2.0.conv1.weight")
    assert report["branch"] == ""


def test_exit_status(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first step: there is no good state, but what was found is kept."""
    build = datamodule.build_transform

    def broken(preprocessing: Any, augment: Any = None) -> Any:
        transform = build(preprocessing, augment)
        return transform if augment is None else lambda image: transform(image) * torch.nan

    monkeypatch.setattr(datamodule, "build_transform", broken)
    output = tmp_path / "run"
    line = one_line(run("train", f"--data={images}", *TINY, f"--output={output}"))
    assert line.startswith("error: training diverged in epoch 1 at step 0 (lr ")
    assert str(output / "not_finite.json") in line
    assert json.loads((output / "not_finite.json").read_text())["what"] == "input"
