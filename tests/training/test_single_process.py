"""What several processes decide together, where there is one: without any process group."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from conformer_vision.training.processes import any_process, from_first, is_first, summed

ALONE: Any = SimpleNamespace(world_size=1, strategy=None)


def test_alone() -> None:
    assert not torch.distributed.is_initialized()
    assert is_first()
    assert any_process(ALONE, True, False, True) == (True, False, True)
    assert any_process(ALONE) == ()
    assert from_first(ALONE, 1.25) == 1.25
    assert summed(ALONE, 1.0, 2.5) == (1.0, 2.5)


def test_only_the_first_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    assert not is_first()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert is_first()


@pytest.fixture
def group(tmp_path: Any) -> Any:
    """A group of one process that talks to itself."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    yield SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    torch.distributed.destroy_process_group()


def test_through_a_group(group: Any) -> None:
    """Numbers keep their precision on the way."""
    assert any_process(group, True, False) == (True, False)
    assert from_first(group, 1 / 3) == 1 / 3
    assert summed(group, 1 / 3, 1e9 + 1) == (1 / 3, 1e9 + 1)
