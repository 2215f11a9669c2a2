"""The columns of labels in the subcommands: a run keeps them, and other data need not have them."""

import json
from pathlib import Path

from PIL import Image

from command_line import TINY, one_line, run


def test_columns_of_the_run(tmp_path: Path) -> None:
    rows = ["path,finding,age"]
    for number in range(24):
        name = f"set/{'ab'[number % 2]}/{number}.png"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (10 * number, 20, 30)).save(tmp_path / name)
        rows.append(f"{name},{['a|b', 'b', '', 'a'][number % 4]},{number}")
    table, folder = tmp_path / "set.csv", tmp_path / "run"
    table.write_text("\n".join(rows))
    options = ["--label_column", "finding", "--label_separator", "|"]
    done = run("train", "--data", table, *options, *TINY, "--output", folder)
    assert done.status == 0, done.err
    held_out = json.loads(run("evaluate", folder, "--data", table, "--json").out)["samples"]
    assert 0 < held_out < 24
    whole = run("evaluate", folder, "--data", table, "--split", "all", "--json")
    assert json.loads(whole.out)["samples"] == 24
    refused = run("evaluate", folder, "--data", tmp_path / "set")
    assert "has no columns; leave it out, or give it empty for other data than a run's" in one_line(refused)
    empty = ["--label_column", "", "--label_separator", "", "--split", "all", "--json"]
    assert json.loads(run("evaluate", folder, "--data", tmp_path / "set", *empty).out)["samples"] == 24
    assert "has no column 'findigns'; did you mean finding" in one_line(
        run("check", table, "--label_column", "findigns")
    )
