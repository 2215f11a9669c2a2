"""The run folder: making it, keeping it current, and taking back one in which nothing was trained."""

from __future__ import annotations

import csv
import math
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from ..errors import UserError
from ..files import atomic_path, remove_leftovers
from ..runs import (
    BEST_WEIGHTS,
    BROKEN_FILE,
    CLASSES_FILE,
    CONFIG_FILE,
    CURVES_FILE,
    LAST_CHECKPOINT,
    LAST_WEIGHTS,
    METRICS_FILE,
    NOT_FINITE_FILE,
    TOP_FOLDER,
    mark_config,
)
from ..spec import ModelSpec
from ..weights import save_weights
from .averaging import Averaging
from .callbacks import Recorder, Row
from .config import TrainConfig
from .curves import draw_curves
from .groups import OutputConfig
from .interrupt import Interrupted, InterruptFlag
from .network import Network
from .trainer import is_first

CURVES_EVERY_SECONDS = 10
"""A drawing takes half a second, and an epoch on few images may take no longer."""


def new_folder(config: OutputConfig, *, model: str) -> Path:
    """Return the folder of a new run; it is not made yet.

    Raises:
        UserError: it exists and is not empty.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(config.output or f"runs/{model}-{stamp}")
    # Among several processes the first one may have made it by now.
    if is_first() and folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"output {folder} is not empty; choose another, or continue it with --resume {folder}"
        )
    return folder


@rank_zero_only
def make_folder(folder: Path, config: TrainConfig, spec: ModelSpec) -> None:
    """Make the run folder, with the configuration and the classes.

    Args:
        folder: may exist, from a run that is resumed.
        config: to write; see `resolved`.
        spec: of the network.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror or error}") from error
    remove_leftovers(folder)
    classes = "".join(f"{name}\n" for name in spec.classes)
    texts = {CONFIG_FILE: mark_config(config.to_yaml()), CLASSES_FILE: classes}
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


@rank_zero_only
def remove_if_unused(folder: Path) -> None:
    """Take back a run folder in which training neither came to its first checkpoint nor diverged."""
    if not ((folder / LAST_CHECKPOINT).exists() or (folder / NOT_FINITE_FILE).exists()):
        for name in (CONFIG_FILE, CLASSES_FILE, BROKEN_FILE):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # something else lies in it
            folder.rmdir()


class RunFolder(Callback):
    """Keeps the run folder current: after every epoch, every few minutes, and when a signal ends the run.

    The best epoch has the highest fused top-1 and, of equals, the lowest validation loss. This must be the
    last callback, so that what it saves holds what the others did in a step. lightning's `ModelCheckpoint`
    does not serve here: it writes neither atomically nor weights that load without unpickling.

    Args:
        folder: the run folder.
        network: whose weights are kept, with their spec.
        recorder: of the metrics.
        averaging: the average that is kept in place of the model's own weights, if any.
        every_seconds: time after which the state is saved within an epoch.
        top_k: number of the best epochs whose weights stay in `top/`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        network: Network,
        recorder: Recorder,
        averaging: Averaging | None = None,
        every_seconds: float = math.inf,
        top_k: int = 0,
    ) -> None:
        self.folder = folder
        self.network = network
        self.recorder = recorder
        self.interrupt = InterruptFlag()
        self.started = False
        """Whether training has started, with the whole state restored."""
        self.averaging = averaging
        self.every_seconds = every_seconds
        self.top_k = top_k
        self._best = (-math.inf, -math.inf)
        self._top: list[tuple[float, float, str]] = []
        self._saved = time.monotonic()
        self._drawn = -math.inf

    @property
    def state_key(self) -> str:
        return "RunFolder"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not after the last step of an epoch: lightning would resume behind its validation.
        # Not between accumulated batches: no checkpoint holds their gradients.
        if trainer.is_last_batch or trainer.should_stop or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self._saved >= self.every_seconds
        if self._stopped(trainer):
            raise Interrupted
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.recorder.rows[-1]
        score = (row["val_top1_fused"], -row["val_loss"])
        if score > self._best:
            self._best = score
            self._save(trainer, BEST_WEIGHTS)
        self._keep_top(trainer, score)
        self._write(trainer)
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not last and time.monotonic() - self._drawn >= CURVES_EVERY_SECONDS:
            self._draw(trainer)  # the last time is at the end of training
        if self._stopped(trainer) and not last:
            raise Interrupted

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # At the end of an epoch, where it is checked too, all of this was written a moment ago.
        if isinstance(exception, Interrupted):
            self._write(trainer)
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

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

    def _write(self, trainer: Trainer) -> None:
        self._saved = time.monotonic()
        self._save(trainer, LAST_WEIGHTS)
        if trainer.is_global_zero:
            with atomic_path(self.folder / LAST_CHECKPOINT) as temporary:
                trainer.save_checkpoint(temporary)
            if self.recorder.rows:
                write_metrics(self.recorder.rows, self.folder / METRICS_FILE)
        else:  # takes part in gathering the state, writes nothing
            trainer.save_checkpoint(self.folder / LAST_CHECKPOINT)

    def _draw(self, trainer: Trainer) -> None:
        if self.recorder.rows and trainer.is_global_zero:
            draw_curves(self.recorder.rows, self.folder / CURVES_FILE)
            self._drawn = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": list(self._best), "top": [list(item) for item in self._top]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = tuple(state_dict["best"])
        self._top = [(float(top1), float(loss), str(name)) for top1, loss, name in state_dict["top"]]


def write_metrics(rows: list[Row], path: Path) -> None:
    """Write all rows as CSV with a header, in one step or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[-1]))
        writer.writeheader()
        writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
