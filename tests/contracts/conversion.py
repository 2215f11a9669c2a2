"""What every runtime that a model is converted for has to do; a new one inherits this class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from conformer_vision import Evaluation, Prediction, Predictor, evaluate
from conformer_vision.inference.conversion import convert
from conformer_vision.inference.conversion.choice import RuntimeChoice
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runs import find_model
from rejecting import noise

Model = Callable[[str], Path]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "both heads, unsure": ("conformer", {"coverage": 0.6}),
    "sets of classes": ("conformer", {"conformal": 0.2}),
    "views of the same size": ("conformer", {"tta": "flip"}),
    "views of other sizes": ("conformer", {"tta": "flip+scales=1,1.25"}),
    "another size": ("conformer", {"input_size": (48, 40)}),
    "several labels": ("several", {}),
    "folds": ("folds", {}),
    "one head, unsure": ("resnet", {"coverage": 0.6}),
    "one head, views of other sizes": ("resnet", {"tta": "scales=1,1.5"}),
    "one head, another size": ("resnet", {"input_size": 48}),
}
IMAGES = [Image.new("RGB", (40, 40)), *noise(11, seed=6)]


def assert_same(ours: list[Prediction], theirs: list[Prediction]) -> None:
    """Every field is the same, probabilities up to rounding."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name in (each.name for each in fields(Prediction)):
            found, expected = getattr(one, name), getattr(other, name)
            if name == "probabilities":
                assert found == pytest.approx(expected, abs=1e-5)
            elif name in ("conv", "trans") and expected is not None:
                assert found.label == expected.label
                assert found.probability == pytest.approx(expected.probability, abs=1e-5)
            else:
                assert found == expected, name


