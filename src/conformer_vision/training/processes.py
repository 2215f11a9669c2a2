"""Processes that train together: how many there are, and what happens when one of them ends."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from ..console import note
from ..errors import UserError
from .groups import HardwareConfig

_PATIENCE = 10.0
"""Seconds in which a process notices by itself that another one has ended."""
_SPECIAL_STEPS = 0xFFFFFFF0


def is_first() -> bool:
    """Return whether this process is the one that writes and prints; works before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0) == 0


def count_processes(config: HardwareConfig) -> tuple[int, int]:
    """Return processes per machine, and machines: as configured, else as torchrun or SLURM say, else 1.

    Raises:
        UserError: the configuration contradicts torchrun or SLURM, or srun has not started the processes.
    """
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        started, by = (local, int(os.environ["WORLD_SIZE"]) // local), "torchrun"
    else:
        _check_srun()
        if not SLURMEnvironment.detect():
            return (1 if config.devices == "auto" else config.devices), config.nodes
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        started, by = (max(_slurm_tasks() // nodes, 1), nodes), "SLURM"
    named = (("devices", config.devices, "auto"), ("nodes", config.nodes, 1))
    for (name, given, default), there in zip(named, started, strict=True):
        if given not in (default, there):
            raise UserError(f"{name} {given}: {by} has started {there}; leave {name} out")
    return started


def _slurm_tasks() -> int:
    each, nodes = os.environ.get("SLURM_NTASKS_PER_NODE", "1"), os.environ.get("SLURM_NNODES", "1")
    tasks = os.environ.get("SLURM_NTASKS", "")
    return int(tasks) if tasks.isdigit() else int(each) * int(nodes) if (each + nodes).isdigit() else 1


def _check_srun() -> None:
    """Check that several tasks of a job were started by srun, and that lightning can see it."""
    tasks = _slurm_tasks()
    # The shells of sbatch and salloc are no steps, or ones with the highest numbers.
    step = os.environ.get("SLURM_STEP_ID", "")
    started = step.isdigit() and int(step) < _SPECIAL_STEPS
    if tasks > 1 and not started and not _is_interactive():
        raise UserError(
            f"this job has {tasks} tasks, but srun has not started them: put srun before the command "
            "(for one process, ask for --ntasks=1)"
        )
    if tasks > 1 and started and _is_interactive():
        name = os.environ["SLURM_JOB_NAME"]
        raise UserError(
            f"{tasks} tasks in a job named {name} are taken for separate runs: give srun --job-name=train"
        )


def _is_interactive() -> bool:
    """Whether lightning takes the job for somebody's shell."""
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def is_lost_process(error: BaseException) -> bool:
    """Tell whether an error of torch means that another process has ended or does not answer."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


class Processes(DDPStrategy):
    """DDP whose first process says how another one ended, where lightning would kill it without a word."""

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    @property
    def lost(self) -> str | None:
        """How a process has ended that this one started, if one has."""
        assert isinstance(self._launcher, _Launcher)
        return ended(self._launcher.procs)


class _Launcher(_SubprocessScriptLauncher):
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=_watch, args=(self.procs,), daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process and the others where one has ended and this one waits for it in vain."""
    while (line := ended(processes)) is None:
        if all(process.poll() == 0 for process in processes):
            return
        time.sleep(0.2)
    time.sleep(_PATIENCE)
    for process in processes:
        process.kill()
    note(f"error: {line}; what was saved before is kept")
    os._exit(2)


def ended(processes: Sequence[subprocess.Popen[bytes]]) -> str | None:
    """Say how the first of the processes has ended that did not end well, if one has."""
    for rank, process in enumerate(processes, start=1):
        if code := process.poll():
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            return f"process {rank} of {len(processes) + 1} {how}"
    return None
