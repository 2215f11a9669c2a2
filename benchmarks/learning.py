"""Train and measure what the tables of docs/results.md compare; tables.py writes the tables.

    python benchmarks/learning.py --list
    python benchmarks/learning.py --run few-classes --data DIR     # trains; go on with the same command
    python benchmarks/learning.py --run few-classes --only conformer --data DIR
    python benchmarks/tables.py                                     # rewrites the tables in docs/results.md

The experiments are in experiments.yaml, grouped by table. DIR holds the data that they name. Every run is one
`conformer-vision train`; it can be stopped at any moment, and the same command goes on where it was. Once it
has ended it is measured on its test images, which happens once, and stored with its configuration, its
curves, the commit and the machine as a JSON file in results/.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import ablations  # noqa: F401 - registers the networks of the ablations with timm
from conformer_vision import TrainConfig, evaluate, train
from conformer_vision.files import atomic_path
from conformer_vision.inference import Evaluation, MultilabelEvaluation
from conformer_vision.training.recipe import find_recipe, read_recipe
from conformer_vision.weights import load_model
from robustness import moved_accuracy
from stored import HERE, RESULTS, provenance

EXPERIMENTS = HERE / "experiments.yaml"


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
        values: dict[str, Any] = {"pretrained": False, "precision": "32"}  # where the table names no other
        values |= read_recipe(find_recipe(recipe)) if recipe else {}
        values |= options | {"seed": self.seed, "output": str(runs / self.slug), "auto_resume": True}
        for name, folder in (("data", data), ("unlabelled", data), ("teacher", runs)):
            if name in values:
                values[name] = located(values[name], folder)
        return TrainConfig.from_options(**values)


def located(name: str, folder: Path) -> str:
    """Where the data of an experiment lies; the digits need no files."""
    return name if name == "digits" else str(folder / name)


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
        held_out = located(experiment.options["data"], data)
        measured = evaluate(weights, held_out, split="val", input_size=size)
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
    print(f"{experiment.slug}: {result.get('top1') or result['map']}")
    return result


def _accuracy(measured: Evaluation | MultilabelEvaluation) -> dict[str, Any]:
    """Take from an evaluation what is stored: values alone, since the seeds tell the spread."""
    fused = measured.heads["fused"]
    kept = {"top1": "top1", "top5": "top5", "loss": "log_loss"}
    if isinstance(measured, MultilabelEvaluation):
        kept = {"map": "map", "class_f1": "class_f1", "overall_f1": "overall_f1", "loss": "log_loss"}
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


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train and measure what docs/results.md compares.")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--list", action="store_true", help="name the experiments and whether they are stored")
    group.add_argument("--run", metavar="TABLE", help="train and measure the experiments of a table")
    parser.add_argument("--only", help="with --run: the experiments whose name holds this")
    parser.add_argument("--seed", type=int, help="with --run: the experiments of this seed")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders are")
    options = parser.parse_args()
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
