"""What rejecting brings: figures by plain loops and scikit-learn, images of other things, sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc, roc_auc_score, roc_curve

from conformer_vision.cli import main
from conformer_vision.errors import UserError
from conformer_vision.inference import Predictor, evaluate
from conformer_vision.inference.selective import area, false_positives, risk_coverage
from rejecting import calibrated, noise


@pytest.fixture(scope="module")
def weights(conformer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return calibrated(conformer_run, tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images of noise in folders of three of the classes."""
    root = tmp_path_factory.mktemp("labelled")
    for number, image in enumerate(noise(30, seed=7)):
        folder = root / ("ant", "bee", "cat")[number % 3]
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat images, and one that cannot be read."""
    root = tmp_path_factory.mktemp("other")
    (root / "deep").mkdir()
    for number in range(8):
        Image.new("RGB", (40, 40), (number, 2 * number, 0)).save(root / "deep" / f"{number}.png")
    (root / "broken.png").write_bytes(b"no image")
    return root


def test_risk_and_coverage_by_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    scores, right = rng.permutation(50).astype(float), rng.random(50) < 0.7
    found = risk_coverage(scores, right)
    order = sorted(range(50), key=lambda row: -scores[row])
    for count in range(1, 51):
        errors = sum(not right[row] for row in order[:count])
        assert found[count - 1] == pytest.approx(errors / count)


@pytest.mark.parametrize("decimals", [9, 1], ids=["distinct", "ties"])
def test_auroc_and_fpr95_are_those_of_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(1)
    known, unknown = rng.normal(1, 1, 300).round(decimals), rng.normal(0, 1, 400).round(decimals)
    truth, scores = np.r_[np.ones(300), np.zeros(400)], np.r_[known, unknown]
    figure = area(known, unknown)
    assert figure.value == pytest.approx(roc_auc_score(truth, scores))
    assert figure.low is not None and figure.high is not None and figure.value is not None
    drawn = []
    for _ in range(400):
        one, two = rng.choice(known, 300), rng.choice(unknown, 400)
        drawn.append(roc_auc_score(truth, np.r_[one, two]))
    assert (figure.low, figure.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.01)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert auc(false, true) == pytest.approx(figure.value)
    rate = false_positives(known, unknown).value
    assert rate == pytest.approx(false[true >= 0.95].min())


def test_an_evaluation_with_all_of_it(weights: Path, labelled: Path, other: Path) -> None:
    found = evaluate(
        weights, str(labelled), split="all", device="cpu", coverage=0.7, conformal=0.3, ood=str(other)
    )
    selective = found.selective
    assert selective is not None and selective.unknown is not None and selective.sets is not None
    predictor = Predictor(weights, device="cpu", coverage=0.7, conformal=0.3)
    answers = predictor(labelled)
    truths = [Path(answer.name).parent.name for answer in answers]
    right = np.array([answer.labels[0] == truth for answer, truth in zip(answers, truths, strict=True)])
    sure = np.array([answer.unsure is None for answer in answers])
    assert (selective.coverage, selective.answered.value) == (0.7, pytest.approx(sure.mean()))
    assert selective.accuracy.value == pytest.approx(right[sure].mean())
    assert selective.accuracy_unsure.value == pytest.approx(right[~sure].mean())
    assert dict(selective.curve)[1.0] == pytest.approx(right.mean())
    members = [answer.conformal_set or () for answer in answers]
    lacking = np.mean([truth not in member for truth, member in zip(truths, members, strict=True)])
    assert selective.sets.errors.value == pytest.approx(lacking)
    assert selective.sets.size == pytest.approx(np.mean([len(member) for member in members]))
    unsure = [answer.unsure is not None for answer in predictor(other) if answer.error is None]
    assert selective.unknown.images == 8 == len(unsure)
    assert selective.unknown.unsure.value == pytest.approx(np.mean(unsure))
    assert len(selective.unknown.broken) == 1 and "broken.png" in selective.unknown.broken[0]
    json.loads(found.to_json())["selective"]["unknown"]["auroc"]["value"]


def test_images_that_are_no_other_things(
    weights: Path, conformer_run: Path, labelled: Path, tmp_path: Path
) -> None:
    def message(ood: object, model: Path = weights) -> str:
        with pytest.raises(UserError) as error:
            evaluate(model, str(labelled), split="all", device="cpu", ood=str(ood))
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "holds the model's own classes (ant, bee, cat); leave them out" in message(labelled)
    assert "has no thresholds" in message(tmp_path, conformer_run)
    assert "holds no images" in message(tmp_path)
    assert "nowhere" in message(tmp_path / "nowhere")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "none of its images can be read" in message(tmp_path)
    assert evaluate(conformer_run, str(labelled), split="all", device="cpu").selective is None


def test_the_command(
    weights: Path, labelled: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "risk.png"
    options = ["--split=all", "--device=cpu", f"--ood={other}", "--conformal=0.3", "--tta=flip"]
    assert main(["evaluate", str(weights), f"--data={labelled}", *options]) == 2, "no sets over views"
    assert "holds for a single look" in capsys.readouterr().err
    command = ["evaluate", str(weights), f"--data={labelled}", *options[:-1], f"--risk_coverage={picture}"]
    assert main(command) == 1, "one image cannot be read"
    shown = capsys.readouterr()
    for text in (
        "sure at a coverage of 95%",
        "AURC",
        "lack the true class",
        "8 images of other things",
        "FPR95",
    ):
        assert text in shown.out
    assert max(map(len, shown.out.splitlines())) <= 110
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 300
    assert main(["evaluate", str(weights), f"--data={labelled}", *options[:2], "--tta=flip", "--json"]) == 0
    views = capsys.readouterr()
    assert json.loads(views.out)["selective"]["sets"] is None
    assert "test-time augmentation: 2 forward passes per image" in views.err
