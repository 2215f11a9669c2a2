"""A page of predictions: the unsure images first, counts per class, heat maps on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from conformer_vision import pages
from conformer_vision.data import BrokenImageError, open_image
from conformer_vision.explain import Explainer
from conformer_vision.inference import Prediction
from conformer_vision.report.formats import FILTERS
from conformer_vision.report.images import Again, thumbnail

MOST = 500
"""Images on the page, the least sure ones: each takes about 20 kB."""
EDGE = 192
"""Longest edge of a thumbnail, in pixels."""


def write_answers(
    path: str | Path, predictions: Sequence[Prediction], *, model: str, explainer: Explainer | None
) -> None:
    """Write the page.

    Args:
        path: The page.
        predictions: Of files; those with an error are listed by themselves.
        model: What made them.
        explainer: The same model, for heat maps; None for an export, which has none.

    Raises:
        UserError: The file cannot be written.
    """
    answered = [each for each in predictions if each.error is None]
    good = sorted(answered, key=lambda each: (each.unsure is None, max(each.probabilities, default=0.0)))
    context = {
        "cards": [_card(each, explainer) for each in good[:MOST]],
        "left_out": max(len(good) - MOST, 0),
        "total": len(predictions),
        "counts": Counter(
            label
            for each in good
            if each.unsure is None
            for label in (each.labels[:1] if each.present is None else each.present)
        ).most_common(),
        "unsure": sum(each.unsure is not None for each in good),
        "broken": [each.error for each in predictions if each.error is not None],
        "model": model,
        "explained": explainer is not None,
        "today": date.today(),
    }
    pages.write_page(path, pages.render(__package__, "answers.html.j2", context, filters=FILTERS))


def _card(prediction: Prediction, explainer: Explainer | None) -> tuple[Prediction, pages.Thumbnail]:
    """Read the image again, for the page, and find the evidence for its first class."""
    if explainer is None:
        try:
            return prediction, pages.Thumbnail(
                prediction.name, pages.data_uri(open_image(prediction.name), edge=EDGE)
            )
        except BrokenImageError:  # readable a minute ago
            return prediction, pages.Thumbnail(prediction.name, None)
    (shown,) = explainer.show(prediction.name)
    again = Again(prediction.name, shown.image, shown.batch, shown.seen)
    number = shown.best(1)[0] if shown.image is not None else 0
    return prediction, thumbnail(again, explainer, number, views=1)
