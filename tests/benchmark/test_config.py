"""What can be asked for, and what cannot."""

from pathlib import Path

import pytest

from conformer_vision.benchmark.config import (
    DEFAULT_PEERS,
    BenchmarkConfig,
    Runtime,
    check_target,
    parse_runtime,
)
from conformer_vision.errors import UserError


@pytest.mark.parametrize(
    ("text", "runtime"),
    [
        ("eager", Runtime("eager")),
        ("onnx", Runtime("onnx", "fp32")),
        ("onnx-int8", Runtime("onnx", "int8")),
        ("folded-compiled-bf16", Runtime("folded-compiled", "bf16")),
        ("folded-max-autotune", Runtime("folded-max-autotune")),
        ("torch-export-fp16", Runtime("torch-export", "fp16")),
    ],
)
def test_runtimes(text: str, runtime: Runtime) -> None:
    assert parse_runtime(text) == runtime
    assert runtime.name == text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"models": ()}, "models: give at least one"),
        ({"runtimes": ()}, "runtimes: give at least one"),
        ({"runtimes": ("onx",)}, "runtimes onx: must be one of .*; did you mean onnx?"),
        ({"runtimes": ("eager-int8",)}, "runtimes eager-int8: PyTorch has no int8 here"),
        ({"runtimes": ("onnx-fp8",)}, "runtimes onnx-fp8: must be one of"),
        ({"peer_runtimes": ("folded",)}, "peer_runtimes folded: is for Conformers"),
        ({"batch": (1, 0)}, "batch 0: must be 1 or more"),
        ({"batch": ()}, "batch: give at least one"),
        ({"repeats": 0}, "repeats 0: must be 1 or more"),
        ({"threads": 0}, "threads 0: must be 1 or more"),
        ({"size": -3}, "size -3: must be 1 or more"),
        ({"seconds": 0.0}, "seconds 0.0: must be a number above 0"),
        ({"seconds": float("nan")}, "seconds nan: must be a number above 0"),
    ],
)
def test_impossible_values(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line) as caught:
        BenchmarkConfig(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_the_reference_comes_first_and_everything_once() -> None:
    config = BenchmarkConfig(runtimes=("folded", "reference", "folded", "folded-bf16"))
    assert [runtime.name for runtime in config.own_runtimes] == ["reference", "folded", "folded-bf16"]
    config = BenchmarkConfig(runtimes=("folded",), reference=False)
    assert [runtime.name for runtime in config.own_runtimes] == ["folded"]
    assert "onnx" in [runtime.name for runtime in BenchmarkConfig().own_runtimes]


def test_peers_leave_out_what_is_measured_anyway() -> None:
    assert BenchmarkConfig().own_peers == DEFAULT_PEERS
    assert BenchmarkConfig(models=("resnet50",)).own_peers == DEFAULT_PEERS[1:]
    assert BenchmarkConfig(peers=()).own_peers == ()


def test_only_what_was_named_has_to_work() -> None:
    config = BenchmarkConfig(peers=("resnet18",))
    assert config.is_strict(peer=True)
    assert not config.is_strict(peer=False)


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    check_target(tmp_path / "new.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="it is a folder"):
        check_target(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        check_target(tmp_path / "none" / "new.json")
    if Path("/proc/self").is_dir():
        with pytest.raises(UserError, match="cannot write /proc/self/new"):
            check_target(Path("/proc/self/new.json"))
