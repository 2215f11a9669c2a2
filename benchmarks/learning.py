"""Train and measure what the tables of docs/results.md compare, and write the tables from the stored runs.

    python benchmarks/learning.py --list
    python benchmarks/learning.py --run few-classes --data DIR     # trains; go on with the same command
    python benchmarks/learning.py --run few-classes --only conformer --data DIR
    python benchmarks/learning.py --table                           # rewrites the tables in docs/results.md

The experiments are in experiments.yaml, grouped by table. DIR holds the data that they name. Every run is one
`conformer-vision train`; it can be stopped at any moment, and the same command goes on where it was. Once it
has ended it is measured on its test images, which happens once, and stored with its configuration, its
curves, the commit and the machine as a JSON file in results/.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

import ablations  # noqa: F401 - registers the networks of the ablations with timm
from conformer_vision import TrainConfig, evaluate, train
from conformer_vision.files import atomic_path
from conformer_vision.inference import Evaluation
from conformer_vision.training.recipe import find_recipe, read_recipe
from conformer_vision.weights import load_model
from robustness import moved_accuracy

HERE = Path(__file__).resolve().parent
EXPERIMENTS = HERE / "experiments.yaml"
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs" / "results.md"
_MACHINE = re.compile(r"model name\s*:\s*(.+)")


@dataclass(frozen=True)
class Experiment:
    """One row of a table for one seed."""

    table: str
    name: str
    seed: int
    options: dict[str, Any]
    """Keys of `TrainConfig`, ``recipe`` among them."""
    test: str | None
    """Images to measure on; None for the part of the training images that is held out."""
    moved: bool = False
    """Whether to measure on turned, scaled and shifted test images too."""
    test_size: int | None = None
    """Pixels of the input to measure at, where not those of the training; chosen on held-out images."""

    @property
    def slug(self) -> str:
        """Name of its run folder and of its stored file."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{self.table}--{words}--{self.seed}"

    def config(self, data: Path, runs: Path) -> TrainConfig:
        """The configuration of its run."""
        options = dict(self.options)
        recipe = options.pop("recipe", None)
        values = {"pretrained": False} | (read_recipe(find_recipe(recipe)) if recipe else {})
        values |= options | {"seed": self.seed, "output": str(runs / self.slug), "auto_resume": True}
        values["data"] = str(data / values["data"])
        return TrainConfig.from_options(**values)


def read_experiments(path: Path = EXPERIMENTS) -> list[Experiment]:
    """All experiments, in the order of the file."""
    tables: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [
        Experiment(
            table,
            name,
            seed,
            options=spec.get("base", {}) | (changes or {}),
            test=spec.get("test"),
            moved=spec.get("moved", False),
            test_size=spec.get("test_size"),
        )
        for table, spec in tables.items()
        for seed in spec.get("seeds", [0])
        for name, changes in spec["runs"].items()
    ]


def run(experiment: Experiment, data: Path, runs: Path, results: Path = RESULTS) -> dict[str, Any]:
    """Train what is left of it, measure it once, and store the result."""
    stored = results / f"{experiment.slug}.json"
    if stored.is_file():
        print(f"{experiment.slug}: stored already")
        return json.loads(stored.read_text(encoding="utf-8"))
    config = experiment.config(data, runs)
    folder = train(config)
    return store(experiment, folder, data, results)


