"""Accuracies against an independent count."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss
from torchvision.datasets import ImageFolder

from conformer_vision.data import Splitting, open_images
from conformer_vision.errors import UserError
from conformer_vision.inference import Evaluation, evaluate
from conformer_vision.inference.metrics import METRICS
from conformer_vision.runs import mark_config
from conformer_vision.spec import ModelSpec
from conformer_vision.tensors import evaluation_transform
from conformer_vision.weights import Calibrated, load_model, save_calibration, save_model
from image_sets import opened

Probabilities = Callable[[Path, Image.Image], dict[str, torch.Tensor]]


def write_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            coarse = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((40, 32), Image.Resampling.BILINEAR).save(
                folder / name / f"{i}.png"
            )
    return folder


def images_of(evaluation: Evaluation) -> dict[str, int]:
    return {name: sum(row.values()) for name, row in evaluation.confusion.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five of the model's seven classes, in another order than the model's, with a val folder."""
    root = tmp_path_factory.mktemp("images")
    counts = {"犬 ünï": 5, "fox": 7, "bee": 3, "ant": 6, "dog": 4}
    write_images(root / "val", counts)
    write_images(root / "train", counts, seed=1)
    return root


@pytest.fixture(scope="module")
def evaluation(conformer_run: Path, images: Path) -> Evaluation:
    return evaluate(conformer_run, images, device="cpu", batch_size=8)


def test_against_scikit_learn(
    conformer_run: Path, images: Path, evaluation: Evaluation, probabilities: Probabilities
) -> None:
    classes = load_model(conformer_run)[1].classes
    labels, outputs = [], []
    for path in sorted((images / "val").rglob("*.png")):
        labels.append(classes.index(path.parent.name))
        outputs.append(probabilities(conformer_run, Image.open(path).convert("RGB")))
    everything = range(len(classes))
    assert evaluation.samples == len(labels) == 25
    assert evaluation.classes == classes
    assert list(evaluation.heads) == ["conv", "trans", "fused"]
    for name, figures in evaluation.heads.items():
        scores = np.stack([output[name].double().numpy() for output in outputs])
        scores /= scores.sum(axis=1, keepdims=True)
        assert figures.top1.value == pytest.approx(accuracy_score(labels, scores.argmax(axis=1)))
        assert figures.top5.value is None, "of seven classes"
        assert figures.log_loss.value == pytest.approx(log_loss(labels, scores, labels=everything), rel=1e-4)
    counts = confusion_matrix(labels, scores.argmax(axis=1), labels=everything)
    dense = [[evaluation.confusion.get(true, {}).get(name, 0) for name in classes] for true in classes]
    assert np.array_equal(dense, counts)
    assert all(count for row in evaluation.confusion.values() for count in row.values())
    for i, (name, own) in enumerate(evaluation.heads["fused"].classes.items()):
        total = counts[i].sum()
        assert name == classes[i] and (own is None) == (total == 0)
        assert own is None or own.recall.value == pytest.approx(counts[i, i] / total)
    assert evaluation.heads["fused"].classes["cat"] is None
    assert len({(h.top1.value, h.log_loss.value) for h in evaluation.heads.values()}) == 3  # the heads differ
    read = json.loads(evaluation.to_json())
    assert read["confusion"] == evaluation.confusion and "answers" not in read
    top1 = evaluation.heads["conv"].top1
    assert read["heads"]["conv"]["top1"] == {"value": top1.value, "low": top1.low, "high": top1.high}
    assert read["heads"]["conv"]["classes"]["cat"] is None
    assert read["images_per_second"] == pytest.approx(25 / read["seconds"])


def test_batches_and_workers_change_nothing(
    conformer_run: Path, images: Path, evaluation: Evaluation
) -> None:
    again = evaluate(conformer_run, images, device="cpu", batch_size=25, workers=1)
    assert again.confusion == evaluation.confusion
    for head, figures in again.heads.items():
        assert figures.log_loss.value == pytest.approx(evaluation.heads[head].log_loss.value, rel=1e-5)


