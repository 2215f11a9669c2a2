"""Loggers of lightning that take the metrics besides the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ..errors import UserError, reason_of
from ..extras import check_installed
from .groups import Logger as LoggerName

_PROJECT = "conformer-vision"


def start_loggers(names: Sequence[LoggerName], folder: Path) -> list[Logger]:
    """Start loggers, which write into the run folder or to the servers that their environment variables name.

    The variables are those of their packages, such as `WANDB_MODE` and `MLFLOW_TRACKING_URI`.

    Args:
        names: of the loggers.
        folder: the run folder, which names the run.

    Raises:
        UserError: a logger's package is missing, or it cannot start: no login, no server, …
    """
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(save_dir=folder, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(name=folder.name, save_dir=folder, project=_PROJECT),
        "mlflow": lambda: MLFlowLogger(
            experiment_name=_PROJECT,
            run_name=folder.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve()}/mlflow.db"),
        ),
    }
    loggers = []
    for name in names:
        check_installed(name)
        try:
            logger = makers[name]()
            getattr(logger, "experiment")  # noqa: B009  # lightning's loggers begin at the first look
        except Exception as error:  # whatever the logger's own package raises
            raise UserError(
                f"loggers {name}: cannot start ({reason_of(error)}); leave it out, or fix that"
            ) from error
        loggers.append(logger)
    return loggers