class ConversionContract:
    """Tests of one runtime."""

    runtime: ClassVar[Any]

    @pytest.fixture
    def made(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The conversions that are made from now on, by name."""
        names: list[str] = []
        make = convert._make

        def counted(original: Any, graph: Any, entry: Any, precision: Any, slot: Any, device: Any) -> Path:
            names.append(slot.name)
            return make(original, graph, entry, precision, slot, device)

        monkeypatch.setattr(convert, "_make", counted)
        return names

    def predict(self, path: Path, *, top_k: int | None = None, **options: Any) -> list[Prediction]:
        predictor = Predictor(path, device="cpu", batch_size=5, runtime=self.runtime, **options)
        return predictor(IMAGES, top_k=top_k)

    @pytest.mark.parametrize("case", CASES)
    def test_the_answers_are_those_of_pytorch(self, case: str, model: Model) -> None:
        name, options = CASES[case]
        ours = self.predict(model(name), **options)
        theirs = Predictor(model(name), device="cpu", batch_size=5, runtime="torch", **options)(IMAGES)
        assert_same(ours, theirs)
        if "unsure" in case:
            assert len({each.unsure is None for each in theirs}) == 2, "both kinds of answers are compared"

    @pytest.mark.parametrize("name", ["conformer", "several", "folds", "resnet"])
    def test_logits_and_features(self, name: str, model: Model) -> None:
        plain = TrainedModel(model(name), device="cpu")
        converted = TrainedModel(model(name), device="cpu", choice=RuntimeChoice(self.runtime))
        converted.prepare(None, batch_size=5)
        batch = np.stack([plain.transform(image) for image in IMAGES])
        ours, theirs = converted.outputs(batch), plain.outputs(batch)
        assert list(ours.logits) == list(theirs.logits)
        for head, logits in theirs.logits.items():
            assert ours.logits[head].dtype == np.float32
            np.testing.assert_allclose(ours.logits[head], logits, rtol=1e-4, atol=1e-4)
        assert (ours.features is None) == (theirs.features is None) == (name == "folds")
        if ours.features is not None and theirs.features is not None:
            np.testing.assert_allclose(ours.features, theirs.features, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("precision", "most"), [("fp16", 0.01), ("int8", 0.15)])
    def test_a_lower_precision_is_near(
        self, precision: Any, most: float, model: Model, made: list[str]
    ) -> None:
        run = model("other")
        exact = self.predict(run, top_k=4)
        found = self.predict(run, precision=precision, top_k=4)
        assert made[-1] == f"best-{self.runtime}-{precision}-40x32"
        apart = [
            abs(dict(zip(one.labels, one.probabilities, strict=True))[label] - share)
            for one, other in zip(found, exact, strict=True)
            for label, share in zip(other.labels, other.probabilities, strict=True)
        ]
        assert 1e-6 < max(apart) < most

        def size(kind: str) -> int:
            files = run.glob(f"conversions/best-{self.runtime}-{kind}-*/*")
            return sum(file.stat().st_size for file in files)

        assert 0 < size(precision) < 0.7 * size("fp32")

    def test_evaluated_alike(self, model: Model) -> None:
        ours, theirs = (
            evaluate(model("conformer"), "digits", device="cpu", runtime=runtime, conformal=0.2)
            for runtime in (self.runtime, "torch")
        )
        assert isinstance(ours, Evaluation) and isinstance(theirs, Evaluation)
        assert ours.confusion == theirs.confusion
        for head, figures in theirs.heads.items():
            assert ours.heads[head].top1 == figures.top1
            assert ours.heads[head].log_loss.value == pytest.approx(figures.log_loss.value, rel=1e-4)
        assert ours.selective is not None and theirs.selective is not None
        assert ours.selective.answered == theirs.selective.answered
        assert ours.selective.sets == theirs.selective.sets

    def test_it_is_made_once_and_kept_beside_the_run(
        self, model: Model, made: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = model("fresh")
        first = self.predict(run)
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"runtime {self.runtime}: converting {run / 'best.safetensors'} once, checked and kept"
        second = self.predict(run)
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"runtime {self.runtime}: the conversion of {run / 'best.safetensors'} that is kept"
        assert_same(second, first)
        assert made == [f"best-{self.runtime}-fp32-40x32"], "a graph of this network has one size"
        (folder,) = (run / "conversions").iterdir()
        assert folder.name.startswith(f"best-{self.runtime}-fp32-40x32-")

    @pytest.mark.parametrize("damage", ["a byte", "half", "no manifest", "an empty folder", "a file"])
    def test_what_is_not_whole_is_made_again(self, damage: str, model: Model, made: list[str]) -> None:
        run = model("fresh")
        expected = self.predict(run)
        (folder,) = (run / "conversions").iterdir()
        weights = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 0x40
        if damage == "a byte":
            weights.write_bytes(content)
        elif damage == "half":
            weights.write_bytes(content[: len(content) // 2])
        elif damage == "no manifest":
            (folder / "conversion.json").unlink()
        else:
            for path in folder.iterdir():
                path.unlink()
            if damage == "a file":
                folder.rmdir()
                folder.write_bytes(b"")
        assert_same(self.predict(run), expected)
        assert len(made) == 2
        assert [path.name for path in (run / "conversions").iterdir()] == [folder.name]
        self.predict(run)
        assert len(made) == 2

    def test_other_weights_of_the_same_name(self, model: Model, made: list[str]) -> None:
        run = model("fresh")
        before = self.predict(run)
        (run / "best.safetensors").write_bytes(find_model(model("other")).path.read_bytes())
        after = self.predict(run)
        assert len(made) == 2
        assert_same(after, Predictor(model("other"), device="cpu", runtime="torch")(IMAGES))
        assert any(one.probabilities != two.probabilities for one, two in zip(before, after, strict=True))
        assert len(list((run / "conversions").iterdir())) == 1, "the old one is removed"

    def test_a_conversion_of_another_version(
        self, model: Model, made: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = model("fresh")
        expected = self.predict(run)
        monkeypatch.setattr(convert, "__version__", "0.0.1")
        assert_same(self.predict(run), expected)
        assert len(made) == 2

    def test_a_calibration_that_changes_needs_no_conversion(self, model: Model, made: list[str]) -> None:
        run = model("fresh")
        self.predict(run)
        (run / "best.safetensors").write_bytes(find_model(model("resnet")).path.read_bytes())
        theirs = Predictor(model("resnet"), device="cpu", runtime="torch")(IMAGES)
        assert_same(self.predict(run), theirs)
        assert any(each.unsure for each in theirs)
        assert len(made) == 1
