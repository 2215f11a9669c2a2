"""``predict --engine ray``: classify a large set on a cluster, into a folder of parquet files."""

from __future__ import annotations

import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from conformer_vision.commands.progress import show_progress
from conformer_vision.console import note, say
from conformer_vision.errors import UserError, option
from conformer_vision.extras import check_installed
from conformer_vision.runs import find_model

if TYPE_CHECKING:
    from conformer_vision.inference import Predictor
    from conformer_vision.scale.run import Summary

_PRINTED = ("json", "jsonl", "csv", "page")
_COMPUTING = ("device", "batch_size")
"""Options of a predictor that its answers do not depend on, but for rounding."""


def check_engine(options: Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: No folder for the answers or an option that prints them, or the extra is missing.
    """
    if options.engine == "local":
        for name in ("output", "workers"):
            if options[name] is not None:
                raise UserError(f"{option(name)} is for {option('engine', 'ray')}; leave it out")
        return
    for name in _PRINTED:
        if options[name]:
            raise UserError(f"{option('engine', 'ray')} writes parquet files; leave out {option(name)}")
    if options.output is None:
        raise UserError(f"{option('engine', 'ray')} needs {option('output')} FOLDER for its parquet files")
    check_installed("ray", "pyarrow")


def predict_set(
    predictor_of: partial[Predictor],
    predictor: Predictor,
    inputs: list[str],
    options: Namespace,
    *,
    top_k: int | None,
) -> int:
    """Classify all images that the folder of answers lacks; return the exit status.

    Args:
        predictor_of: Makes a predictor of a model.
        predictor: What it made of this one, whose options are therefore valid.
        inputs: Images, folders, and addresses of stores.
        options: Of the subcommand.
        top_k: Of `Predictor.answer`.
    """
    from conformer_vision.scale.run import Model, classify

    predictor.answer([], top_k=top_k)  # refuses a wrong number before anything is listed
    source = find_model(predictor.model, arch=options.arch)
    if source.kind != "published":
        source = replace(source, path=source.path.absolute())  # other processes work in other folders
    keywords = predictor_of.keywords
    depends = {name: value for name, value in keywords.items() if name not in _COMPUTING}
    model = Model(
        source,
        partial(predictor_of, str(source.path)),
        options=depends | {"top_k": top_k},
        top_k=top_k,
        batch_size=options.batch_size,
        device=options.device,
    )
    summary: Summary | None = None
    try:
        with show_progress("classifying images", "classified") as progress:
            answering = classify(
                model, inputs, Path(options.output), workers=options.workers, progress=progress
            )
            with closing(answering):
                for summary in answering:
                    if not summary.answered and summary.before:
                        note(f"{summary.before:,} of {summary.images:,} images are answered already")
    except KeyboardInterrupt as interrupt:
        done = 0 if summary is None else summary.before + summary.answered
        note(f"stopped with {done:,} images answered; the same command goes on")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    assert summary is not None
    return _tell(summary, options.output)


def _tell(summary: Summary, output: str) -> int:
    """Print what is done; return the exit status."""
    say(f"{output}: the answers to {summary.images:,} images, {summary.answered:,} of them new")
    if summary.unsure:
        read = summary.answered - summary.broken
        note(f"unsure: {summary.unsure:,} of {read:,} new answers (docs/unsure.md)")
    if summary.broken:
        note(f"{summary.broken:,} of the new images could not be read; the column error says why")
    if summary.unfetched:
        note(f"{summary.unfetched:,} of these were not given by their store; the same command asks again")
    if summary.changed:
        note(f"{summary.changed:,} images have changed since they were listed; their answers stay")
    return 1 if summary.broken else 0
