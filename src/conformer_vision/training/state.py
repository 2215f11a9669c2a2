"""Checking a checkpoint before a run resumes from it."""

from __future__ import annotations

from pathlib import Path

import torch
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
