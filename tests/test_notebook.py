"""What notebooks show: the display protocol's HTML, parsed, with names that are meant to break it."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformer_vision import Predictor, Run, evaluate, load
from conformer_vision.inference import Prediction, Predictions
from conformer_vision.inference.predictor import Guess
from conformer_vision.notebook import COLOURS
from conformer_vision.pages.palette import PALETTE
from conformer_vision.runs import mark_config
from conformer_vision.runtime.prediction_html import _MOST
from exports import SPEC, write_run

HOSTILE = "<script>alert(1)</script> \"'><img src=http://x.y/z onerror=alert(1)> $x^2$ &amp; 犬 \u202e"
VOID = {"img"}


class Piece(HTMLParser):
    """A piece of HTML; fails where a tag is not closed in its place, or loads or runs something."""

    def __init__(self, html: str | None) -> None:
        super().__init__()
        assert html is not None
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []
        self.text = " ".join("".join(self.words).split())
        for tag, attributes in self.tags:
            assert tag not in ("script", "style", "link", "object", "embed")
            assert not any(name.startswith("on") for name in attributes)
            assert "href" not in attributes and "url(" not in (attributes.get("style") or "")
            if tag == "img":
                assert (attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"]
            if tag == "iframe":
                assert attributes["sandbox"] is None and "src" not in attributes  # nothing is allowed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.words.append(" ")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def widths(piece: Piece) -> list[float]:
    styles = [attributes.get("style") or "" for _, attributes in piece.tags]
    return [float(found[1]) for style in styles if (found := re.search(r";width:([\d.]+)%", style))]


def test_predictions_of_a_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", replace(SPEC, classes=(HOSTILE, *SPEC.classes[1:])))
    answers = Predictor(run, device="cpu")([np.zeros((32, 32, 3), np.uint8), b"junk"], top_k=10)
    assert isinstance(answers, list) and isinstance(answers, Predictions)
    good, broken = answers
    piece = Piece(good._repr_html_())
    assert good.name in piece.text and " ".join(HOSTILE.split()) in piece.text
    assert good.conv is not None and good.trans is not None
    shares = [*good.probabilities, good.conv.probability, good.trans.probability]
    assert widths(piece) == pytest.approx([100 * share for share in shares], abs=0.01)
    assert [f"{100 * share:.1f}" for share in shares] == re.findall(r"(\d+\.\d) %", piece.text)
    assert f"Convolution branch: {good.conv.label}" in " ".join("".join(piece.words).split())
    assert "image 2: " in Piece(broken._repr_html_()).text
    both = Piece(answers._repr_html_()).text
    assert piece.text in both and "no answer: image 2" in both


def test_predictions_of_every_kind() -> None:
    def text(**fields: Any) -> str:
        return Piece(Prediction("a.png", ("cat",), (0.5,), **fields)._repr_html_()).text

    assert text() == "a.png cat 50.0 %"
    assert "unsure: its features are far from those of any class" in text(
        unsure="its features are far from those of any class"
    )
    assert "set of classes: cat, dog" in text(conformal_set=("cat", "dog"))
    assert "set of classes: none" in text(conformal_set=())
    assert "present: cat" in text(present=("cat",))
    assert Piece(Prediction("a.png", (), (), present=())._repr_html_()).text == "a.png no class"
    assert "Transformer branch: dog" in text(trans=Guess("dog", 0.25))
    assert HOSTILE.split()[0] in Piece(Prediction(HOSTILE, (), (), error=HOSTILE)._repr_html_()).text
    assert "no images" in Piece(Predictions()._repr_html_()).text
    many = Predictions([Prediction(f"{number}.png", ("cat",), (1.0,)) for number in range(_MOST + 7)])
    assert "and 7 more" in Piece(many._repr_html_()).text


def test_evaluations(trained: Path) -> None:
    evaluation = evaluate(trained, "digits", device="cpu")
    piece = Piece(evaluation._repr_html_())
    heads, classes = evaluation.tables()
    for row in (heads.columns, *heads.rows, heads.title, classes.title, *classes.rows):
        assert row in piece.text if isinstance(row, str) else " ".join(filter(None, row)) in piece.text
    assert f"{evaluation.samples:,} images" in piece.text
    assert all(remark in piece.text for remark in evaluation.remarks())
    names = {name: f"{HOSTILE} {name}" for name in evaluation.classes}
    fused = evaluation.heads["fused"]
    renamed = replace(
        evaluation,
        heads={"fused": replace(fused, classes={names[name]: each for name, each in fused.classes.items()})},
        confusion={HOSTILE: {"7": 3}},
        broken=[HOSTILE],
    )
    piece = Piece(renamed._repr_html_())
    assert piece.text.count(" ".join(HOSTILE.split())) == len(names) + 2
    assert "1 images could not be read" in piece.text


def test_runs(trained: Path, tmp_path: Path) -> None:
    run = Run(trained)
    results = json.loads((trained / "results.json").read_text())
    piece = Piece(run._repr_html_())
    assert str(trained) in piece.text and results["model"] in piece.text
    for head, figure in results["best"]["top1"].items():
        assert head in piece.text
        assert (
            f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
            in piece.text
        )
    assert isinstance(run, Path) and run == trained and hash(run) == hash(trained)
    assert (run / "config.yaml").read_text() == (trained / "config.yaml").read_text()
    assert (run / "config.yaml")._repr_html_() is None and Run(tmp_path)._repr_html_() is None

    (tmp_path / "config.yaml").write_text(mark_config("model: x\n"))
    assert "no results yet" in Piece(Run(tmp_path)._repr_html_()).text
    (tmp_path / "curves.png").write_bytes(b"\x89PNG")
    (tmp_path / "report.html").write_text(f'<p class="a">{HOSTILE}</p>')
    results["best"]["weakest_class"] = HOSTILE
    results["finished"] = False
    (tmp_path / "results.json").write_text(json.dumps(results))
    piece = Piece(Run(tmp_path)._repr_html_())
    assert " ".join(HOSTILE.split()) in piece.text and "not finished" in piece.text
    (frame,) = (attributes for tag, attributes in piece.tags if tag == "iframe")
    assert frame["srcdoc"] == f'<p class="a">{HOSTILE}</p>'
    assert [tag for tag, _ in piece.tags].count("img") == 1


@pytest.mark.parametrize(
    "results",
    [
        {"best": {"top1": 7, "epoch": None}},
        {"best": {"top1": {"fused": {"value": "x"}, "conv": None}}},
        {"best": {"top1": {"fused": {"value": 0.5, "low": None, "high": "y"}}}},
        {"best": [], "out_of_fold": 3, "folds": 4},
        {
            "out_of_fold": {"fused": {"top1": {"value": 0.5, "low": 0.4, "high": 0.6}}, "conv": 2},
            "folds": [1],
        },
        {"model": {"a": [HOSTILE]}, "data": 3, "finished": "no"},
    ],
)
def test_results_that_somebody_edited(results: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(mark_config("model: x\n"))
    (tmp_path / "results.json").write_text(json.dumps(results))
    Piece(Run(tmp_path)._repr_html_())


def test_models(tmp_path: Path) -> None:
    spec = replace(SPEC, classes=(HOSTILE, *SPEC.classes[1:]))
    loaded = load(write_run(tmp_path / "run", spec))
    text = Piece(loaded._repr_html_()).text
    parameters = sum(each.numel() for each in loaded.model.parameters())
    for part in (spec.model, "10: ", f"{parameters:,}", "32 × 32 pixels of 3 channels"):
        assert part in text


def test_colours_suit_light_and_dark_notebooks() -> None:
    """WCAG's contrast of graphics, on white and on the dark page."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), parts))

    for colour in COLOURS.values():
        for ground in ("#ffffff", PALETTE["page"].dark, PALETTE["surface"].dark):
            lighter, darker = sorted((luminance(colour), luminance(ground)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 3, (colour, ground)
