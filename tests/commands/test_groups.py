"""Groups in the subcommands: what a run recorded holds for its evaluation."""

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from command_line import TINY, one_line, run


def test_groups_of_the_run(tmp_path: Path) -> None:
    """An evaluation cuts as the run did, also after the set has grown, and warns of groups on both sides."""
    names = [f"{'ab'[n % 2]}/p{n // 2}_{n}.png" for n in range(16)]
    data, run_folder = tmp_path / "set", tmp_path / "run"

    def write(names: Iterable[str]) -> None:
        for number, name in enumerate(names):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (9 * number % 255, 20, 30)).save(data / name)

    write(names)
    options = ["--group", r"([pq]\d+)_", "--folds", 4, "--fold", 1]
    assert run("train", "--data", data, *options, *TINY, "--output", run_folder).status == 0
    assert len((run_folder / "folds.csv").read_text().splitlines()) == 9
    evaluated = run("evaluate", run_folder, "--data", data, "--json")
    assert json.loads(evaluated.out)["samples"] == 4
    write(f"{'ab'[n % 2]}/q{n // 2}_{n}.png" for n in range(40))
    more = json.loads(run("evaluate", run_folder, "--data", data, "--json").out)["samples"]
    fresh = json.loads(run("evaluate", run_folder, "--data", data, "--json", "--fold", "0").out)["samples"]
    assert more > 4 and fresh > 4
    shutil.move(data, tmp_path / "own" / "train")
    shutil.copytree(tmp_path / "own" / "train", tmp_path / "own" / "val")
    (run_folder / "folds.csv").unlink()
    (run_folder / "config.yaml").write_text(
        re.sub("folds: 4|fold: 1", "", (run_folder / "config.yaml").read_text())
    )
    done = run("evaluate", run_folder, "--data", tmp_path / "own", "--json")
    assert "28 groups are in train and val (p0, p1, p2 and 25 more): validation figures" in done.err
    assert "groups are in" not in run("evaluate", run_folder, "--data", tmp_path / "own", "--group", "").err
    assert "has no such column" in one_line(
        run("evaluate", run_folder, "--data", table(tmp_path), "--group", "who")
    )


def table(root: Path) -> Path:
    (root / "set.csv").write_text("path,label\nown/train/a/p0_0.png,a\nown/train/b/p0_1.png,b\n")
    return root / "set.csv"
