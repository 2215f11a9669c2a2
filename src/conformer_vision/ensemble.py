"""Ensembles of runs: the networks of several weights files in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from torch import Tensor

from conformer_vision.errors import UserError, resuming, some_names, words
from conformer_vision.runs import find_weights
from conformer_vision.spec import ModelSpec, Preprocessing
from conformer_vision.weights import read_weights, save_weights

_SAME = ("model", "model_kwargs", "folded", "multilabel", *(each.name for each in fields(Preprocessing)))
"""What the specifications of the members must agree in, besides the classes."""


def write_ensemble(runs: Sequence[Path], path: Path, *, fitted: ModelSpec) -> ModelSpec:
    """Write the best networks of several runs into one weights file; see `Ensemble`.

    Args:
        runs: run folders, two or more.
        path: the file.
        fitted: has the ensemble's temperature, and what thresholds hold for it; those of a fold do not.

    Raises:
        UserError: a run without weights, runs with different classes, models or input, or a file that cannot
            be written.
    """
    weights: dict[str, Tensor] = {}
    first: ModelSpec | None = None
    for number, run in enumerate(runs):
        if (found := find_weights(run)) is None:
            continuing = words(f"'conformer-vision train {resuming(run.parent)}'", resuming(run.parent))
            raise UserError(f"{run} has no weights yet; go on with {continuing}")
        tensors, spec = read_weights(found)
        first = first or spec
        check_alike(first, spec, runs[0], run)
        weights |= {f"members.{number}.{name}": tensor for name, tensor in tensors.items()}
    assert first is not None
    joined = replace(first, members=len(runs), temperature=fitted.temperature, thresholds=fitted.thresholds)
    save_weights(weights, joined, path)
    return joined


def check_alike(first: ModelSpec, spec: ModelSpec, one: Path, other: Path) -> None:
    """Check that two runs can answer together.

    Raises:
        UserError: they differ in classes, model or input.
    """
    if spec.classes != first.classes:
        only = [
            f"only in {run.name}: {some_names(sorted(names))}"
            for run, names in (
                (one, set(first.classes) - set(spec.classes)),
                (other, set(spec.classes) - set(first.classes)),
            )
            if names
        ]
        raise UserError(
            f"{one} and {other} have different classes ({'; '.join(only) or 'in another order'}), so they "
            "make no ensemble; train them on the same data"
        )
    differing = [name for name in _SAME if getattr(first, name) != getattr(spec, name)]
    if differing or spec.members > 1:
        what = ", ".join(differing) or "number of members"
        raise UserError(f"{one} and {other} differ in {what}, so they make no ensemble; train them alike")
