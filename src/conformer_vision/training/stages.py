"""Fine-tuning in two stages: the heads first, then all layers."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from ..console import note, say
from ..errors import UserError
from ..models.freezing import freeze_trunk
from .groups import ScheduleConfig
from .processes import is_first
from .schedule import Schedule


class HeadsFirst(Callback):
    """Trains the classifier heads alone at first, and then all layers.

    Until then everything else stays as it was, bit for bit, the statistics of BatchNorm included. A run
    resumes in either stage. The optimizer must be made of all parameters: it passes over those without a
    gradient. Processes that train together need DDP with `find_unused_parameters`.

    Args:
        schedule: says in which steps only the heads learn; or the number of epochs in which they do.
    """

    def __init__(self, schedule: Schedule | int) -> None:
        self.schedule = schedule
        self._trunk: list[nn.Parameter] = []
        self._ended: int | None = None

    @property
    def active(self) -> bool:
        """Whether only the heads learn at present."""
        return bool(self._trunk)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._ended is not None and not isinstance(self.schedule, int):
            self.schedule.frozen_steps = self._ended  # what the clock had decided before the run resumed
        self._set(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._set(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = isinstance(self.schedule, int) or self.schedule.config.freeze_share == 1
        if self._trunk and not whole and is_first():
            note("training ended while only the heads were learning")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def state_dict(self) -> dict[str, Any]:
        return {} if isinstance(self.schedule, int) else {"frozen_steps": self.schedule.frozen_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ended = state_dict.get("frozen_steps")

    def _set(self, trainer: Trainer, module: LightningModule) -> None:
        if isinstance(self.schedule, int):
            frozen = trainer.current_epoch < self.schedule
        else:
            frozen = self.schedule.is_frozen(trainer.global_step)
        if frozen and not self._trunk:
            network = module.model
            assert isinstance(network, nn.Module)
            self._trunk = freeze_trunk(network)
        elif self._trunk and not frozen:
            self._release()
            module.train()
            if is_first():
                epoch, step = trainer.current_epoch + 1, trainer.global_step + 1
                say(f"all layers learn from step {step} on, in epoch {epoch}")

    def _release(self) -> None:
        for parameter in self._trunk:
            parameter.requires_grad_(True)
        self._trunk = []


class Patience(EarlyStopping):
    """Stops when a score has not improved for some epochs; those in which only the heads learn do not count.

    Args:
        epochs: without an improvement.
        score: one of `callbacks.LEADING`.
        heads: says when only the heads learn.
    """

    def __init__(self, epochs: int, *, score: str = "top1", heads: HeadsFirst | None = None) -> None:
        super().__init__(f"val_{score}_fused", mode="max", patience=epochs, check_finite=False)
        self.heads = heads

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.heads is None or not self.heads.active:
            super().on_train_epoch_end(trainer, pl_module)


def check_stages(model: nn.Module, config: ScheduleConfig) -> None:
    """Check that a network can be trained in the stages of a schedule.

    Raises:
        UserError: it has no heads that could learn alone.
    """
    if not config.freeze_share:
        return
    try:
        trunk = freeze_trunk(model)
    except ValueError as error:
        raise UserError(f"freeze_share {config.freeze_share}: {error}; leave it out") from error
    for parameter in trunk:
        parameter.requires_grad_(True)
    model.train()
