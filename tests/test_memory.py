"""Memory: what a machine or a container has left, and what a computation would take."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from command_line import one_line, run
from conformer_vision import Predictor, available, memory
from conformer_vision.available import available_memory
from conformer_vision.errors import UserError, machine_error
from conformer_vision.memory import check_batch, needed_memory
from conformer_vision.training.memory import training_step
from image_sets import opened

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """What is left on a machine with 8 GB, in control groups with these files."""
    counter, find_groups = iter(range(100)), available._groups

    def left(own: str, files: dict[str, str]) -> float:
        root = tmp_path / str(next(counter))
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(f"{content}\n")
        (root / "own").parent.mkdir(parents=True, exist_ok=True)
        (root / "own").write_text(own)
        groups = find_groups("memory", root, root / "own")
        monkeypatch.setattr(available, "_groups", lambda controller: groups)
        monkeypatch.setattr(available, "_machine_memory", lambda: 8.0 * GB)
        return available_memory() / GB

    return left


def test_what_the_machine_has_left(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\nSwapFree:  1024 kB\n")
    assert available._machine_memory(tmp_path / "meminfo") == 3 << 20
    assert 0 < available_memory() < 1 << 50


def two(limit: str, used: int, files: int = 0, *, at: str = "") -> dict[str, str]:
    """The files of a group, version 2."""
    return {
        f"{at}memory.max": limit,
        f"{at}memory.current": str(used),
        f"{at}memory.stat": f"anon 5\ninactive_file {files}",
    }


def test_a_container_or_a_job_has_less(machine: Callable[..., float]) -> None:
    assert machine("0::/\n", {}) == 8, "no limit"
    assert machine("0::/\n", two("max", GB)) == 8
    assert machine("0::/\n", two(str(3 * GB), GB)) == 2, "a container"
    assert machine("0::/\n", two(str(3 * GB), 2 * GB, GB)) == 2, "its files are given back"
    assert machine("0::/\n", two(str(GB), 2 * GB)) == 0
    job = two("max", GB, at="slurm/job/") | two(str(5 * GB), 2 * GB, at="slurm/")
    assert machine("0::/slurm/job\n", job) == 3, "of the innermost and all around it"
    one = {
        "memory/docker/x/memory.limit_in_bytes": str(4 * GB),
        "memory/docker/x/memory.usage_in_bytes": str(2 * GB),
        "memory/docker/x/memory.stat": f"total_inactive_file {GB}",
    }
    assert machine("4:memory:/docker/x\n0::/\n", one) == 3, "version 1"
    unlimited = one | {"memory/docker/x/memory.limit_in_bytes": str((1 << 63) - 4096)}
    assert machine("4:memory:/docker/x\n0::/\n", unlimited) == 8, "version 1 without a limit"
    inside = {name.replace("docker/x/", ""): content for name, content in one.items()}
    assert machine("4:cpu,memory:/docker/x\n", inside) == 3, "seen from inside"


def step(model: nn.Module, images: Tensor) -> None:
    model.train()(images).float().square().mean().backward()


def test_need_grows_with_the_images_and_shrinks_with_recomputation() -> None:
    model = timm.create_model("conformer_nano_patch4_32", depths=(2, 1, 2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    two, four, six = (needed_memory(model, step, (images, 3, 32, 32)) for images in (2, 4, 6))
    assert two < four < six
    assert six - four == pytest.approx(four - two, rel=0.05)
    model.set_grad_checkpointing("full")
    assert needed_memory(model, step, (6, 3, 32, 32)) < six
    model.set_grad_checkpointing("off")

    def predict(model: nn.Module, images: Tensor) -> None:
        with torch.no_grad():
            model.eval()(images)

    assert needed_memory(model, predict, (6, 3, 32, 32)) < six
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("conformer_nano_patch4_32", {"depths": (2, 1, 2)}),
        ("conformer_small_patch16_224", {"depths": (2, 1, 2)}),
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"depth": 2, "img_size": 64}),
    ],
)
def test_the_batch_that_is_advised_fits_and_no_larger_one(
    name: str, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model(name, num_classes=3, **kwargs)
    compute = partial(training_step, precision="32")
    needs = cache(lambda images: needed_memory(model, compute, (images, 3, 64, 64)))
    monkeypatch.setattr(memory, "needed_memory", lambda model, compute, shape: needs(shape[0]))
    left = 0

    def need(images: int) -> int:
        return needs(images) + 2 * 12 * images * 64**2 + (1 << 20)

    def check(images: int, **options: Any) -> str:
        monkeypatch.setattr(memory, "available_memory", lambda: left)
        try:
            check_batch(lambda: model, compute, (images, 3, 64, 64), batches=2, reserve=1 << 20, **options)
        except UserError as error:
            return str(error)
        return ""

    left = (need(5) + need(6)) // 2
    assert check(6).endswith("; give 5 or less") and not check(5)
    line = check(6, total=24)
    assert line.startswith("batch_size 24: needs ") and line.endswith("; give 20 or less"), "accumulated"
    left = need(1)
    assert check(6).endswith("; give 1") and not check(1)
    left = need(1) - 1
    for images in (1, 6):
        assert check(images).startswith(f"batch_size {images}: needs ")
        assert check(images).endswith("are left; give a smaller input_size or model")


def test_need_is_that_of_the_tensors_at_once() -> None:
    def compute(model: nn.Module, images: Tensor) -> None:
        first = images + 1  # 4 MB
        second = first * 2
        del first
        third = second[:, :1].exp()  # 1 MB
        del second
        third.add_(1)

    need = needed_memory(nn.Identity(), compute, (1 << 18, 4, 1, 1))
    assert need == int(1.05 * (8 << 20)) + memory.LIBRARIES


def test_evaluate_and_predict_refuse_what_does_not_fit(
    trained: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many images as there are: a large batch size alone is no mistake."""
    monkeypatch.setattr(memory, "available_memory", lambda: 1e5)
    monkeypatch.setattr(memory, "LIBRARIES", 0)
    count = len(opened("digits", split="val"))
    line = one_line(run("evaluate", trained, "--data=digits", "--batch_size=1000"))
    assert line.startswith(f"error: batch_size {count}: needs 0.") and "give a smaller --input_size" in line
    assert "batch_size 3: needs" in one_line(run("predict", trained, images, "--batch_size=1000"))
    with pytest.raises(UserError, match="batch_size 3: needs"):
        Predictor(trained)([images])
    monkeypatch.setattr(memory, "available_memory", lambda: 1e9)
    assert run("evaluate", trained, "--data=digits", "--batch_size=1000").status == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "memory has run out (MemoryError); give a smaller batch_size"),
        (
            RuntimeError("[enforce fail] can't allocate memory: 9 bytes"),
            "memory has run out",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to take 2 GiB"),
            "memory has run out (CUDA out",
        ),
        (OSError(12, "Cannot allocate memory"), "memory has run out"),
        (OSError(24, "Too many open files"), "too many open files; raise the limit (ulimit -n)"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "memory has run out while",
        ),
        (ImportError("no module named x"), None),
        (OSError(2, "No such file"), None),
        (RuntimeError("shape mismatch"), None),
    ],
    ids=str,
)
def test_what_a_machine_lacks_is_one_line(
    error: Exception, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = machine_error(error)
    assert found is None if line is None else found is not None and found.startswith(line)

    def failing(*_: object) -> int:
        raise error

    monkeypatch.setattr("conformer_vision.commands.models.run", failing)
    if line is None:
        with pytest.raises(type(error)):
            run("models")
    else:
        assert one_line(run("models")).startswith(f"error: {line}")
