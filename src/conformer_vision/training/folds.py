"""Cross-validation in one run folder: a run for every fold, one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..console import say
from ..data.folds import deal_folds, read_folds
from ..data.opening import describe
from ..ensemble import write_ensemble
from ..errors import UserError
from ..files import atomic_path, remove_leftovers
from ..inference.labelled import LabelledImages
from ..inference.out_of_fold import collect_out_of_fold, write_out_of_fold
from ..runs import CLASSES_FILE, CONFIG_FILE, ENSEMBLE_WEIGHTS, FOLDS_FILE, OUT_OF_FOLD, fold_name
from .config import TrainConfig
from .continuing import decided, with_absolute_paths
from .fold_results import say_folds, score_folds
from .folder import claimed, write_config
from .interrupt import TrainingInterrupted
from .precision import as_before
from .processes import count_processes
from .recipe import read_config
from .results import ends, is_complete, write_results
from .start import settle

_BATCH = 64
"""Images per forward pass of the networks that answer."""


class TrainOne(Protocol):
    """Trains one fold: anew, or the rest of it in its folder; returns the folder."""

    def __call__(
        self, config: TrainConfig, *, resumed: Path | None, recorded: Mapping[str, int] | None
    ) -> Path: ...


def train_folds(
    config: TrainConfig,
    *,
    resumed: Path | None = None,
    train_one: TrainOne,
) -> Path:
    """Train all folds, each in a folder of its own, and join them to one model.

    Folds that are complete stay as they are, and one that is not goes on from its last checkpoint.

    Args:
        config: of the run, with fold "all".
        resumed: the folder of a run that goes on.
        train_one: trains a fold.

    Returns:
        The folder: fold-0, fold-1, ..., config.yaml, classes.txt, results.json, out_of_fold.parquet and
        ensemble.safetensors.

    Raises:
        UserError: as `train`, or several processes.
        TrainingInterrupted: as `train`; its folder is that of all folds.
    """
    if math.prod(count_processes(config.hardware)) > 1:
        raise UserError(
            "fold all trains in one process; train each fold by itself with several (fold 0, fold 1, ...)"
        )
    folds = config.data.folds
    assert folds is not None
    config, _, _ = settle(config, download=True)
    data: Any = config.data
    recorded = None if resumed is None else read_folds(resumed)
    if recorded is None:
        recorded = deal_folds(data.data, data.splitting, data_dir=data.data_dir)
    trained = 0
    with claimed(config.output, model=config.model.name, resumed=resumed) as folder:
        kept = replace(decided(config), output=replace(config.output, output=None, auto_resume=False))
        if not (folder / CONFIG_FILE).is_file():
            write_config(folder, with_absolute_paths(kept), None, folds=recorded)
        with _as_whole(folder, auto_resume=config.output.auto_resume):
            for fold in range(folds):
                own = folder / fold_name(fold)
                if fold:
                    config = _as_first(config, read_config(folder / fold_name(0) / CONFIG_FILE))
                begun = own if (own / CONFIG_FILE).is_file() else None
                of_fold = replace(
                    config,
                    data=replace(config.data, fold=fold),
                    output=replace(config.output, output=str(own), auto_resume=False),
                )
                if begun is not None and is_complete(own, config.schedule):
                    say(f"fold {fold} of {folds} is complete")
                    continue
                say(f"fold {fold} of {folds}")
                _clear(own)
                train_one(of_fold, resumed=begun, recorded=recorded)
                trained += 1
        if trained or not _is_joined(folder, config):
            _join(folder, config, recorded)
        else:
            say(f"{folder} is complete; nothing is left to train")
    return folder


def _as_first(config: TrainConfig, first: TrainConfig) -> TrainConfig:
    """Fill in what the first fold has found by trying."""
    size = config.data.batch_size
    return replace(
        config,
        data=replace(config.data, batch_size=first.data.batch_size if size == "auto" else size),
        hardware=as_before(config.hardware, first.hardware),
    )


def _is_joined(folder: Path, config: TrainConfig) -> bool:
    files = (ENSEMBLE_WEIGHTS, OUT_OF_FOLD)
    return is_complete(folder, config.schedule) and all((folder / name).is_file() for name in files)


def _join(folder: Path, config: TrainConfig, recorded: Mapping[str, int] | None) -> None:
    """Join the folds to one model, and say how good they are."""
    data: Any = config.data
    splitting = replace(data.splitting, recorded=recorded)
    images = LabelledImages(data.data, "val", splitting, data_dir=data.data_dir, exclude=data.exclude)
    say("each fold answers the images that it held out")
    found = collect_out_of_fold(
        folder, images, device=config.hardware.device, batch_size=_BATCH, workers=data.workers
    )
    folders = [folder / fold_name(fold) for fold in range(len(found.parts))]
    spec = write_ensemble(folders, folder / ENSEMBLE_WEIGHTS, fitted=found.spec)
    write_out_of_fold(found, folder / OUT_OF_FOLD)
    with atomic_path(folder / CLASSES_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in spec.classes), encoding="utf-8")
    scores = score_folds(found)
    say_folds(scores)
    about = {"finished": True, "version": spec.version, "model": spec.model, "data": describe(data.data)}
    write_results(about | {"ends": ends(config.schedule)} | scores.to_json(), folder)


def _clear(folder: Path) -> None:
    """Remove what a process that was killed before its first step left in the folder of a fold."""
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        remove_leftovers(folder)
        (folder / FOLDS_FILE).unlink(missing_ok=True)


@contextmanager
def _as_whole(folder: Path, *, auto_resume: bool) -> Iterator[None]:
    """Let an interruption say that all folds are to be continued, not the one that was being trained."""
    try:
        yield
    except TrainingInterrupted as stopped:
        kept = folder if stopped.folder is not None or any(folder.glob(f"*/{CONFIG_FILE}")) else None
        raise TrainingInterrupted(kept, number=stopped.signal, auto_resume=auto_resume) from None
