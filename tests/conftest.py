"""Fixtures that every test may use."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from command_line import TINY, run
from conformer_vision.training import folder
from exports import make_exports
from image_sets import opened
from write_images import write_images

# The same examples in every run: a test that fails today failed yesterday.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure() -> None:
    """Look for garbage more rarely: it took a tenth of the time.

    Compute in one thread, as the processes do that tests start: sums depend on the number of threads.
    """
    gc.set_threshold(20_000, 20, 20)
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of a file in one process, unless they have a group: what they share is made once."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_collection_finish() -> None:
    """Look for none in what the libraries hold."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with goldens and real images that lies beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (goldens and real images), which is not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def without_curves() -> Iterator[None]:
    """Draw no curves: it takes longer than two steps of training. training/test_run.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "draw_curves", lambda rows, path: None)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two steps on the digits."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run("train", "--data", "digits", *TINY, "--output", folder)
    assert (done.status, done.err) == (0, "")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    first, *_ = write_images(opened("digits", split="all"), folder, count=3)
    first.write_bytes(b"no image")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with every export format in it; tests that use it carry `exports.WITH_EXPORTS`."""
    return make_exports(tmp_path_factory.mktemp("exported") / "run")
