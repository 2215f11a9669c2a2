"""Broken images found during training: named, listed, and limited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from ..console import note
from ..data.handover import Batch
from ..errors import UserError, option, words
from ..files import atomic_path
from ..runs import BROKEN_FILE

_MOST_SHOWN = 10
_FEWEST_READ = 100
"""Number of images that a share of a stream is taken of at least."""


class BrokenImages(Callback):
    """Names every broken image once, and ends training when too many are broken.

    Args:
        folder: where `broken_images.txt` is written.
        images: number of images; None for a stream, where the images read so far are counted.
        most: largest share that may be broken, in [0, 1].

    Raises:
        UserError: more images are broken than `most` allows; from within training.
    """

    def __init__(self, folder: Path, *, images: int | None, most: float) -> None:
        self.folder = folder
        self.images = images
        self.most = most
        self.lines: list[str] = []
        self._known: set[str] = set()
        self._read = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._count(batch, write=trainer.is_global_zero)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(batch, write=trainer.is_global_zero)

    def _count(self, batch: Batch, *, write: bool) -> None:
        self._read += len(batch.labels)
        new = [line for line in batch.broken if line not in self._known]
        if not new:
            return
        for line in new:
            self._known.add(line)
            self.lines.append(line)
            if len(self.lines) <= _MOST_SHOWN:
                note(f"skipped: {line}")
        if len(self.lines) > _MOST_SHOWN >= len(self.lines) - len(new):
            note(f"skipped: more; all are listed in {self.folder / BROKEN_FILE}")
        if write:
            with atomic_path(self.folder / BROKEN_FILE) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")
        of = max(self._read, _FEWEST_READ) if self.images is None else self.images
        if len(self.lines) > self.most * of:
            raise UserError(
                f"{len(self.lines)} of {of} images are broken, more than max_broken {self.most:g} allows; "
                f"the first: {self.lines[0]}; find all with "
                f"{words('conformer-vision check', 'check(data)')}, or raise {option('max_broken')}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines, "read": self._read}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lines = [str(line) for line in state_dict["lines"]]
        self._known = set(self.lines)
        self._read = int(state_dict["read"])
