"""What the tests of the server share: the model that it answers with."""

from pathlib import Path

import pytest

from conformer_vision.serve.models import Loader, ModelOptions
from exports import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("serve") / "run")


@pytest.fixture(scope="session")
def load(run_folder: Path) -> Loader:
    """Loads the real model once for all tests."""
    served = ModelOptions(str(run_folder)).load()
    return lambda: served
