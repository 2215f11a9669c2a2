"""The subcommand models: a stored table that is right, readable on a narrow terminal, and quick to print."""

import json
import subprocess
import sys

import pytest
import timm
import torch

from command_line import run
from conformer_pairs import count_macs, plain_config
from conformer_vision import VARIANTS
from conformer_vision.commands.models import read_table
from plain_conformer import ReferenceConformer


def test_the_table_is_that_of_the_models() -> None:
    """But for the speed. `python benchmarks/macs.py`, a step of CI, computes the other GMACs too."""
    rows = read_table()
    assert [row["name"] for row in rows] == list(VARIANTS)
    for row in rows:
        cfg = timm.get_pretrained_cfg(row["name"])
        with torch.device("meta"):
            model = timm.create_model(row["name"], num_classes=1000)
        assert (3, row["input_size"], row["input_size"]) == cfg.input_size
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        if row["name"] == "conformer_tiny_patch16_224":
            with torch.device("meta"):
                plain = ReferenceConformer(plain_config(model))
            assert row["gmacs"] == pytest.approx(count_macs(plain, cfg.input_size) / 1e9, abs=5e-4)
        assert row["weights"] == ("bundled" if cfg.file else "download" if cfg.url else "none")
    speed = {row["name"]: row["speed"] for row in rows}
    assert speed["conformer_tiny_patch16_224"] == 1
    assert speed["conformer_base_patch16_224"] < speed["conformer_small_patch16_224"] < 1
    assert all(speed[name] > 1 for name in VARIANTS if "nano" in name)


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_line_is_longer_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run("models")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= columns
    for name in VARIANTS:
        assert done.out.count(f"{name} ") == 1
    assert done.out.count("download") == 4 + 1 and done.out.count("23.33") == 1


def test_json_in_a_process_of_its_own_that_loads_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['conformer-vision', 'models', '--json'];"
        " from conformer_vision_command import main; status = main();"
        " assert 'torch' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == read_table()
