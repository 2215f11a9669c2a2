"""Metrics to other places: what is written, and the line where a package is missing."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conformer_vision import extras
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.loggers import start_loggers
from option_tools import shows

Tiny = Callable[..., TrainConfig]


@shows("loggers")
def test_tensorboard(tiny: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tiny(max_steps=5, val_fraction=0.25, loggers=["tensorboard"], output=str(tmp_path / "run")))
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {"train_loss", "val_loss", "val_top1_conv", "val_top1_trans", "val_top1_fused"}
    assert wanted <= tags
    assert any(tag.startswith("lr") for tag in tags), tags
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("val_loss", "val_top1_fused"):
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([float(row[name]) for row in rows], rel=1e-4)


def test_missing_package_names_its_extra(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda library: None)
    for name in ("tensorboard", "wandb", "mlflow"):
        with pytest.raises(UserError) as caught:
            start_loggers([name], tmp_path)
        assert str(caught.value) == f"{name} is not installed: pip install 'conformer-vision[{name}]'"
    with pytest.raises(UserError, match="mlflow is not installed"):
        train(tiny(loggers=["mlflow"], output=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists(), "a failed start leaves no run folder"


def test_logger_that_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformer_vision.training import loggers

    class Failing:
        def __init__(self, *arguments: object, **options: object) -> None:
            pass

        @property
        def experiment(self) -> object:
            raise ConnectionError("no server\nat this address")

    monkeypatch.setattr(loggers, "MLFlowLogger", Failing)
    monkeypatch.setattr(loggers, "check_installed", lambda library: None)
    with pytest.raises(UserError) as caught:
        start_loggers(["mlflow"], tmp_path)
    assert str(caught.value) == (
        "loggers mlflow: cannot start (no server at this address); leave it out, or fix that"
    )


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # mlflow's own
def test_mlflow_writes_into_the_run_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    import sqlite3

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = train(tiny(loggers=["mlflow"], output=str(tmp_path / "run")))
    with sqlite3.connect(run / "mlflow.db") as database:
        keys = {key for (key,) in database.execute("select distinct key from metrics")}
        names = [name for (name,) in database.execute("select name from runs")]
    assert {"train_loss", "val_loss", "val_top1_fused"} <= keys
    assert names == ["run"]
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.skipif(sys.platform == "win32", reason="wandb's service process holds its files there")
def test_wandb_offline(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    import wandb

    run = train(tiny(loggers=["wandb"], output=str(tmp_path / "run")))
    wandb.finish()
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
