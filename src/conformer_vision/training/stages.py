"""Fine-tuning in two stages: the heads first, then all layers."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn

from ..console import note, say
from ..errors import UserError
from ..models.freezing import freeze_trunk
from .groups import ScheduleConfig
from .processes import is_first


class HeadsFirst(Callback):
    """Trains the classifier heads alone for some epochs, and then all layers.

    Until then everything else stays as it was, bit for bit, the statistics of BatchNorm included. The epoch
    alone says which stage it is, so a run resumes in either. The optimizer must be made of all parameters:
    it passes over those without a gradient. Processes that train together need DDP with
    `find_unused_parameters`.

    Args:
        epochs: in which only the heads learn.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._trunk: list[nn.Parameter] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer, pl_module)  # lightning skips the next hook where a run resumes mid-epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._trunk and trainer.max_epochs != self.epochs and is_first():
            note(f"training ended within the first {self.epochs} epochs, in which only the heads learn")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def _set(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch < self.epochs:
            network = module.model
            assert isinstance(network, nn.Module)
            self._trunk += freeze_trunk(network)
        elif self._trunk:
            self._release()
            module.train()
            if is_first():
                say(f"all layers learn from epoch {trainer.current_epoch + 1} on")

    def _release(self) -> None:
        for parameter in self._trunk:
            parameter.requires_grad_(True)
        self._trunk = []


class Patience(EarlyStopping):
    """Stops when top-1 has not improved for some epochs; those in which only the heads learn do not count.

    Args:
        epochs: without an improvement.
        after: epochs that do not count.
    """

    def __init__(self, epochs: int, *, after: int = 0) -> None:
        super().__init__("val_top1_fused", mode="max", patience=epochs, check_finite=False)
        self.after = after

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.after:
            super().on_train_epoch_end(trainer, pl_module)


def check_stages(model: nn.Module, config: ScheduleConfig) -> None:
    """Check that a network can be trained in the stages of a schedule.

    Raises:
        UserError: it has no heads that could learn alone.
    """
    if not config.freeze_epochs:
        return
    try:
        trunk = freeze_trunk(model)
    except ValueError as error:
        raise UserError(f"freeze_epochs {config.freeze_epochs}: {error}; leave it out") from error
    for parameter in trunk:
        parameter.requires_grad_(True)
    model.train()
