"""The run folder: making it, keeping it current, and taking back one in which nothing was trained."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from ..console import note
from ..data.folds import write_folds
from ..data.handover import end_workers
from ..data.images import ReadingError
from ..errors import UserError, resuming
from ..files import atomic_path, remove_leftovers
from ..plotting import draw_curves
from ..runs import (
    BEST_WEIGHTS,
    BROKEN_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    FOLDS_FILE,
    LAST_CHECKPOINT,
    LAST_WEIGHTS,
    METRICS_FILE,
    NOT_FINITE_FILE,
    TOP_FOLDER,
    fold_folders,
    mark_config,
)
from ..spec import METADATA_KEY
from ..weights import save_weights
from .averaging import Averaging
from .callbacks import Recorder, Row, leading
from .config import TrainConfig
from .groups import OutputConfig
from .guard import Guard
from .interrupt import Interrupted, InterruptedWaiting, InterruptFlag
from .lock import LOCK_FILE, locked
from .network import Network
from .pace import Pace
from .processes import is_first
from .results import by_class, scores, write_results
from .state import write_state

_ONLY_TO_TRAIN_ON = ("optimizer_states", "lr_schedulers", "current_model_state")
CURVES_EVERY_SECONDS = 10
"""A drawing takes half a second, and an epoch on few images may take no longer."""


@contextmanager
def claimed(config: OutputConfig, *, model: str, resumed: Path | None = None) -> Iterator[Path]:
    """Make the folder of a run and keep it from every other training within the block.

    A new one in which nothing was trained is taken back at the end. Of several processes only the first one
    does anything.

    Args:
        config: where the run is to be written.
        model: named by the folder if the configuration names none.
        resumed: the folder of a run that goes on.

    Raises:
        UserError: it cannot be made, holds something else, or another training has it.
    """
    stamped = Path("runs", f"{model}-{datetime.now():%Y%m%d-%H%M%S}")
    folder = resumed or (stamped if config.output is None else Path(config.output))
    if not is_first():
        yield folder
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        if folder == stamped:
            new[:1] = [folder := _make_new(stamped)]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
    try:
        with locked(folder):
            if resumed is None and any(path.name != LOCK_FILE for path in folder.iterdir()):
                raise UserError(
                    f"output {folder} is not empty; choose another, or continue it with {resuming(folder)}"
                )
            try:
                yield folder
            finally:
                if resumed is None:
                    _remove_if_unused(folder)
    finally:
        with suppress(OSError):  # something lies in it
            for path in new:
                path.rmdir()


def _make_new(wanted: Path) -> Path:
    """Make a folder that nobody else has made, with a number behind the name if need be."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError


@rank_zero_only
def write_config(
    folder: Path, config: TrainConfig, classes: Sequence[str] | None, *, folds: Mapping[str, int] | None
) -> None:
    """Write the configuration and the classes into the run folder, and the folds of groups before them.

    Args:
        folder: of the run.
        config: to write; see `resolved`.
        classes: names of the classes; None if they are not known yet.
        folds: the fold of each group, if groups are dealt to folds.

    Raises:
        UserError: they cannot be written.
    """
    remove_leftovers(folder)
    if folds is not None:
        write_folds(folder, folds)
    texts = {CONFIG_FILE: mark_config(config.to_yaml())}
    if classes is not None:
        texts[CLASSES_FILE] = "".join(f"{name}\n" for name in classes)
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _remove_if_unused(folder: Path) -> None:
    """Take back a run folder that holds neither weights nor a diagnosis nor folds."""
    kept = (LAST_CHECKPOINT, LAST_WEIGHTS, BEST_WEIGHTS, NOT_FINITE_FILE)
    if not any((folder / name).exists() for name in kept) and not fold_folders(folder):
        for name in (CONFIG_FILE, CLASSES_FILE, BROKEN_FILE, FOLDS_FILE):
            (folder / name).unlink(missing_ok=True)


