"""The largest batch: found by steps that run out of memory, or before they do."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, memory, train
from conformer_vision.training import network as network_module
from conformer_vision.training.memory import largest_batch, peak_memory, training_step
from conformer_vision.training.network import build_network, find_batch_size
from conformer_vision.training.run import prepare
from option_tools import shows

Tiny = Callable[..., TrainConfig]
CPU = torch.device("cpu")
MB = 2**20


class Machine:
    """Memory that steps of so many bytes per image fill."""

    def __init__(self, per_image: float, *, total: float, base: float = 100 * MB) -> None:
        self.per_image = per_image
        self.total = total
        self.base = base
        self.used = base
        self.tried: list[int] = []

    def step(self, size: int) -> None:
        self.tried.append(size)
        need = self.base + size * self.per_image
        assert need <= self.total, "the system would have ended the process"
        self.used = max(self.used, need)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(per_image: float, *, total: float, base: float = 100 * MB) -> Machine:
        made = Machine(per_image, total=total, base=base)
        monkeypatch.setattr(memory, "peak_memory", lambda device: int(made.used))
        monkeypatch.setattr(memory, "_release", lambda device: None)  # collecting garbage takes time
        monkeypatch.setattr(
            memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(made.total - made.used))
        )
        return made

    return make


@pytest.mark.parametrize(
    ("total", "wanted"), [(1000, 64), (1400, 64), (10_000, 512), (150, 4), (10**9, 4096)]
)
def test_need_is_extrapolated(machine: Callable[..., Machine], total: float, wanted: int) -> None:
    """Of 10 MB per image and 100 MB besides, in 85 % of what is free; no step goes beyond memory."""
    made = machine(10 * MB, total=total * MB)
    assert largest_batch(made.step, CPU) == wanted
    assert made.tried == [2**k for k in range(1, wanted.bit_length())]


def test_no_more_than_there_are(machine: Callable[..., Machine]) -> None:
    made = machine(1 * MB, total=10_000 * MB)
    assert largest_batch(made.step, CPU, most=100) == 64
    assert largest_batch(made.step, CPU, most=64) == 64
    assert largest_batch(made.step, CPU, most=1) == 1


@pytest.mark.timeout(10)
def test_not_one_image(machine: Callable[..., Machine]) -> None:
    """More passes per step than images: an error, and no search without an end."""
    with pytest.raises(UserError, match="batch_size auto"):
        largest_batch(machine(1, total=10).step, CPU, most=0)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: out of memory")],
)
@pytest.mark.parametrize(("fits", "wanted"), [(40, 32), (32, 32), (2, 2)])
def test_out_of_memory_ends_the_search(
    machine: Callable[..., Machine], error: RuntimeError, fits: int, wanted: int
) -> None:
    made = machine(1, total=10**12)

    def step(size: int) -> None:
        if size > fits:
            raise error
        made.step(size)

    assert largest_batch(step, CPU) == wanted


def test_not_even_two_fit() -> None:
    def step(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(
        UserError, match="batch_size auto: not even 2 images fit into the memory of cpu"
    ) as caught:
        largest_batch(step, CPU)
    assert "grad_checkpointing" in str(caught.value)


def test_other_errors_are_not_hidden() -> None:
    def step(size: int) -> None:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        largest_batch(step, CPU)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_step_of_the_search(precision: str) -> None:
    """Forward and backward over so many images, in the run's arithmetic."""
    seen: list[tuple[torch.Size, torch.dtype]] = []

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.head(x.flatten(1))
            seen.append((x.shape, logits.dtype))
            return logits, logits

    model = Two()
    backward: list[int] = []
    model.head.weight.register_hook(lambda gradient: backward.append(1))
    step = training_step(model, image_shape=(3, 2, 2), precision=precision, device=CPU)
    step(4)
    step(8)
    kind = torch.float32 if precision == "32" else torch.bfloat16
    assert seen == [((4, 3, 2, 2), kind), ((8, 3, 2, 2), kind)]
    assert len(backward) == 2
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
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    capsys: pytest.CaptureFixture[str],
    without_curves: None,
) -> None:
    """Of a machine on which 8 images fit; the kept recipe has the number."""
    made = machine(10 * MB, total=230 * MB)
    monkeypatch.setattr(network_module, "training_step", lambda model, **_: made.step)
    run = train(tiny(batch_size="auto", accumulate=2, max_steps=1, output=str(tmp_path / "run")))
    assert "batch_size: 16\n" in capsys.readouterr().out
    assert "batch_size: 16\n" in (run / "config.yaml").read_text()
    with pytest.raises(UserError, match="batch_size auto is for one process"):
        train(tiny(batch_size="auto", devices=2, output=str(tmp_path / "other")))


def test_search_leaves_the_model_as_it_was(tiny: Tiny) -> None:
    config = tiny(batch_size="auto")
    network = build_network(config.model, config.hardware, ("a", "b", "c"))
    model = network.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    few: Any = range(5)  # images
    assert find_batch_size(network, few, config.data, config.hardware) == 4
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_more_than_the_training_images(
    tiny: Tiny, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = machine(1, total=10**12)
    monkeypatch.setattr(network_module, "training_step", lambda model, **_: made.step)
    config = tiny(batch_size="auto", accumulate=3)
    assert prepare(config).data.batch_size == 24, "of 33 images 11 are a third"
