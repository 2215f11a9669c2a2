"""Fixtures that every test may use."""

from pathlib import Path

import pytest

from command_line import TINY, run
from exports import make_exports
from image_sets import opened
from write_images import write_images

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with goldens and real images that lies beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (goldens and real images), which is not here")
    return SHARED


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
