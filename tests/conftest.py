"""Fixtures that every test may use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with goldens and real pictures that lies beside the repository, where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (goldens and real pictures), which is not here")
    return SHARED
