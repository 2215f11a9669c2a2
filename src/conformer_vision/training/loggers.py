"""Where metrics go besides the run folder, by lightning's loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from ..errors import UserError
from .config import Logger as LoggerName


def build_loggers(names: Sequence[LoggerName], folder: Path) -> list[Logger]:
    """Loggers that write below the run folder, named after it.

    W&B and MLflow take their servers from their own environment variables (``WANDB_MODE``,
    ``MLFLOW_TRACKING_URI``, …).

    Raises:
        UserError: the package of a logger is missing.
    """
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(save_dir=folder, name="tensorboard", version=""),
        "wandb": lambda: WandbLogger(name=folder.name, save_dir=folder, project="conformer-vision"),
        "mlflow": lambda: MLFlowLogger(
            experiment_name="conformer-vision",
            run_name=folder.name,
            tracking_uri=None if _mlflow_server() else f"sqlite:///{folder.resolve() / 'mlflow.db'}",
        ),
    }
    loggers: list[Logger] = []
    for name in names:
        try:
            loggers.append(makers[name]())
        except ModuleNotFoundError as error:
            raise UserError(
                f"loggers {name}: its package is missing; pip install 'conformer-vision[{name}]'"
            ) from error
    return loggers


def _mlflow_server() -> bool:
    import os

    return bool(os.environ.get("MLFLOW_TRACKING_URI"))