def test_splits_of_a_network_with_one_head_and_few_classes(resnet_run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val", {"ant": 2, "bee": 3})
    write_images(tmp_path / "train", {"ant": 4, "bee": 1})
    result = evaluate(resnet_run, tmp_path, device="cpu")
    assert images_of(result) == {"ant": 2, "bee": 3}
    assert list(result.heads) == ["fused"] and result.heads["fused"].top5.value is None
    train = evaluate(resnet_run, tmp_path, device="cpu", split="train")
    assert images_of(train) == {"ant": 4, "bee": 1}
    assert evaluate(resnet_run, tmp_path, device="cpu", split="all").samples == 10


def test_images_held_out_in_training_are_the_ones_evaluated(
    resnet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source without a split of its own is split as the run's config says."""
    data = write_images(tmp_path / "data", {"ant": 20, "bee": 20})
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.safetensors").write_bytes((resnet_run / "best.safetensors").read_bytes())
    assert evaluate(run, data, device="cpu").samples == len(opened(data, "val"))
    (run / "config.yaml").write_text("val_fraction: 0.3\nseed: 5\n")
    asked = []

    def recorded(data: object, split: Any, splitting: Splitting, **options: Any) -> object:
        asked.append((splitting, options["data_dir"]))
        return open_images(data, split, splitting, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("conformer_vision.inference.labelled.open_images", recorded)
    assert evaluate(run, data, device="cpu").samples == len(opened(data, "val", val_fraction=0.3, seed=5))
    evaluate(run / "best.safetensors", data, device="cpu")
    evaluate(run, data, device="cpu", splitting=Splitting(0.2, 7))
    assert asked == [(Splitting(0.3, 5), None), (Splitting(0.3, 5), None), (Splitting(0.2, 7), None)]
    (run / "top").mkdir()
    (run / "best.safetensors").rename(run / "top" / "epoch-0003.safetensors")
    (run / "config.yaml").write_text(mark_config("val_fraction: 0.3\nseed: 5\n"))
    evaluate(run / "top" / "epoch-0003.safetensors", data, device="cpu")
    assert asked.pop() == (Splitting(0.3, 5), None)
    (run / "top" / "epoch-0003.safetensors").rename(run / "best.safetensors")
    (run / "config.yaml").write_text("folds: 4\nfold: 2\ndata_dir: somewhere\nexclude: not-applied.txt\n")
    assert evaluate(run, data, device="cpu").samples == len(opened(data, "val", folds=4, fold=2))
    evaluate(run, data, device="cpu", splitting=Splitting(folds=5, fold=1), data_dir="elsewhere")
    assert asked[3:] == [
        (Splitting(folds=4, fold=2), "somewhere"),
        (Splitting(folds=5, fold=1), "elsewhere"),
    ]
    (run / "config.yaml").write_text("seed: seven\n")
    with pytest.raises(UserError, match=r"config\.yaml: seed 'seven' is invalid"):
        evaluate(run, data, device="cpu")
    (run / "config.yaml").write_text("[1")
    with pytest.raises(UserError, match=r"config\.yaml"):
        evaluate(run, data, device="cpu")


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named_and_left_out(resnet_run: Path, tmp_path: Path, workers: int) -> None:
    write_images(tmp_path / "whole" / "val", {"ant": 2, "bee": 3})
    write_images(tmp_path / "torn" / "val", {"ant": 2, "bee": 3})
    for root in (tmp_path / "whole" / "val", tmp_path / "torn" / "val"):
        (root / "bee" / "1.png").unlink()
    (tmp_path / "torn" / "val" / "bee" / "1.png").write_bytes(b"\x89PNG broken")
    result = evaluate(resnet_run, tmp_path / "torn", device="cpu", workers=workers, batch_size=2)
    assert result.samples == 4
    (line,) = result.broken
    assert str(Path("bee", "1.png")) in line and "\n" not in line
    whole = evaluate(resnet_run, tmp_path / "whole", device="cpu", batch_size=2)
    assert whole.broken == []
    assert result.confusion == whole.confusion
    for metric in METRICS:
        of_torn, of_whole = (each.heads["fused"].of(metric) for each in (result, whole))
        assert of_torn.value == pytest.approx(of_whole.value, rel=1e-5), metric.name
    assert json.loads(result.to_json())["broken"] == [line]


def test_a_dataset_of_python(resnet_run: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "val", {"ant": 3, "bee": 2})
    by_folder = evaluate(resnet_run, tmp_path, device="cpu")
    assert evaluate(resnet_run, ImageFolder(data), split="all", device="cpu").confusion == by_folder.confusion


def test_no_image_can_be_read(resnet_run: Path, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"none of the 2 images can be read; the first: .*ant.1\.png"):
        evaluate(resnet_run, tmp_path, device="cpu")


def test_excluded_images_are_left_out(resnet_run: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "val", {"ant": 2, "bee": 3})
    (tmp_path / "list.csv").write_text(f"image,reason\n{tmp_path / 'data' / 'val' / 'bee' / '1.png'},\n")
    result = evaluate(resnet_run, tmp_path / "data", device="cpu", exclude=tmp_path / "list.csv")
    assert images_of(result) == {"ant": 2, "bee": 2}
    with pytest.raises(UserError, match=r"gone\.csv"):
        evaluate(resnet_run, tmp_path / "data", device="cpu", exclude=tmp_path / "gone.csv")


def test_temperature_changes_the_probabilities_of_the_prediction_alone(
    conformer_run: Path, images: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    scaled = tmp_path / "scaled.safetensors"
    scaled.write_bytes((conformer_run / "best.safetensors").read_bytes())
    save_calibration(scaled, Calibrated(4.0))
    result = evaluate(scaled, images, device="cpu", batch_size=8)
    assert result.confusion == evaluation.confusion
    assert result.heads["fused"].auroc.value != evaluation.heads["fused"].auroc.value, "classes are softer"
    for head in ("conv", "trans"):
        assert result.heads[head] == evaluation.heads[head]

    model, spec = load_model(conformer_run)
    transform, logits, labels = evaluation_transform(spec), [], []
    for path in sorted((images / "val").rglob("*.png")):
        with torch.inference_mode():
            logits.append(model(transform(Image.open(path).convert("RGB"))[None])[0])
        labels.append(spec.classes.index(path.parent.name))
    for evaluated, temperature in ((evaluation, 1.0), (result, 4.0)):
        p = (torch.stack(logits) / temperature).softmax(dim=1).numpy()
        fused = evaluated.heads["fused"]
        assert fused.log_loss.value == pytest.approx(
            log_loss(labels, p, labels=range(len(spec.classes))), rel=1e-4
        )
        assert fused.ece.value == pytest.approx(by_hand(p, np.array(labels)), abs=1e-4)
    assert result.heads["fused"].ece != evaluation.heads["fused"].ece


def by_hand(p: np.ndarray, labels: np.ndarray) -> float:
    """The expected calibration error over 15 bins."""
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    places = np.minimum((confidence * 15).astype(int), 14)
    return sum(abs((confidence - right)[places == i].sum()) for i in range(15)) / len(labels)


def test_bad_arguments(resnet_run: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", {"ant": 2, "whale": 2})
    with pytest.raises(UserError, match="whale"):
        evaluate(resnet_run, data, device="cpu", splitting=Splitting(0.5))
    known = write_images(tmp_path / "known", {"ant": 2, "bee": 2})
    with pytest.raises(UserError, match="batch_size 0"):
        evaluate(resnet_run, known, batch_size=0, device="cpu")
    with pytest.raises(UserError, match="workers -1"):
        evaluate(resnet_run, known, workers=-1, device="cpu")
    with pytest.raises(UserError, match="nowhere"):
        evaluate(resnet_run, tmp_path / "nowhere", device="cpu")
    with pytest.raises(UserError, match="does not exist"):
        evaluate(tmp_path / "no-run", data, device="cpu")


def test_output_that_is_not_finite(resnet_run: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", {"ant": 2, "bee": 2})
    model, spec = load_model(resnet_run)
    torch.nn.init.constant_(model.fc.bias, float("inf"))
    save_model(model, spec, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="not finite"):
        evaluate(tmp_path / "m.safetensors", data, device="cpu", splitting=Splitting(0.5))


def test_memory_grows_with_the_classes_and_not_with_their_square(tmp_path: Path) -> None:
    """Counts of 30,000 classes in rows and columns would take 7 GB."""
    names = tuple(f"class {i}" for i in range(30_000))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=len(names))
    save_model(model, ModelSpec("test_resnet", {}, names, (3, 32, 32)), tmp_path / "many.safetensors")
    data = write_images(tmp_path / "data", {"class 2": 2, "class 29999": 3})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = evaluate(tmp_path / "many.safetensors", data, split="all", device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
    assert images_of(result) == {"class 2": 2, "class 29999": 3}
    assert len(result.to_json()) < 3_000_000
