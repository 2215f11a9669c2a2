"""How a run ends that does not come to its end: the errors that `train` promises."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning

from ..data.images import ReadingError
from ..errors import UserError, machine_error, resuming
from ..runs import LAST_CHECKPOINT
from .folder import RunFolder
from .interrupt import Interrupted, TrainingInterrupted
from .processes import Processes, is_lost_process
from .state import damaged


@contextmanager
def named_errors(
    trainer: lightning.Trainer, run_folder: RunFolder, checkpoint: Path | None, *, auto_resume: bool
) -> Iterator[None]:
    """Listen to signals, and turn what ends training into the errors that `train` promises."""
    interrupt, folder = run_folder.interrupt, run_folder.folder

    def interrupted() -> TrainingInterrupted:
        number = interrupt.signal or signal.SIGINT
        kept = folder if (folder / LAST_CHECKPOINT).is_file() else None
        return TrainingInterrupted(kept, number=number, auto_resume=auto_resume)

    try:
        with interrupt.listen():
            yield
    except Interrupted:
        raise interrupted() from None
    except SystemExit:  # what lightning makes of a second Ctrl-C
        raise KeyboardInterrupt from None
    except (ReadingError, MemoryError, RuntimeError) as error:
        reason = _reason(error, trainer)
        if reason is None:
            _raise_damaged(error, run_folder, checkpoint)
        if interrupt.is_set and not isinstance(error, ReadingError):
            raise interrupted() from error  # another process had stopped before this one
        again = f"; continue with {resuming(folder)}" if (folder / LAST_CHECKPOINT).is_file() else ""
        raise UserError(f"{reason}{again}") from error
    except Exception as error:
        _raise_damaged(error, run_folder, checkpoint)


def _reason(error: Exception, trainer: lightning.Trainer) -> str | None:
    """Return what the machine lacked, None for an error of another kind."""
    if isinstance(error, ReadingError):
        return str(error)
    if (line := machine_error(error)) is not None:
        return line
    if trainer.world_size > 1 and is_lost_process(error):
        lost = trainer.strategy.lost if isinstance(trainer.strategy, Processes) else None
        return lost or "another process of this training has ended"
    return None


def _raise_damaged(error: Exception, run_folder: RunFolder, checkpoint: Path | None) -> None:
    """Raise the error, or say that the state is damaged, which makes lightning raise anything."""
    if checkpoint is None or run_folder.started or isinstance(error, (UserError, OSError)):
        raise error
    raise damaged(checkpoint) from error
