"""Compare two trained models: find images that neither was trained on, evaluate both, contrast them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from conformer_vision.data import ImageSource, Splitting, require_source
from conformer_vision.data.base import SubsetSource
from conformer_vision.data.opening import describe
from conformer_vision.data.splits import Split
from conformer_vision.errors import UserError, option, some_names
from conformer_vision.inference.collect import collect_answers
from conformer_vision.inference.comparison import (
    Contrast,
    PairedTest,
    Turn,
    contrast,
    paired_test,
    renumbered,
    restricted,
    turns,
)
from conformer_vision.inference.labelled import LabelledImages, RunData, read_run_data
from conformer_vision.inference.out_of_fold import images_unseen
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.report.opened import read_metrics
from conformer_vision.runs import METRICS_FILE, fold_name, read_results, read_run_config, run_folder_of

_NOT_COMPARED = frozenset({"output", "auto_resume", "progress"})


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    given: str
    """As it was named."""
    path: str
    """The file that was evaluated, or the name of published weights."""
    model: str
    """Its name in timm's registry."""
    state: str
    """How far its training has come, in words; empty where nothing says."""
    config: dict[str, Any] | None
    """The values of its ``config.yaml``; None without one."""
    rows: list[dict[str, float]] = field(repr=False)
    """The rows of its ``metrics.csv``."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    a: Side
    b: Side
    data: str
    images: int
    groups: int | None
    """Groups of images that the intervals resample; None without groups."""
    heads: dict[str, Contrast]
    test: PairedTest
    options: dict[str, tuple[Any, Any]] | None
    """Options of training that differ, with the values of A and B; None if one has no configuration."""
    lost: list[Turn]
    """Images that A answers right and B wrong, the surest mistakes first."""
    won: list[Turn]
    """Images that A answers wrong and B right."""
    broken: list[str]
    notes: list[str]
    """What a reader should know before the figures."""
    source: ImageSource = field(repr=False, compare=False)
    """The images, in the order of the rows; not in the JSON."""

    def to_json(self) -> str:
        """Return all fields but the images as one JSON object; a figure of NaN is null."""
        fields = {name: value for name, value in vars(self).items() if name != "source"}
        for name in ("a", "b", "test"):
            fields[name] = asdict(fields[name])
        for name in ("lost", "won"):
            fields[name] = [asdict(each) for each in fields[name]]
        fields["heads"] = {head: asdict(each) for head, each in self.heads.items()}
        return json.dumps(_finite(fields), ensure_ascii=False, allow_nan=False, default=str)


def compare(
    a: str | Path,
    b: str | Path,
    *,
    data: str | None = None,
    split: Split = "val",
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> Comparison:
    """Evaluate two models on the same images, and contrast them.

    Args:
        a: A run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights.
        b: Another one, of a model with the same classes.
        data: Labelled images, as training takes them; by default those of the runs, of which only the images
            that both held out are taken.
        split: Part of ``data`` that is neither run's own.
        data_dir: Where named sets are kept; defaults to A's own.
        device: ``auto`` or a torch device.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this one.

    Raises:
        UserError: No such model, models of different classes, runs of different data without ``data``, no
            image that both held out, or as `evaluate`.
    """
    trained = [TrainedModel(each, device=device) for each in (a, b)]
    classes = [each.spec.classes for each in trained]
    for model in trained:
        if model.spec.multilabel:
            raise UserError(
                f"{model.path} gives an image any number of labels, and compare is for models of one; "
                "set the figures of evaluate side by side"
            )
    _check_classes(*classes, names=(str(a), str(b)))
    runs = [read_run_data(each) for each in (a, b)]
    known = [run_folder_of(each) is not None for each in (a, b)]
    notes: list[str] = []
    images = _choose(runs, known, names=(str(a), str(b)), data=data, split=split, notes=notes)
    for model, run in zip(trained, runs, strict=True):
        _check_unseen(
            model, run, LabelledImages(images, split, run.splitting, data_dir=data_dir or run.data_dir)
        )
    sources = [
        require_source(
            LabelledImages(images, part, splitting, data_dir=data_dir or runs[0].data_dir).open(model.spec),
            name=describe(images),
        )
        for (part, splitting), model in zip(_parts(runs, known, images, split), trained, strict=True)
    ]
    sources = _in_both(sources, names=(str(a), str(b)), notes=notes)
    answers = [
        collect_answers(model, source, batch_size=batch_size, workers=workers, keep_all=True)
        for model, source in zip(trained, sources, strict=True)
    ]
    second = renumbered(answers[1], classes[1], classes[0])
    readable = set(second.names)
    names = [name for name in answers[0].names if name in readable]
    first, second = restricted(answers[0], names), restricted(second, names)
    lost, won = turns(first, second, classes[0])
    side_a, side_b = (_side(str(given), model) for given, model in zip((a, b), trained, strict=True))
    notes += [
        f"{side.given} is unfinished: {side.state}"
        for side in (side_a, side_b)
        if side.state.startswith("epoch ")
    ]
    return Comparison(
        a=side_a,
        b=side_b,
        data=describe(images),
        images=len(names),
        groups=None if first.groups is None else len(set(first.groups)),
        heads=contrast(first, second, classes[0]),
        test=paired_test(first, second),
        options=_changed(side_a.config, side_b.config),
        lost=lost,
        won=won,
        broken=[each.line for each in answers[0].broken],
        notes=notes,
        source=SubsetSource(sources[0], first.indices.tolist()),
    )


def _check_unseen(model: TrainedModel, run: RunData, images: LabelledImages) -> None:
    """Refuse images that the folds of an ensemble were trained on, or may have been."""
    if not run.all_folds or model.spec.members == 1:
        return
    if images.split == "val":
        folder = model.path.parent
        raise UserError(
            f"{folder} is an ensemble of folds, which have seen most of these images; compare its folds, "
            f"such as {folder / fold_name(0)}, or give other images with {option('split', 'all')}"
        )
    images_unseen(images, run, model)


def _check_classes(a: Sequence[str], b: Sequence[str], *, names: tuple[str, str]) -> None:
    if set(a) != set(b):
        only = [
            f"only {name} knows {some_names(sorted(set(own) - set(other)), most=3)}"
            for name, own, other in zip(names, (a, b), (b, a), strict=True)
            if set(own) - set(other)
        ]
        raise UserError(f"the models know different classes ({'; '.join(only)}); compare two of the same")


def _choose(
    runs: Sequence[RunData],
    known: Sequence[bool],
    *,
    names: tuple[str, str],
    data: str | None,
    split: Split,
    notes: list[str],
) -> str:
    """Return the images to compare on, and note what they were to the runs."""
    own = [run.data for run in runs]
    if data is None:
        if not any(own):
            raise UserError(
                f"neither {names[0]} nor {names[1]} says what it was trained on; give {option('data')}"
            )
        if all(own) and own[0] != own[1]:
            raise UserError(
                f"{names[0]} was trained on {own[0]} and {names[1]} on {own[1]};"
                f" give images that neither has seen with {option('data')}"
            )
        data = own[0] or own[1]
        assert data is not None
    for name, mine, has in zip(names, own, known, strict=True):
        if not has:
            notes.append(
                f"{name} does not say what it was trained on; if these images were among it, it is flattered"
            )
        elif mine == data and split != "val":
            notes.append(f"{name} was trained on images of {data}, which split {split} holds too")
    return data


def _parts(
    runs: Sequence[RunData], known: Sequence[bool], data: str, split: Split
) -> list[tuple[Split, Splitting]]:
    """Return which part of the images to open for each model."""
    # A model of other images, or that does not say of which, is evaluated on those of the first run.
    fallback = next((run for run, has in zip(runs, known, strict=True) if has), runs[0])
    return [(split, run.splitting if run.data == data else fallback.splitting) for run in runs]


def _in_both(sources: list[ImageSource], *, names: tuple[str, str], notes: list[str]) -> list[ImageSource]:
    """Return the images that both runs hold out, in the same order."""
    called = [[source.name(index) for index in range(len(source))] for source in sources]
    for each in called:
        if repeated := [name for name, count in Counter(each).items() if count > 1]:
            raise UserError(f"several images are called {repeated[0]}; images are paired by their names")
    places = [{name: index for index, name in enumerate(each)} for each in called]
    shared = [name for name in called[0] if name in places[1]]
    if not shared:
        raise UserError(
            f"{names[0]} and {names[1]} hold out different images, so each was trained on what the other"
            f" holds out; give images that neither has seen with {option('data')}"
        )
    if len(shared) < max(map(len, called)):
        notes.append(
            f"the runs hold out different images: {len(called[0]):,} and {len(called[1]):,},"
            f" of which {len(shared):,} are held out by both and compared"
        )
    return [
        SubsetSource(source, [place[name] for name in shared])
        for source, place in zip(sources, places, strict=True)
    ]


def _side(given: str, trained: TrainedModel) -> Side:
    folder = run_folder_of(given)
    if folder is None:
        return Side(given, str(trained.path), trained.spec.model, "", None, [])
    results = read_results(folder) or {}
    state = ""
    if results:
        epochs, wanted = results.get("epochs"), (results.get("ends") or {}).get("epochs")
        whole = f"{epochs} epoch{'' if epochs == 1 else 's'}"
        state = whole if results.get("finished") else f"epoch {epochs} of {wanted}"
    rows = read_metrics(folder / METRICS_FILE)
    return Side(given, str(trained.path), trained.spec.model, state, read_run_config(folder), rows)


def _changed(a: dict[str, Any] | None, b: dict[str, Any] | None) -> dict[str, tuple[Any, Any]] | None:
    if a is None or b is None:
        return None
    names = [*a, *(name for name in b if name not in a)]
    return {
        name: (a.get(name), b.get(name))
        for name in names
        if a.get(name) != b.get(name) and name not in _NOT_COMPARED
    }


def _finite(value: Any) -> Any:
    """JSON has no infinity and no not-a-number."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value
