"""Code on a machine that lacks something: in a fork of this process, whose limits bind nobody else."""

import ctypes
import os
import pickle
import resource
import subprocess
import traceback
from collections.abc import Callable
from typing import Any

import pytest

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS


def in_fork(function: Callable[[], Any], *limits: Callable[[], None]) -> Any:
    """What the function returns under the limits; fails where the process does not end by itself."""
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:  # whatever happens, this process must not go on with the tests
            try:
                for limit in limits:
                    limit()
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())
            with open(sending, "wb") as file:
                pickle.dump(answer, file)
        finally:
            os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    assert content, "the process was killed"
    done, value = pickle.loads(content)
    assert done, value
    return value


def shared_memory(size: str) -> Callable[[], None]:
    """A /dev/shm of that size, as containers have it."""
    if os.getuid():
        pytest.skip("only root may mount")

    def limit() -> None:
        if ctypes.CDLL(None).unshare(_NEW_MOUNTS):
            raise OSError("no mount namespace")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"], check=True)

    return limit


def descriptors(number: int) -> Callable[[], None]:
    """So many open files beside those of this process."""
    return lambda: resource.setrlimit(
        resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + number,) * 2
    )
