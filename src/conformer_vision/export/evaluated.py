"""What a run's validation images say of its weights, in the model card of an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from conformer_vision.inference.intervals import Figure
from conformer_vision.runs import BEST_WEIGHTS, LAST_WEIGHTS, ModelSource, read_results

_WEIGHTS = {BEST_WEIGHTS: "best", LAST_WEIGHTS: "last"}
_METRICS = {"top1": ("accuracy", "Top-1"), "map": ("mean_average_precision", "Mean average precision")}
"""Name in `results.json` -> the Hub's name of the metric, and its name for people."""
_HEADS = {"conv": "convolution head", "trans": "transformer head"}


def add_results(card: Path, source: ModelSource, *, model: str) -> None:
    """Add the validation results of a run's weights to a model card, for people and for the Hub.

    Weights that are not of a run, and runs without results, leave the card as it is. Of the images only the
    last part of their name gets into the card, since the rest may be a path on somebody's machine.

    Args:
        card: ``README.md`` of the exported folder.
        source: What was exported.
        model: Name of the model in the Hub's list of results.
    """
    results = read_results(source.path.parent)
    which = _WEIGHTS.get(source.path.name)
    if results is None or which is None:
        return
    try:
        row, data = results[which], Path(str(results["data"])).name
        name = next(each for each in _METRICS if each in row)
        figures = {head: Figure(**values) for head, values in row[name].items()}
        text = _sentence(figures, _METRICS[name][1], images=int(results["images"]["val"]), data=data)
        value = round(figures["fused"].value or 0, 4)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
        return  # somebody else's file
    content = ModelCard.load(card)
    metadata: Any = content.data
    metadata.model_name = model
    metadata.eval_results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=data,
            dataset_name=data,
            dataset_split="validation",
            metric_type=_METRICS[name][0],
            metric_name=_METRICS[name][1],
            metric_value=value,
        )
    ]
    content.text = content.text.replace("\nClasses: ", f"\n{text}\n\nClasses: ", 1)
    card.write_text(str(content), encoding="utf-8")


def _sentence(figures: dict[str, Figure], metric: str, *, images: int, data: str) -> str:
    fused = figures["fused"]
    if fused.value is None:
        raise ValueError("there is no such figure")
    between = ""
    if fused.low is not None and fused.high is not None:
        between = f" (95 % interval {fused.low:.1%} to {fused.high:.1%})"
    known = {head: each for head, each in figures.items() if head in _HEADS and each.value is not None}
    heads = [f"{_HEADS[head]} {each.value:.1%}" for head, each in known.items()]
    alone = f"; {', '.join(heads)} alone" if heads else ""
    return f"{metric} on the {images:,} validation images of {data}: {fused.value:.1%}{between}{alone}."
