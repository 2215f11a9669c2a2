"""The subcommand train: what it adds to a run."""

from pathlib import Path

import pytest

from command_line import TINY, class_folders, run
from option_tools import shows

TRAIN = [option for option in TINY if not option.startswith("--report")]


@shows("report")
@pytest.mark.parametrize("wanted", [True, False])
def test_the_report_is_written_at_the_end(wanted: bool, tmp_path: Path) -> None:
    data, output = class_folders(tmp_path / "set", ant=8, bee=8), tmp_path / "run"
    done = run("train", "--data", data, *TRAIN, f"--report={str(wanted).lower()}", "--output", output)
    assert done.status == 0, done.err
    assert done.out.endswith(f"run folder: {output}\n")
    assert (output / "report.html").is_file() == wanted


def test_a_run_is_complete_without_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformer_vision import report
    from conformer_vision.errors import UserError

    def refuse(*_: object, **__: object) -> None:
        raise UserError("no validation images")

    monkeypatch.setattr(report, "write_report", refuse, raising=False)
    data, output = class_folders(tmp_path / "set", ant=8, bee=8), tmp_path / "run"
    done = run("train", "--data", data, *TRAIN, "--output", output)
    assert (done.status, done.err.splitlines()[-1]) == (0, "no report: no validation images")
    assert (output / "last.safetensors").is_file()