def store(experiment: Experiment, folder: Path, data: Path, results: Path = RESULTS) -> dict[str, Any]:
    """Measure a run that has ended and write its file.

    Args:
        experiment: which it is.
        folder: of the run.
        data: folder of the data.
        results: where to write.
    """
    weights = folder / "last.safetensors"
    size = experiment.test_size
    if experiment.test is None:
        measured = evaluate(weights, data / experiment.options["data"], split="val", input_size=size)
    else:
        measured = evaluate(weights, data / experiment.test, split="all", input_size=size)
    values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    values["data"] = experiment.options["data"]  # where it lay on this machine says nothing
    for name in ("output", "data_dir"):
        values.pop(name, None)
    model, _ = load_model(weights)
    result = {
        "table": experiment.table,
        "name": experiment.name,
        "seed": experiment.seed,
        "model": values["model"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "test": experiment.test or "held-out training images",
        **({} if size is None else {"test_size": size}),
        **_accuracy(measured),
        **({"moved": moved_accuracy(weights, data / str(experiment.test))} if experiment.moved else {}),
        "curves": _curves(folder / "metrics.csv"),
        "config": values,
        **provenance(),
    }
    results.mkdir(exist_ok=True)
    with atomic_path(results / f"{experiment.slug}.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{experiment.slug}: {result['top1']}")
    return result


def _accuracy(measured: Evaluation) -> dict[str, Any]:
    """Take from an evaluation what is stored: values alone, since the seeds tell the spread."""
    fused = measured.heads["fused"]
    kept = {"top1": "top1", "top5": "top5", "loss": "log_loss"}
    by_head = {
        name: {head: getattr(figures, field).value for head, figures in measured.heads.items()}
        for name, field in kept.items()
    }
    return {
        "samples": measured.samples,
        **by_head,
        "nll": fused.log_loss.value,
        "ece": fused.ece.value,
    }


def _curves(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def provenance() -> dict[str, Any]:
    """The commit, the libraries, the machine and the day."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "src", "benchmarks/ablations.py"],
        cwd=HERE,
        capture_output=True,
        text=True,
    ).stdout
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    info = Path("/proc/cpuinfo")
    found = _MACHINE.search(info.read_text(encoding="utf-8")) if info.is_file() else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else found and found[1]
    return {
        "commit": commit.stdout.strip() + (" with changes" if changed.strip() else ""),
        "torch": torch.__version__,
        "machine": f"{device or platform.machine()}, {torch.get_num_threads()} threads",
        "date": date.today().isoformat(),
    }


# ---- tables --------------------------------------------------------------------------------------------


def rows_of(results: list[dict[str, Any]]) -> Iterator[list[str]]:
    """One row per name: the mean over the seeds, and their standard deviation where there are several."""
    names = list(dict.fromkeys(result["name"] for result in results))
    best = max(_mean(results, name, "fused") for name in names)
    for name in names:
        of_name = [result for result in results if result["name"] == name]
        last = [result["curves"][-1] for result in of_name]
        heads = [
            _spread([100 * result["top1"][head] for result in of_name if head in result["top1"]])
            for head in ("conv", "trans", "fused")
        ]
        if _mean(results, name, "fused") == best:
            heads[2] = f"**{heads[2]}**"
        seen = statistics.mean(row["step"] for row in last) * of_name[0]["config"]["batch_size"]
        minutes = statistics.mean(row["seconds"] for row in last) / 60
        yield [
            name,
            f"{of_name[0]['parameters'] / 1e6:.2f}",
            f"{seen / 1000:,.0f}",
            f"{minutes:.0f}",
            *heads,
            str(len(of_name)),
        ]


def _mean(results: list[dict[str, Any]], name: str, head: str) -> float:
    return statistics.mean(result["top1"][head] for result in results if result["name"] == name)


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    text = f"{statistics.mean(values):.1f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.1f}"


HEADER = [
    *("", "Parameters, M", "Images seen, thousands", "Minutes", "Convolution head, %"),
    *("Transformer head, %", "Prediction, %", "Seeds"),
]


def table(results: list[dict[str, Any]]) -> str:
    """The table of some results in Markdown, with what it was measured on below it."""
    lines = ["| " + " | ".join(HEADER) + " |", "| --- |" + " --: |" * (len(HEADER) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(results)]
    days = sorted({result["date"] for result in results})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = " and ".join(sorted({result["machine"] for result in results}))
    images = f"{results[0]['samples']:,} images of {results[0]['test']}"
    lines += ["", f"Measured on {images}; {machines}, torch {results[0]['torch']}, {when}."]
    return "\n".join(lines)


def moved_table(results: list[dict[str, Any]]) -> str:
    """The table of accuracies on moved images: a row per movement, a column per name."""
    names = list(dict.fromkeys(result["name"] for result in results))
    lines = ["| Prediction, % | " + " | ".join(names) + " |", "| --- |" + " --: |" * len(names)]
    for movement in results[0]["moved"]:
        cells = [
            _spread([100 * r["moved"][movement] for r in results if r["name"] == name]) for name in names
        ]
        lines.append("| " + " | ".join([movement, *cells]) + " |")
    return "\n".join(lines)


_WRITERS = {"table": table, "moved": moved_table}


def write_tables(docs: Path = DOCS, results: Path = RESULTS) -> list[str]:
    """Replace what stands between the marks of every table in the page; give the names of those tables.

    Raises:
        ValueError: the page has a mark for a table of which nothing is stored.
    """
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    order = {(e.table, e.name): place for place, e in enumerate(read_experiments())}
    stored.sort(key=lambda result: (order.get((result["table"], result["name"]), len(order)), result["seed"]))
    text = docs.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- (table|moved): (\S+) -->", text)
    for kind, name in marks:
        found = [result for result in stored if result["table"] == name]
        if not found:
            raise ValueError(f"{docs} has a table {name}, of which {results} holds no run")
        begin, end = f"<!-- {kind}: {name} -->\n", "<!-- end -->"
        before, _, after = text.partition(begin)
        text = before + begin + _WRITERS[kind](found) + "\n" + end + after.partition(end)[2]
    with atomic_path(docs) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [f"{kind} {name}" for kind, name in marks]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train, measure and tabulate what docs/results.md compares.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--list", action="store_true", help="name the experiments and whether they are stored")
    group.add_argument("--run", metavar="TABLE", help="train and measure the experiments of a table")
    group.add_argument("--table", action="store_true", help="write the tables of docs/results.md anew")
    parser.add_argument("--only", help="with --run: the experiments whose name holds this")
    parser.add_argument("--seed", type=int, help="with --run: the experiments of this seed")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders are")
    options = parser.parse_args()
    if options.table:
        print("written:", ", ".join(write_tables()))
        return 0
    experiments = read_experiments()
    if options.list:
        for experiment in experiments:
            there = (RESULTS / f"{experiment.slug}.json").is_file()
            print(f"{'stored' if there else 'to do ':8} {experiment.slug}")
        return 0
    chosen = [
        e
        for e in experiments
        if e.table == options.run and (options.only or "") in e.name and options.seed in (None, e.seed)
    ]
    if not chosen:
        print(f"no such experiment of table {options.run!r}; --list names them", file=sys.stderr)
        return 2
    for experiment in chosen:
        run(experiment, options.data, options.runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