class RunFolder(Callback):
    """Keeps the run folder current: after every epoch, every few minutes, and when a signal ends the run.

    The best epoch has the highest fused top-1, or mAP, and of equals the lowest validation loss. This must
    come after all callbacks that have a state, so that what it saves holds what they did in a step, and
    before what prints. lightning's `ModelCheckpoint` does not serve here: it writes neither atomically nor
    weights that load without unpickling.

    Args:
        folder: the run folder.
        network: whose weights are kept, with their spec.
        recorder: of the metrics.
        pace: says when several processes agree on whether to save or to stop.
        guard: looks before the state is saved.
        about: what `results.json` says of the run besides its scores.
        averaging: the average that is kept in place of the model's own weights, if any.
        every_seconds: time after which the state is saved within an epoch.
        top_k: number of the best epochs whose weights stay in `top/`.
        keep_state: keep what is needed to train on after the end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        network: Network,
        recorder: Recorder,
        pace: Pace,
        guard: Guard | None = None,
        about: Mapping[str, Any] | None = None,
        averaging: Averaging | None = None,
        every_seconds: float = math.inf,
        top_k: int = 0,
        keep_state: bool = False,
    ) -> None:
        self.folder = folder
        self.network = network
        self.recorder = recorder
        self.pace = pace
        self.guard = guard
        self.interrupt = InterruptFlag()
        self.started = False
        """Whether training has started, with the whole state restored."""
        self.about = about or {}
        self.averaging = averaging
        self.every_seconds = every_seconds
        self.top_k = top_k
        self.keep_state = keep_state
        self._best = (-math.inf, -math.inf)
        self._best_scores: dict[str, Any] | None = None
        self._top: list[tuple[float, float, str]] = []
        self._saved = time.monotonic()
        self._drawn = -math.inf

    @property
    def state_key(self) -> str:
        return "RunFolder"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interrupt.take_over()
        self.started = True
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not after the last step of an epoch: lightning would resume behind its validation.
        # Not between accumulated batches: no checkpoint holds their gradients.
        if trainer.is_last_batch or trainer.should_stop or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1 and not self.pace.due:  # to agree is to wait for each other
            return
        due = time.monotonic() - self._saved >= self.every_seconds
        if self._stopped(trainer):
            self._look(trainer)
            raise Interrupted
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.recorder.rows[-1]
        found = row[f"val_{leading(row)}_fused"]
        score = (-math.inf if math.isnan(found) else found, -row["val_loss"])
        if score > self._best:
            self._best = score
            self._best_scores = scores(row)
            summary = getattr(pl_module, "val_summary", None)
            if summary is not None:
                self._best_scores |= by_class(self.network.spec.classes, summary.classes)
            self._save(trainer, BEST_WEIGHTS)
        self._keep_top(trainer, score)
        self._write(trainer)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not last and time.monotonic() - self._drawn >= CURVES_EVERY_SECONDS:
            self._draw(trainer)  # the last time is at the end of training
        if self._stopped(trainer) and not last:
            raise Interrupted

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        awaiting = isinstance(exception, (InterruptedWaiting, ReadingError))
        try:
            if _is_between_steps(trainer) if awaiting else isinstance(exception, Interrupted):
                self._write(trainer)
                self._draw(trainer)
        finally:
            end_workers()  # one that hangs would hold up lightning, which ends them in its turn

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.recorder.rows:
            write_results(self.results(finished=True), self.folder)
            if not self.keep_state:
                _drop_state(self.folder / LAST_CHECKPOINT)
        self._draw(trainer)

    def results(self, *, finished: bool = False) -> dict[str, Any]:
        """Return what the run has come to, as `results.json` keeps it."""
        last = self.recorder.rows[-1]
        found = {"finished": finished, **self.about, "epochs": int(last["epoch"]), "steps": int(last["step"])}
        found |= {"seconds": round(last["seconds"], 1), "last": scores(last)}
        return found if self._best_scores is None else found | {"best": self._best_scores}

    def _stopped(self, trainer: Trainer) -> bool:
        """Whether a signal came to any of the processes; all of them must ask."""
        return trainer.strategy.reduce_boolean_decision(self.interrupt.is_set, all=False)

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.is_global_zero:
            model = self.network.model if self.averaging is None else self.averaging.model
            save_weights(model.state_dict(), self.network.spec, self.folder / name)

    def _keep_top(self, trainer: Trainer, score: tuple[float, float]) -> None:
        if not self.top_k:
            return
        name = f"{TOP_FOLDER}/epoch-{trainer.current_epoch + 1:04d}.safetensors"
        self._top = sorted([*self._top, (*score, name)], reverse=True)
        dropped, self._top = self._top[self.top_k :], self._top[: self.top_k]
        if not trainer.is_global_zero:
            return
        (self.folder / TOP_FOLDER).mkdir(exist_ok=True)
        if name in (kept for *_, kept in self._top):
            self._save(trainer, name)
        for *_, old in dropped:
            (self.folder / old).unlink(missing_ok=True)

    def _look(self, trainer: Trainer) -> None:
        """Make sure that what is to be kept is finite."""
        if self.guard is not None:
            self.guard.look(trainer)

    def _write(self, trainer: Trainer) -> None:
        self._look(trainer)
        self._saved = time.monotonic()
        self._save(trainer, LAST_WEIGHTS)
        if trainer.is_global_zero:
            with atomic_path(self.folder / LAST_CHECKPOINT) as temporary:
                trainer.save_checkpoint(temporary)
            if self.recorder.rows:
                write_metrics(self.recorder.rows, self.folder / METRICS_FILE)
                write_results(self.results(), self.folder)
        else:  # takes part in gathering the state, writes nothing
            trainer.save_checkpoint(self.folder / LAST_CHECKPOINT)

    def _draw(self, trainer: Trainer) -> None:
        if self.recorder.rows and trainer.is_global_zero:
            try:
                draw_curves(self.recorder.rows, self.folder / CURVES_FILE)
            except UserError as error:  # training does not depend on it
                note(f"no curves: {error}")
            self._drawn = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {
            METADATA_KEY: self.network.spec.to_json(),  # a copy of the checkpoint is enough to predict
            "best": list(self._best),
            "best_scores": self._best_scores,
            "top": [list(item) for item in self._top],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = tuple(state_dict["best"])
        found = state_dict["best_scores"]
        self._best_scores = None if found is None else dict(found)
        self._top = [(float(top1), float(loss), str(name)) for top1, loss, name in state_dict["top"]]


def must_read_on(trainer: Trainer) -> bool:
    """Tell whether a run that awaits its next batch must get it before it can stop without losing a step.

    It is within its validation or between accumulated batches, or other processes wait for it in the step.
    """
    within = trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.accumulate_grad_batches > 0
    return trainer.validating or within or trainer.world_size > 1


def _is_between_steps(trainer: Trainer) -> bool:
    """Tell whether a run that awaits its next batch can go on from here."""
    # At the beginning of an epoch the end of the one before has been written.
    began = trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0
    return trainer.training and began and not must_read_on(trainer)


def _drop_state(checkpoint: Path) -> None:
    """Drop from a run's checkpoint what only training on would need: two thirds of the file."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    kept = {key: value for key, value in state.items() if key not in _ONLY_TO_TRAIN_ON}
    try:
        with atomic_path(checkpoint) as temporary:
            write_state(kept, temporary)
    except UserError as error:  # the run is complete with it
        note(f"the optimizer's state stays: {error}")


def write_metrics(rows: list[Row], path: Path) -> None:
    """Write all rows as CSV with a header, in one step or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
