"""The page of a run: complete in itself, right in its numbers, and whole whatever the classes are called."""

import base64
import io
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conformer_vision.data import BrokenImageError
from conformer_vision.data.stream import ImageStream, StreamedImage
from conformer_vision.errors import UserError
from conformer_vision.inference import Predictor, evaluate, probe
from conformer_vision.inference.labelled import LabelledImages
from conformer_vision.inference.metrics import CLASS_METRICS, METRICS
from conformer_vision.report import Findings, build, examine, write_report
from conformer_vision.report.formats import title_case
from conformer_vision.report.images import EDGE
from conformer_vision.report.page import HEADS
from conformer_vision.thresholds import Thresholds
from conformer_vision.weights import Calibrated, load_model, save_calibration, save_model
from image_sets import opened
from pages import Page

from .conftest import CONFORMER, MakeRun, write_images

HOSTILE = ('<img src=x onerror="alert(1)">', "犬 $x$ & co", "<script>alert(1)</script>", "'\"}{{ 7*7 }}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"red": 25, "green": 20, "blue": 15, "grey": 1}
    return write_images(tmp_path_factory.mktemp("report") / "images", counts)


@pytest.fixture(scope="module")
def run(make_run: MakeRun, images: Path) -> Path:
    folder = make_run(
        CONFORMER, ("blue", "green", "grey", "red", "never"), images, seed=3, ema_decay=0.99, batch_size=32
    )
    (folder / "last.safetensors").write_bytes((folder / "best.safetensors").read_bytes())
    return folder


@pytest.fixture(scope="module")
def findings(run: Path) -> Findings:
    return write_report(run, device="cpu", batch_size=16)


@pytest.fixture(scope="module")
def page(findings: Findings) -> Page:
    return Page(findings.path)


def test_page_is_complete_in_itself(page: Page, run: Path) -> None:
    page.check_complete()
    assert page.tags["svg"] == 6
    assert not [path for path in run.iterdir() if path.name.startswith(".")]
    assert "prefers-color-scheme: dark" in page.source
    assert len(page.source.encode()) < 1_000_000


def test_questions_are_answered_in_order(page: Page, findings: Findings) -> None:
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page.source)
    assert titles == [
        "What came out",
        "Worst errors",
        "Confusion",
        "Figures per class",
        "The two branches",
        "Calibration and unsure answers",
        "Data",
        "Run and reproduction",
    ]
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    links = [link for link in page.values("href") if link[1:] in sections]
    assert links[: len(sections)] == [f"#{name}" for name in sections], "as the page lists them"
    assert re.search(rf"<title>my run: report of {findings.date}, \S+/images</title>", page.source)


def test_images_enlarge_by_keyboard_and_without_a_script(page: Page, findings: Findings) -> None:
    cards = [attributes for tag, attributes in page.elements if tag == "article"]
    buttons = [attributes for tag, attributes in page.elements if tag == "button"]
    assert all("popover" in card for card in cards)
    assert [button["popovertarget"] for button in buttons] == [card["id"] for card in cards]
    assert findings.study is not None
    examples = [row for case in findings.study.cases.values() for row in case.rows]
    assert len(cards) == len(findings.worst) + len(findings.samples) + len(examples)
    assert page.tags["img"] == 3 * len(cards), "each with the heat maps of both branches beside it"


def test_unsure_answers_are_marked(page: Page, findings: Findings, run: Path) -> None:
    """As the threshold has it: so many of the validation images are below, each compared with the others."""
    fitted = findings.thresholds
    assert fitted.thresholds is not None and fitted.scores is not None and findings.selective is not None
    threshold = fitted.thresholds.reject[0].threshold(0.95)
    unsure = np.flatnonzero(fitted.scores < threshold).tolist()
    assert 0 < len(unsure) <= 0.05 * 62
    assert {row for row in findings.unsure if row in findings.images} == set(unsure) & set(findings.images)
    assert page.values("class").count("unsure") == sum(
        row in unsure
        for rows in (
            findings.worst,
            findings.samples,
            *(case.rows for case in findings.study.cases.values() if findings.study),
        )
        for row in rows
    )
    right = (findings.outcome.logits.argmax(dim=1) == findings.outcome.labels).double()
    sure = [row for row in range(61) if row not in unsure]
    assert findings.selective.accuracy.value == pytest.approx(float(right[sure].mean()))
    assert f"sure {100 * len(sure) / 61:.1f} % {100 * right[sure].mean():.1f} %" in page.text


