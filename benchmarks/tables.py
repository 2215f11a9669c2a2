"""Write the tables of docs/results.md from the stored results.

    python benchmarks/tables.py

A table stands between a mark, ``<!-- KIND: NAME -->``, and ``<!-- end -->``. Its rows are stored under NAME.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformer_vision.files import atomic_path
from learning import read_experiments
from stored import HERE, RESULTS

DOCS = HERE.parent / "docs" / "results.md"


def rows_of(results: list[dict[str, Any]]) -> Iterator[list[str]]:
    """One row per name: the mean over the seeds, and their standard deviation where there are several."""
    names = list(dict.fromkeys(result["name"] for result in results))
    best = max(_mean(results, name, "fused") for name in names)
    for name in names:
        of_name = [result for result in results if result["name"] == name]
        last = [result["curves"][-1] for result in of_name]
        heads = [
            _spread([100 * scores[head] for scores in map(_scores, of_name) if head in scores])
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
    return statistics.mean(_scores(result)[head] for result in results if result["name"] == name)


def _scores(result: dict[str, Any]) -> dict[str, float]:
    """The scores by head that runs are compared by: top-1, or mAP where an image has several labels."""
    found: dict[str, float] = result.get("top1") or result["map"]
    return found


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
    images = f"{results[0]['samples']:,} images of {results[0]['test']}"
    lines += ["", f"Measured on {images}; {_origin(results)}."]
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


MAP_COLUMNS = {
    "box": "Box, %",
    "max_box_acc_v2": "MaxBoxAccV2, %",
    "pointing": "Pointing, %",
    "pointing_two": "of two, %",
    "mask": "Mask, %",
    "deletion": "Deletion, %",
    "insertion": "Insertion, %",
}


def heat_map_table(results: list[dict[str, Any]]) -> str:
    """The table of heat maps: a row per network and method."""
    header = ["Network", "Method", "Images", *MAP_COLUMNS.values(), "Threshold", "Passes"]
    lines = ["| " + " | ".join(header) + " |", "| --- | --- |" + " --: |" * (len(header) - 2)]
    for row in results:
        values = ["–" if row[name] is None else f"{100 * row[name]:.1f}" for name in MAP_COLUMNS]
        name = row["run"].removeprefix("localization--").rpartition("--")[0].replace("-", " ") or row["run"]
        cells = [f"{name} ({100 * row['top1']['fused']:.1f} %)", row["method"], f"{row['images']:,}"]
        lines.append(
            "| " + " | ".join([*cells, *values, f"{row['threshold']:.2f}", f"{row['passes']:.2f}"]) + " |"
        )
    cases = max(row["cases"] for row in results)
    chance = 100 * 1.96 * 0.5 / cases**0.5
    lines += [
        "",
        f"{cases:,} objects at most: a share of them is uncertain by up to {chance:.0f} points (95 %). "
        f"{_origin(results)}.",
    ]
    return "\n".join(lines)


def dense_table(results: list[dict[str, Any]]) -> str:
    """The table of a segmentation or detection task, with intervals."""
    names = {
        "miou": "mIoU, %",
        "object_iou": "Object, %",
        "ap": "AP, %",
        "ap50": "AP50, %",
        "ap50_objects": "AP50 of objects, %",
    }
    metrics = {key: text for key, text in names.items() if key in results[0]}
    header = ["", "Parameters, M", "Images seen, thousands", *metrics.values()]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " --: |" * (len(header) - 1)]
    for row in results:
        cells = [row["name"], f"{row['parameters'] / 1e6:.1f}", f"{row['images_seen'] / 1000:.1f}"]
        for key in metrics:
            low, high = (100 * bound for bound in row[f"{key}_interval"])
            cells.append(f"{100 * row[key]:.1f} ({low:.1f} to {high:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    minutes, images = results[0]["minutes"], results[0]["test_images"]
    lines += ["", f"{minutes:g} minutes of one core each; {images:,} test images; {_origin(results)}."]
    return "\n".join(lines)


def _origin(results: list[dict[str, Any]]) -> str:
    """Machine, version of torch, and days of some results."""
    days = sorted({result["date"] for result in results})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = " and ".join(sorted({result["machine"] for result in results}))
    return f"{machines}, torch {results[0]['torch']}, {when}"


_WRITERS = {"table": table, "moved": moved_table, "maps": heat_map_table, "dense": dense_table}


def write_tables(docs: Path = DOCS, results: Path = RESULTS) -> list[str]:
    """Replace what stands between the marks of every table in the page; give the names of those tables.

    Raises:
        ValueError: the page has a mark for a table of which nothing is stored.
    """
    stored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    order = {(e.table, e.name): place for place, e in enumerate(read_experiments())}
    stored.sort(key=lambda result: (order.get((result["table"], result["name"]), len(order)), result["seed"]))
    text = docs.read_text(encoding="utf-8")
    marks = re.findall(rf"<!-- ({'|'.join(_WRITERS)}): (\S+) -->", text)
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


if __name__ == "__main__":
    print("written:", ", ".join(write_tables()))
