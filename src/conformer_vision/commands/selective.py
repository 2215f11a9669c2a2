"""What ``evaluate`` prints of unsure answers, images of other things and sets of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conformer_vision.console import say, show_table

if TYPE_CHECKING:
    from conformer_vision.inference.intervals import Figure
    from conformer_vision.inference.selective import Selective


def print_selective(selective: Selective) -> None:
    """Print the figures."""
    say(f"sure at a coverage of {selective.coverage:.0%}: {percent(selective.answered)} of the answers")
    say(f"top-1 of the sure answers {percent(selective.accuracy)}")
    say(f"top-1 of the unsure answers {percent(selective.accuracy_unsure)}")
    rows = [(f"{point.coverage:.0%}", f"{point.accuracy:.1%}") for point in selective.curve]
    show_table(("the surest", "top-1"), rows)
    say(f"area under the risk-coverage curve (AURC) {selective.aurc:.4f}")
    if (found := selective.sets) is not None:
        say(
            f"sets at an error rate of {found.error_rate:g}: {percent(found.errors)} lack the true class; "
            f"{found.size:.2f} classes on average, {found.single:.0%} have one"
        )
    if (other := selective.unknown) is not None:
        say(f"{other.images:,} images of other things: {percent(other.unsure)} unsure")
        say(f"AUROC {percent(other.auroc)}, FPR95 {percent(other.fpr95)}")


def percent(figure: Figure) -> str:
    """Format a share with its interval; a dash where there is none."""
    if figure.value is None:
        return "-"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.1%}"
    return f"{figure.value:.1%} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"