def test_images_that_thresholds_were_not_fitted_to_are_judged_as_predict_does(
    make_run: MakeRun, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conformer_vision.inference.fit.MOST_IMAGES", 30)
    monkeypatch.setattr("conformer_vision.inference.unsure.MIN_IMAGES", 20)
    monkeypatch.setattr("conformer_vision.inference.fit.Thresholds", partial(Thresholds, coverage=0.5))
    folder = make_run(CONFORMER, ("blue", "green", "grey", "red"), images)
    findings = write_report(folder, device="cpu")
    others = [row for row in findings.images if row % 3]  # every third one was taken
    predictor = Predictor(folder, device="cpu")
    unsure = {row: predictor([findings.images[row].name])[0].unsure for row in others}
    assert any(unsure.values()) and not all(unsure.values())
    assert {row: findings.unsure.get(row) for row in others} == unsure
    assert findings.selective is not None and len(findings.selective.risks) == 21


def test_data_of_the_run(page: Page, findings: Findings) -> None:
    assert findings.class_sizes == {
        "Training": {"blue": 1, "green": 1, "grey": 1, "red": 1, "never": 0},
        "Validation": {"blue": 15, "green": 20, "grey": 1, "red": 25, "never": 0},
    }
    assert "Training: 4 images" in page.text and "red 25 green 20 blue 15 grey 1 never 0" in page.text
    labels = [findings.evaluation.classes[label] for label in findings.outcome.labels[findings.samples]]
    assert Counter(labels) == {"blue": 3, "green": 3, "grey": 1, "red": 3}


def test_numbers_are_those_of_evaluate(page: Page, run: Path, images: Path, tmp_path: Path) -> None:
    """At temperature 1, that of the weights as trained."""
    shutil.copy(run / "best.safetensors", tmp_path)
    save_calibration(tmp_path / "best.safetensors", Calibrated(1.0))
    result = evaluate(tmp_path / "best.safetensors", images, device="cpu")
    for metric in METRICS:
        if metric.name == "top5":
            continue
        shown = [metric.text(result.heads[head].of(metric), none="–") for head in HEADS]
        title = title_case(metric.title) + ", %" * metric.percent
        assert f"{title} {' '.join(shown)}" in page.text
        assert metric.name in ("kappa", "brier", "log_loss") or " [" in shown[0], "with its interval"
    top1 = result.heads["fused"].top1
    assert f"Top-1 {100 * top1.value:.1f} % [{100 * top1.low:.1f}, {100 * top1.high:.1f}]" in page.text
    assert "op-5" not in page.text, "of five classes"
    red = result.heads["fused"].classes["red"]
    figures = " ".join(metric.text(red.of(metric)) for metric in CLASS_METRICS[:3])
    rival, count = max(
        ((name, n) for name, n in result.confusion["red"].items() if name != "red"), key=lambda pair: pair[1]
    )
    assert f"red often taken for {rival} ({count}) 25 {figures}" in page.text
    assert "61 validation images" in page.text
    assert "never 0 – – –" in page.text
    body = page.source.partition('aria-label="Confusion matrix"')[2].partition("</table>")[0]
    matrix = [int(count or 0) for count in re.findall(r"<td[^>]*>(\d*)</td>", body.partition("<tbody>")[2])]
    expected = result.confusion
    assert matrix == [
        expected.get(true, {}).get(name, 0) for true in result.classes for name in result.classes
    ]


def test_facts_of_the_run(page: Page, run: Path) -> None:
    assert "moving average over the steps (decay 0.99)" in page.text
    parameters = sum(p.numel() for p in load_model(run)[0].parameters())
    for fact in (
        f"Parameters {parameters:,}",
        "Seed 3",
        "3 epochs, 30 steps of 32 images in 0:03:03",
        "101 images per second (median over epochs, without validation; 25.0 % of the time spent waiting",
        "Peak memory 640 MB",
        "; 20 MB for each of the 32 images of a batch",
        f"torch {torch.__version__}",
    ):
        assert fact in page.text
    (command,) = re.findall(r"conformer-vision train .*?(?=\n|</code>)", page.source)[:1]
    words = shlex.split(command.replace("&#39;", "'"))
    assert words[:2] == ["conformer-vision", "train"]
    assert Path(words[words.index("--recipe") + 1]) == run / "config.yaml"
    assert words[words.index("--output") + 1] != str(run)


def test_images_are_those_that_the_words_say(page: Page, run: Path, findings: Findings) -> None:
    assert findings.study is not None
    predictor = Predictor(run, device="cpu")
    row = findings.worst[0]
    shown = findings.images[row]
    (answer,) = predictor([shown.name])
    true = findings.evaluation.classes[int(findings.outcome.labels[row])]
    assert Path(shown.name).parent.name == true != answer.labels[0]
    assert f"{answer.labels[0]} {100 * answer.probabilities[0]:.1f} %" in page.text
    assert shown.data is not None and shown.data in page.source
    kind, data = shown.data.split(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        with Image.open(shown.name) as original:
            small = original.convert("RGB")
            small.thumbnail((EDGE, EDGE))
        assert image.size == small.size == (120, 90)
        difference = [abs(a - b) for a, b in zip(image.tobytes(), small.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 8
    for name, case in findings.study.cases.items():
        for row in case.rows:
            (answer,) = predictor([findings.images[row].name])
            true = Path(answer.name).parent.name
            assert answer.conv is not None and answer.trans is not None
            right = [answer.conv.label == true, answer.trans.label == true]
            assert right == [name in ("both", "conv"), name in ("both", "trans")]


def test_temperature_is_stored_and_the_weights_stay(
    make_run: MakeRun, run: Path, images: Path, findings: Findings
) -> None:
    temperature = findings.calibration.temperature
    assert temperature != 1.0
    for name in ("best.safetensors", "last.safetensors"):  # last holds the same weights
        spec = load_model(run / name)[1]
        assert spec.temperature == pytest.approx(temperature)
        assert spec.thresholds == findings.thresholds.thresholds
    if findings.thresholds.thresholds is None:
        assert "validation images are too few" in (findings.thresholds.note or "")
    fresh = make_run(CONFORMER, findings.evaluation.classes, images)
    other = load_file(fresh / "best.safetensors")
    assert other.keys() == load_file(run / "best.safetensors").keys()
    assert all(torch.equal(t, other[n]) for n, t in load_file(run / "best.safetensors").items())
    predictor = Predictor(run, device="cpu")
    scaled, unscaled = evaluate(run, images, device="cpu"), findings.evaluation
    assert scaled.heads["fused"].log_loss.value < unscaled.heads["fused"].log_loss.value
    again = examine(run, data=None, device="cpu", batch_size=16, workers=0).evaluation
    assert again.heads == unscaled.heads, "the report's own figures are not those of the stored temperature"
    assert predictor.classes == findings.evaluation.classes


def test_other_last_weights_keep_their_own_temperature(make_run: MakeRun, images: Path) -> None:
    folder = make_run(CONFORMER, ("blue", "green", "grey", "red"), images)
    model, spec = load_model(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_model(model, spec, folder / "last.safetensors")
    write_report(folder, device="cpu")
    assert load_model(folder / "best.safetensors")[1].temperature != 1.0
    assert load_model(folder / "last.safetensors")[1].temperature == 1.0


def test_hostile_names_and_ten_images(make_run: MakeRun, tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", {HOSTILE[0]: 6, HOSTILE[1]: 4})
    with suppress(OSError):  # not every file system takes a name that is not UTF-8
        (images / "val" / HOSTILE[1] / "0.png").rename(images / "val" / HOSTILE[1] / "\udce9.png")
    classes = opened(images, split="val").classes
    folder = make_run(CONFORMER, (*classes, *HOSTILE[2:]), images)
    page = Page(write_report(folder, device="cpu").path)
    page.check_complete()
    for name in HOSTILE:
        assert name in page.text
    assert "7*7" in page.text and " 49 " not in page.text
    assert "10 images are too few to fit a temperature" in page.text
    assert load_model(folder)[1].temperature == 1.0


def test_one_head_and_two_classes(make_run: MakeRun, tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", {"cat": 6, "dog": 6})
    folder = make_run("test_resnet", ("cat", "dog"), images, epochs=1)
    page = Page(write_report(folder, device="cpu").path)
    page.check_complete()
    assert "branch" not in page.text.replace("freeze_branch", "").lower()
    assert "branches" not in page.values("id")
    assert "Top-5" not in page.text


def test_a_thousand_classes(make_run: MakeRun, tmp_path: Path) -> None:
    names = [f"class number {i}" for i in range(1000)]
    images = write_images(tmp_path / "p", dict.fromkeys(names[:90], 1))
    folder = make_run("test_resnet", names, images, epochs=500)
    page = Page(write_report(folder, device="cpu").path)
    page.check_complete()
    assert "Shown are the 40 most confused of 1,000 classes" in page.text
    assert page.text.count("class number 999 0 – – –") == 1
    assert page.tags["img"] == 2 * (build.WORST + build.SAMPLES)  # each with a heat map, of the one head
    assert "Shown are the 10 most confused of 1,000 classes" in page.text, "on a narrow page"
    hidden = Counter(page.values("class"))
    shown = sum(tag == "tr" for tag, _ in page.elements)
    assert hidden["over-10 over-20"] > hidden["over-10"] > 0 and shown > 40
    assert len(page.source.encode()) < 1_000_000


def test_logits_of_some_images_where_all_would_not_fit(
    make_run: MakeRun, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy is that of all images; what needs their logits is drawn evenly."""
    monkeypatch.setattr("conformer_vision.inference.answers.MOST_KEPT", 3 * 4 * 25)
    folder = make_run(CONFORMER, ("blue", "green", "grey", "red"), images)
    findings = write_report(folder, device="cpu", batch_size=7)
    assert findings.evaluation.samples == 61
    assert findings.outcome.indices.tolist() == list(range(0, 61, 3))
    page = Page(findings.path)
    page.check_complete()
    assert "calibration, AUROC and average precision are those of 21 of the 61 images" in page.text
    monkeypatch.setattr(LabelledImages, "open", lambda *_: Stream(None))
    folder = make_run(CONFORMER, Stream.classes, "wds/none")
    monkeypatch.setattr("conformer_vision.inference.answers.MOST_KEPT", 3 * 2 * 4)
    assert write_report(folder, device="cpu", batch_size=3).outcome.order.tolist() == [0, 1, 2, 4]


def test_broken_images_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", {"cat": 5, "dog": 5})
    (images / "val" / "dog" / "3.png").write_bytes(b"\x89PNG broken")
    folder = make_run(CONFORMER, ("cat", "dog"), images, ema_decay=0.9)
    line = f"{images / 'train' / 'cat' / '0.png'}: too short"
    (folder / "broken_images.txt").write_text(f"{line}\n")
    page = Page(write_report(folder, device="cpu").path)
    page.check_complete()
    assert "1 validation image is broken and left out" in page.text
    assert str(images / "val" / "dog" / "3.png") in page.text
    assert f"Images that could not be read in training: {line}" in page.text
    notes = [name for name in page.values("class") if name.startswith("note")]
    assert notes.count("note warning") == 1, "the broken image; that weights are averaged is no warning"
    assert len(notes) > 1
    assert "9 validation images" in page.text


def test_run_without_metrics_and_best_weights(make_run: MakeRun, tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", {"cat": 5, "dog": 5})
    folder = make_run(CONFORMER, ("cat", "dog"), tmp_path / "moved", exclude=str(tmp_path / "list.csv"))
    (folder / "metrics.csv").unlink()
    (folder / "best.safetensors").rename(folder / "last.safetensors")
    with pytest.raises(UserError, match="moved does not exist"):
        write_report(folder, device="cpu")
    assert not (folder / "report.html").exists()
    page = Page(write_report(folder, data=str(images), device="cpu").path)
    page.check_complete()
    assert "The run folder has no metrics.csv" in page.text
    assert "so last.safetensors is evaluated" in page.text
    assert "list.csv is gone, so all images are evaluated" in page.text
    assert f"--data {images}" in page.text
    (tmp_path / "list.csv").write_text(f"image,reason\n{images / 'val' / 'cat' / '0.png'},\n")
    assert write_report(folder, data=str(images), device="cpu").evaluation.samples == 9


def test_split_is_the_one_of_the_run(make_run: MakeRun) -> None:
    folder = make_run("test_resnet", [str(i) for i in range(10)], "digits", folds=4, fold=1, seed=7)
    findings = write_report(folder, device="cpu")
    val = opened("digits", split="val", folds=4, fold=1, seed=7)
    assert findings.outcome.labels.tolist() == list(val.labels)
    worst = findings.worst[0]
    assert findings.images[worst].name == val.name(int(findings.outcome.indices[worst]))


class Stream(ImageStream):
    """Coloured images one after the other, the fourth broken."""

    classes = ("cat", "dog")

    def __init__(self, length: int | None = 7) -> None:
        self.length = length

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        for i in range(start, 7):
            image: Image.Image | BrokenImageError = Image.new("RGB", (32, 32), (30 * i, 255 - 30 * i, 99))
            if i == 3:
                image = BrokenImageError("shard 0, image 3: cannot be read")
            yield StreamedImage(f"shard 0, image {i}", image, i % 2)


def test_images_of_a_stream(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(CONFORMER, Stream.classes, "wds/none")
    monkeypatch.setattr(LabelledImages, "open", lambda *_: Stream())
    findings = write_report(folder, device="cpu", batch_size=2)
    assert findings.broken == ["shard 0, image 3: cannot be read"]
    assert findings.outcome.labels.tolist() == [0, 1, 0, 0, 1, 0]
    for row, shown in findings.images.items():
        place = [0, 1, 2, 4, 5, 6][row]
        assert shown.name == f"image {place + 1} of the stream"
        assert shown.data is not None
        with Image.open(io.BytesIO(base64.b64decode(shown.data.split(",")[1]))) as image:
            assert image.size == (32, 32)
            expected = (30 * place, 255 - 30 * place, 99)
            assert all(abs(a - b) <= 1 for a, b in zip(image.getpixel((5, 5)), expected, strict=True))
    Page(findings.path).check_complete()


def test_mistakes(make_run: MakeRun, tmp_path: Path) -> None:
    images = write_images(tmp_path / "p", {"cat": 2, "dog": 2})
    folder = make_run("test_resnet", ("cat", "dog"), images)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: write_report(tmp_path / "none"), "none has no config.yaml"),
        (lambda: write_report(tmp_path), "has no config.yaml"),
        (lambda: write_report(folder, device="cpu", batch_size=0), "batch_size 0"),
    ]
    for act, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value)
    (folder / "metrics.csv").write_text("epoch,lr\n1,high\n")
    with pytest.raises(UserError, match=r"metrics\.csv is not a table of numbers"):
        write_report(folder, device="cpu")


def test_what_fine_tuning_had_to_beat(make_run: MakeRun, tmp_path: Path) -> None:
    """Nearest neighbours and a linear probe on the initial weights, where there were some."""
    root = tmp_path / "images"
    write_images(root, {"cat": 6, "dog": 6})
    begun = make_run(CONFORMER, ["some", "other", "classes"], root)
    weights = tmp_path / "start.safetensors"
    weights.write_bytes((begun / "best.safetensors").read_bytes())
    tuned = make_run(CONFORMER, ["cat", "dog"], root, checkpoint=str(weights), reset_head=True)
    found = write_report(tuned)
    wanted = probe(weights, root)
    assert found.probe == wanted
    text = found.path.read_text(encoding="utf-8")
    assert "Before fine-tuning" in text
    for title, score in zip(("Pooled feature map", "Class token", "Both"), wanted.scores, strict=True):
        cells = f'<th scope="row">{title}</th><td>{score.knn:.1%}</td><td>{score.linear:.1%}</td>'
        assert cells in text.replace(" %", "%"), title
    weights.unlink()
    gone = write_report(tuned)
    assert gone.probe is None
    assert "The features of the initial weights were not probed: " in gone.path.read_text(encoding="utf-8")
    scratch = write_report(make_run(CONFORMER, ["cat", "dog"], root, pretrained=False))
    assert scratch.probe is None
    assert not any("probed" in note for note in scratch.notes)
