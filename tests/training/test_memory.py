"""The largest batch: found by steps that run out of memory, or calculated before they do."""

import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformer_vision import memory as machine
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, memory, train
from conformer_vision.training.memory import largest_batch, peak_memory, training_step
from conformer_vision.training.network import build_network, find_batch_size
from conformer_vision.training.parts import prepare
from conformer_vision.training.precision import where_open
from image_sets import opened
from option_tools import shows

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")
MB = 1 << 20
RESNET: dict[str, Any] = {"model": "test_resnet", "model_kwargs": {}}  # of fewer operations


class Layers(nn.Module):
    """Keeps a megabyte for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, MB // 4, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)).sigmoid()


def largest(device: torch.device = CPU, **options: Any) -> int:
    return largest_batch(Layers(), (1, 2, 2), precision="32", device=device, **options)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many bytes the machine has left."""

    def make(size: float) -> None:
        monkeypatch.setattr(memory, "RESERVE", 0)
        monkeypatch.setattr(memory, "PER_WORKER", 0)
        monkeypatch.setattr(memory, "available_memory", lambda: size)
        monkeypatch.setattr(machine, "available_memory", lambda: size)

    return make


def test_need_is_calculated(there: Callable[[float], None]) -> None:
    """A step takes some megabytes per image, and 250 MB besides; 15 % of the memory stay free."""
    found = []
    for size in (400 * MB, 800 * MB, 1600 * MB, 1e15):
        there(size)
        found.append(largest())
    assert found == sorted(found) and 8 <= found[0] < found[1] < found[2] < found[3] == 4096
    need = machine.needed_memory(
        Layers(), lambda *inputs: training_step(*inputs, precision="32"), (64, 1, 2, 2)
    )
    there(need / 0.85 * 1.001)
    assert largest() == 64
    there(need / 0.85 * 0.999)
    assert largest() == 32


def test_no_more_than_there_are(there: Callable[[float], None]) -> None:
    there(1e15)
    assert [largest(most=most) for most in (100, 64, 1)] == [64, 64, 1]
    with pytest.raises(UserError, match="batch_size auto"):
        largest(most=0)  # more passes per step than images
    there(1e3)
    with pytest.raises(UserError, match="not even 2 images fit into the memory of cpu") as caught:
        largest()
    assert "grad_checkpointing" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_steps_are_tried_on_a_gpu_until_memory_runs_out(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    freed: list[int] = []
    # In a process of so many libraries each collection takes a second.
    monkeypatch.setattr(memory, "gc", SimpleNamespace(collect=lambda: freed.append(1)))

    def step(model: nn.Module, images: Tensor, *, precision: str) -> None:
        tried.append(len(images))
        if len(images) > 40:
            raise error

    monkeypatch.setattr(memory, "training_step", step)
    gpu = torch.device("meta")  # as good as one, without a count of its memory
    assert largest(gpu) == 32
    assert tried == [2, 4, 8, 16, 32, 64]
    assert len(freed) == len(tried), "after every step"
    error = RuntimeError("shape mismatch")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        largest(gpu)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_step_in_the_arithmetic_of_the_run(precision: str) -> None:
    seen: list[tuple[torch.Size, torch.dtype]] = []

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.head(x.flatten(1))
            seen.append((x.shape, logits.dtype))
            return logits, logits

    model = Two().eval()
    backward: list[int] = []
    model.head.weight.register_hook(lambda gradient: backward.append(1))
    (state, _) = training_step(model, torch.zeros(4, 3, 2, 2), precision=precision)
    assert seen == [((4, 3, 2, 2), torch.float32 if precision == "32" else torch.bfloat16)]
    assert model.training and len(backward) == 1
    assert state.shape == (2, 3, 12)
    assert model.head.weight.grad is None, "the next step begins without it"


def test_peak_of_this_process() -> None:
    before = peak_memory(CPU)
    assert 10 * MB < before < 2**40
    block = torch.ones(64 * MB, dtype=torch.uint8)
    assert peak_memory(CPU) >= before
    del block
    assert peak_memory(CPU) >= before, "it never falls"


@shows("batch_size")
def test_batch_size_auto(
    tiny: Tiny,
    there: Callable[[float], None],
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A step takes no more than the images and two passes allow; the kept recipe has the number."""
    there(1e12)
    auto = partial(tiny, **RESNET, batch_size="auto")
    run = train(auto(accumulate=2, max_steps=1, output=str(tmp_path / "run")))
    train_images = len(opened(tiny().data.data, split="train", val_fraction=0.1))
    line = f"batch_size: {2 * 2 ** ((train_images // 2).bit_length() - 1)}\n"
    assert line in capsys.readouterr().out
    assert line in (run / "config.yaml").read_text()
    with pytest.raises(UserError, match="batch_size auto is for one process"):
        train(auto(devices=2, output=str(tmp_path / "other")))
    assert prepare(auto(accumulate=3)).data.batch_size == 24, "of about 33 images, 11 are a third"


def test_search_leaves_the_model_as_it_was(tiny: Tiny) -> None:
    config = tiny(batch_size="auto")
    network = build_network(config.model, config.hardware, ("a", "b", "c"))
    model = network.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    few: Any = range(5)  # images
    assert find_batch_size(network, few, config.data, where_open(config.hardware)) == 4
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes", [{"batch_size": 32}, {"batch_size": 32, "accumulate": 2, "workers": 1}], ids=str
)
def test_a_batch_that_does_not_fit_is_refused(
    changes: dict[str, int], tiny: Tiny, there: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", 0)
    there(1e8)
    config = partial(tiny, **RESNET, input_size=160)
    line = r"^batch_size 32: needs 0\.\d GB of memory, of which 0\.1 GB are left; give (\d+) or less$"
    with pytest.raises(UserError, match=line) as caught:
        prepare(config(**changes))
    match = re.search(line, str(caught.value))
    assert match
    fits = int(match[1])
    assert 2 < fits < 32
    assert prepare(config(**changes | {"batch_size": fits})).data.batch_size == fits
    there(1e7)
    with pytest.raises(UserError, match="; give a smaller input_size or model"):
        prepare(config(**changes))


def test_an_image_that_does_not_fit_is_refused(tiny: Tiny, there: Callable[[float], None]) -> None:
    there(1e9)
    line = r"^input_size 4096x4096: needs .* GB of memory, of which 1\.0 GB are left; give a smaller one$"
    with pytest.raises(UserError, match=line):
        prepare(tiny(input_size=4096, batch_size=2))
