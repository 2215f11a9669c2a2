"""The state of a run in its folder: written whole, and checked before a run resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from ..errors import UserError, option
from ..runs import LAST_WEIGHTS


def check_state(path: Path, module: nn.Module) -> None:
    """Check that a lightning checkpoint is complete and holds the state of `module`.

    Raises:
        UserError: a truncated file, another kind of file, code in it, or another model's state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = {name: tuple(tensor.shape) for name, tensor in state["state_dict"].items()}
        whole = {"callbacks", "loops"} <= state.keys()
    except Exception:  # a damaged pickle raises anything
        whole = False
    if not whole:
        raise damaged(path) from None
    if "optimizer_states" not in state:
        raise UserError(
            f"{path} is of a complete run without keep_state, so its optimizer's state is gone; "
            f"train on from its weights: {option('checkpoint', path.with_name(LAST_WEIGHTS))}"
        )
    if found != {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}:
        raise UserError(f"{path} holds another model than the config.yaml beside it describes; restore that")


def damaged(path: Path) -> UserError:
    """Return the error for a checkpoint that cannot be restored."""
    return UserError(
        f"{path} is not a whole checkpoint of a run; "
        f"its weights may be: train with {option('checkpoint', path.with_name(LAST_WEIGHTS))}"
    )


def write_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write a state in torch's format; torch's own writer aborts the process where the disk is full."""
    buffer = BytesIO()
    torch.save(dict(state), buffer)
    Path(path).write_bytes(buffer.getbuffer())


class StateWriter(TorchCheckpointIO):
    """lightning's format, written to the path that is given.

    lightning's own writer goes by the system's folder for temporary files. A process that is killed would
    leave a whole state there each time, where nothing removes it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        write_state(checkpoint, path)
