"""Training on several labels per image: losses, targets, scores and whole runs."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.loss
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from conformer_vision import ClassifierModule, evaluate, probe
from conformer_vision.data import ImageSource
from conformer_vision.data.base import NOT_COUNTED
from conformer_vision.data.handover import Batch
from conformer_vision.errors import UserError
from conformer_vision.inference.label_errors import find_label_errors
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.class_weights import class_weights
from conformer_vision.training.losses import AsymmetricLoss, BinaryCrossEntropy
from conformer_vision.training.lr_find import find_lr
from conformer_vision.training.parts import prepare
from conformer_vision.training.run import resume
from conformer_vision.training.task import SeveralLabels
from conformer_vision.weights import load
from option_tools import killed_after, rows_of, same, shows, untimed
from several_labels import Squares

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
CLASSES = len(Squares.classes)


def given(n: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets (n, 4)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, CLASSES, generator=generator) * 2
    return logits, (torch.rand(n, CLASSES, generator=generator) < 0.4).float()


# ---- losses ----------------------------------------------------------------------------------------


@shows("loss")
def test_binary_cross_entropy_is_torchs() -> None:
    logits, target = given()
    torch.testing.assert_close(BinaryCrossEntropy()(logits, target), nn.BCEWithLogitsLoss()(logits, target))
    weight = torch.tensor([1.0, 2.0, 3.0, 0.5])
    torch.testing.assert_close(
        BinaryCrossEntropy(pos_weight=weight)(logits, target),
        nn.BCEWithLogitsLoss(pos_weight=weight)(logits, target),
    )
    smoothed = torch.where(target > 0, 0.9, 0.1)
    torch.testing.assert_close(
        BinaryCrossEntropy(label_smoothing=0.2)(logits, target), nn.BCEWithLogitsLoss()(logits, smoothed)
    )
    half = BinaryCrossEntropy()(logits.half() * 1000, target)
    assert half.dtype == torch.float32 and half.isfinite()


def test_images_that_are_not_counted_are_in_no_loss() -> None:
    logits, target = given()
    target[[1, 4]] = NOT_COUNTED
    counted = [0, 2, 3, 5]
    torch.testing.assert_close(
        BinaryCrossEntropy()(logits, target), nn.BCEWithLogitsLoss()(logits[counted], target[counted])
    )


@pytest.mark.parametrize("gammas", [(4.0, 1.0), (2.0, 0.0), (0.0, 0.0)])
def test_the_asymmetric_loss_is_timms(gammas: tuple[float, float]) -> None:
    logits, target = given(40)
    neg, pos = gammas
    ours = AsymmetricLoss(gamma_neg=neg, gamma_pos=pos)
    theirs = timm.loss.AsymmetricLossMultiLabel(gamma_neg=neg, gamma_pos=pos)
    # Some versions of timm sum it over the batch, others take the mean.
    scale = theirs(torch.zeros(1, CLASSES), torch.ones(1, CLASSES)) / theirs(
        torch.zeros(2, CLASSES), torch.ones(2, CLASSES)
    )
    wanted = theirs(logits, target) / (logits.numel() if scale < 1 else CLASSES)
    torch.testing.assert_close(ours(logits, target), wanted)
    if gammas == (0.0, 0.0):
        plain = AsymmetricLoss(gamma_neg=0, gamma_pos=0, margin=0)
        torch.testing.assert_close(plain(logits, target), nn.BCEWithLogitsLoss()(logits, target))


def test_the_asymmetric_loss_has_gradients_where_the_network_is_sure_and_wrong() -> None:
    logits = torch.tensor([[-40.0, 40.0, -40.0, 40.0]], requires_grad=True)
    loss = AsymmetricLoss()(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    loss.backward()
    assert loss.isfinite() and logits.grad is not None
    assert logits.grad[0, 0] == pytest.approx(-0.25), "a class that is missed"
    assert logits.grad.isfinite().all() and (logits.grad[0, 2:] == 0).all()
    half = AsymmetricLoss()(logits.detach().half(), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    torch.testing.assert_close(half, loss.detach())


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_mixed_as_the_images_are(mixup: float, cutmix: float) -> None:
    """Every image has one value, so that its share in a mixed one is known."""
    options = TrainConfig.from_options(data="digits", mixup=mixup, cutmix=cutmix).regularization
    mix = SeveralLabels().mixup(SeveralLabels().decide(options), CLASSES)
    np.random.seed(0)
    target = given(4)[1]
    for _ in range(10):
        images = torch.eye(4)[:, :, None, None].expand(-1, -1, 12, 12).clone()  # channel i for image i
        mixed, soft = mix(images, target)
        shares = mixed.mean(dim=(2, 3))
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(soft, shares @ target)


# ---- options ---------------------------------------------------------------------------------------


def prepared(tiny: Tiny, **changes: Any) -> Any:
    return prepare(tiny(**{"data": Squares(), "label_smoothing": None} | changes))


def test_what_is_left_open_follows_the_labels(tiny: Tiny) -> None:
    module = prepared(tiny).module
    assert isinstance(module.train_loss.criterion, BinaryCrossEntropy)
    assert module.train_loss.criterion.label_smoothing == 0
    assert isinstance(prepared(tiny, loss="asl").module.train_loss.criterion, AsymmetricLoss)
    smooth = prepared(tiny, label_smoothing=0.1, conv_loss_share=0.3).module
    assert smooth.train_loss.criterion.label_smoothing == 0.1
    one = prepare(tiny()).module
    assert isinstance(one.train_loss.criterion, nn.CrossEntropyLoss)
    assert one.train_loss.criterion.label_smoothing == 0.1
    images, target = torch.randn(4, 3, 32, 32), given(4)[1]
    branches = smooth.model.train()(images)
    losses = [binary_cross_entropy_with_logits(each, target * 0.9 + 0.05) for each in branches]
    torch.testing.assert_close(smooth.train_loss(branches, target), 0.3 * losses[0] + 0.7 * losses[1])


@pytest.mark.parametrize(
    ("several", "options", "words"),
    [
        (True, {"loss": "ce"}, ["loss='ce'", "images with several labels", "bce or asl"]),
        (False, {"loss": "bce"}, ["loss='bce'", "images with one label each", "give ce"]),
        (False, {"loss": "asl"}, ["loss='asl'", "images with one label each"]),
        (True, {"loss": "asl", "mixup": 0.2}, ["loss='asl'", "mixup", "bce"]),
        (True, {"loss": "asl", "label_smoothing": 0.1}, ["loss='asl'", "label_smoothing"]),
        (True, {"loss": "asl", "class_weights": "balanced"}, ["loss='asl'", "class_weights"]),
        (True, {"sampling": "balanced"}, ["sampling", "balanced"]),
        (True, {"loss": "focal"}, ["loss", "focal", "'ce'", "'asl'"]),
    ],
    ids=str,
)
def test_options_that_do_not_suit_the_labels_are_one_line(
    tiny: Tiny, several: bool, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        prepare(tiny(**({"data": Squares()} if several else {}) | options))
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words)


class Numbers(ImageSource):
    """Labels alone."""

    def image(self, index: int, need: Any = None) -> Any:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError


def test_weights_are_those_of_the_images_with_the_class(tmp_path: Path) -> None:
    source = Numbers(("a", "b", "c", "d"), [(0,), (0, 1), (0,), (0, 1, 2), (0,)], multilabel=True)
    found = class_weights("balanced", source)
    assert found is not None and found.tolist() == [1, 1.5, 4, 1], "of all images, and of none, as it is"
    file = tmp_path / "weights.csv"
    file.write_text("class,weight\na,2\nb,3\nc,4\nd,0.5\n")
    given = class_weights(str(file), source)
    assert given is not None and given.tolist() == [2, 3, 4, 0.5]


# ---- scores ----------------------------------------------------------------------------------------


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr(
        ClassifierModule, "log", lambda self, name, value, **options: found.update({name: float(value)})
    )
    return found


def validated(module: ClassifierModule, images: Tensor, target: Tensor, numbers: Tensor) -> dict[str, Tensor]:
    """The logits of a validation in three batches."""
    module.eval()
    with torch.no_grad():
        for part in (slice(0, 5), slice(5, 6), slice(6, len(images))):
            module.validation_step(Batch(images[part], target[part], numbers[part], []), 0)
        module.on_validation_epoch_end()
        branches = module.model.forward_branches(images)  # type: ignore[operator]
        return {**branches._asdict(), "fused": module.model(images)}


def test_validation_gives_mean_average_precision(tiny: Tiny, logged: dict[str, Any]) -> None:
    module = prepared(tiny).module
    images, target = torch.randn(20, 3, 32, 32), given(20)[1]
    target[5], target[7], target[:, 3] = NOT_COUNTED, NOT_COUNTED, torch.where(target[:, 3] < -1, -100.0, 0.0)
    target[[5, 7]] = NOT_COUNTED  # one alone in its batch; the last class has no image
    counted = target[:, 0] != NOT_COUNTED
    for _ in range(2):  # each validation begins anew
        logits = validated(module, images, target, torch.arange(20))
    assert logged.keys() == {"val_loss", "val_map_conv", "val_map_trans", "val_map_fused"}
    truth = target[counted].numpy()
    for head, own in logits.items():
        each = [average_precision_score(truth[:, k], own[counted][:, k]) for k in range(3)]
        assert logged[f"val_map_{head}"] == pytest.approx(np.mean(each), abs=1e-6)
    assert module.val_summary is not None
    figure = module.val_summary.figures["map_fused"]
    assert figure.low < figure.value < figure.high
    found = module.val_summary.classes
    assert [own["images"] for own in found] == truth.sum(axis=0).tolist()
    assert found[3]["average_precision"]["value"] is None and found[0]["average_precision"]["value"] == (
        pytest.approx(average_precision_score(truth[:, 0], logits["fused"][counted][:, 0]))
    )
    losses = [
        binary_cross_entropy(own[counted].sigmoid(), target[counted])
        for own in (logits["conv"], logits["trans"])
    ]
    assert logged["val_loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)  # type: ignore[arg-type]


def test_intervals_by_groups_draw_groups(tiny: Tiny, logged: dict[str, Any]) -> None:
    """Twenty copies of five images tell no more than the five."""
    network = prepared(tiny).module.model
    images, target = torch.randn(5, 3, 32, 32).repeat(20, 1, 1, 1), given(5)[1].repeat(20, 1)
    groups = [str(number % 5) for number in range(100)]
    widths = []
    for each in (None, groups):
        module = ClassifierModule(network, num_classes=CLASSES, multilabel=True, val_groups=each)
        validated(module, images, target, torch.arange(100))
        assert module.val_summary is not None
        figure = module.val_summary.figures["map_fused"]
        widths.append(figure.high - figure.low)
    assert widths[1] > 2 * widths[0]


def test_no_image_to_validate_on(tiny: Tiny, logged: dict[str, Any]) -> None:
    module = prepared(tiny).module
    target = torch.full((8, CLASSES), float(NOT_COUNTED))
    validated(module, torch.randn(8, 3, 32, 32), target, torch.arange(8))
    assert math.isnan(logged["val_map_fused"])


# ---- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    output = tmp_path_factory.mktemp("several") / "run"
    options = {"max_steps": None, "epochs": 2, "lr": 2e-3, "ema_decay": 0.5}
    return train(tiny(data=Squares(96), output=str(output), **options))


def test_a_run_and_its_files(run: Path) -> None:
    spec = load(run).spec
    assert spec.multilabel and spec.classes == Squares.classes
    rows = rows_of(run)
    assert all({f"val_map_{head}", f"val_map_{head}_low"} <= rows[0].keys() for head in ("conv", "fused"))
    assert "val_top1_fused" not in rows[0]
    results = json.loads((run / "results.json").read_text())
    best = max(rows, key=lambda row: (row["val_map_fused"], -row["val_loss"]))
    assert results["best"]["epoch"] == best["epoch"]
    assert results["best"]["map"]["fused"]["value"] == pytest.approx(best["val_map_fused"], rel=1e-5)
    weakest = results["best"]["weakest_class"]
    by_class = {k: v["average_precision"]["value"] for k, v in results["best"]["classes"].items()}
    assert by_class[weakest] == min(value for value in by_class.values() if value is not None)
    config = (run / "config.yaml").read_text()
    assert "loss: bce" in config and "label_smoothing: 0.0" in config


def test_training_and_evaluate_agree(run: Path) -> None:
    found = evaluate(run, Squares(96), batch_size=16)
    results = json.loads((run / "results.json").read_text())
    for head, own in results["best"]["map"].items():
        assert found.heads[head].map.value == pytest.approx(own["value"], abs=1e-5), head


def test_the_lines_of_a_run(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(data=Squares(), output=str(tmp_path / "run")))
    lines = capsys.readouterr().out.splitlines()
    assert any("mAP " in line and "(conv " in line and line.startswith("epoch 1/") for line in lines)
    assert any(line.startswith("best: mAP ") for line in lines)
    assert any(line.startswith("weakest class: ") and " have it" in line for line in lines)
    assert not any("top-1" in line for line in lines)


def test_a_killed_run_ends_with_the_same_weights(
    tiny: Tiny, tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": Squares(), "epochs": 2, "max_steps": 6, "mixup": 0.4, "save_minutes": 1e-9}
    whole = train(tiny(**options, output=str(tmp_path / "whole")))
    killed_after(5, tiny(**options, output=str(tmp_path / "killed")), monkeypatch)
    killed = resume(tmp_path / "killed", data=Squares())
    assert same(weights(whole), weights(killed)) and untimed(whole) == untimed(killed)


@pytest.mark.parametrize("loss", ["bce", "asl"])
def test_it_learns(tiny: Tiny, loss: str) -> None:
    """To name the colours of images that it has not seen."""
    parts = prepared(tiny, data=Squares(160, seed=1), loss=loss, batch_size=16, lr=4e-3)
    module, optimizer = parts.module.train(), parts.module.optimizer(parts.module.model)
    module.log = lambda *args, **kwargs: None
    for _ in range(4):
        for batch in parts.data.train_dataloader():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
    held_out = next(iter(parts.data.val_dataloader()))
    with torch.no_grad():
        p = module.eval()(held_out.images).sigmoid()
    assert average_precision_score(held_out.labels, p) > 0.8


def test_patience_follows_mean_average_precision(tiny: Tiny, tmp_path: Path) -> None:
    options = {"max_steps": None, "epochs": 6, "patience": 1, "lr": 1e-12, "min_lr": 0}
    folder = train(tiny(data=Squares(), output=str(tmp_path / "run"), **options))
    *rising, last = [row["val_map_fused"] for row in rows_of(folder)]
    assert rising == sorted(set(rising)) and last <= rising[-1] and len(rising) < 5


def test_lr_find(tiny: Tiny) -> None:
    options = {"max_steps": None, "warmup_epochs": 0}
    assert 1e-6 < find_lr(tiny(data=Squares(), **options), steps=20).suggestion < 1


# ---- folds -----------------------------------------------------------------------------------------


def test_folds_are_one_model_with_thresholds_of_its_own(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tiny(data=Squares(60), folds=2, fold="all", output=str(tmp_path / "run")))
    assert "mAP, %" in capsys.readouterr().out
    spec = load(folder).spec
    assert spec.members == 2 and spec.multilabel and spec.thresholds is not None
    results = json.loads((folder / "results.json").read_text())
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "out_of_fold.parquet").to_pydict()
    assert len(table["image"]) == 60
    named = [set(truth.split("|")) - {""} for truth in table["truth"]]
    truth = np.array([[name in each for name in Squares.classes] for each in named])
    p = np.stack([table[f"fused:{name}"] for name in Squares.classes], axis=1)
    pooled = results["out_of_fold"]["fused"]
    assert pooled["map"]["value"] == pytest.approx(average_precision_score(truth, p), abs=1e-5)
    said = [set(answer.split("|")) - {""} for answer in table["answer"]]
    assert table["correct"] == [one == other for one, other in zip(named, said, strict=True)]
    hits = sum(len(one & other) for one, other in zip(named, said, strict=True))
    assert pooled["overall_recall"]["value"] == pytest.approx(hits / sum(map(len, named)))
    with pytest.raises(UserError, match="label errors are found among single labels"):
        find_label_errors(folder)


def test_a_probe_is_for_one_label_per_image(run: Path) -> None:
    with pytest.raises(UserError, match="a probe is for data with one label per image"):
        probe(run, Squares())  # type: ignore[arg-type]


# ---- teachers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_teachers_answers_are_targets(tiny: Tiny, run: Path, kind: str) -> None:
    options = {"teacher": str(run), "distillation_type": kind, "distillation_alpha": 0.25}
    options |= {} if kind == "hard" else {"distillation_tau": 2.0}
    module = prepared(tiny, **options).module.train()
    images, target = torch.randn(4, 3, 32, 32), given(4)[1]
    target[1] = NOT_COUNTED  # an image without labels
    module.log = lambda *args, **kwargs: None
    torch.manual_seed(0)
    loss = module.training_step(Batch(images, target, torch.arange(4), []), 0)
    torch.manual_seed(0)
    heads = module.model(images)
    answers = module.distillation.teacher(images)
    of_teacher = [
        binary_cross_entropy_with_logits(own, (answers > 0).float())
        if kind == "hard"
        else 4 * binary_cross_entropy_with_logits(own / 2, (answers / 2).sigmoid())
        for own in heads
    ]
    known = [0, 2, 3]
    of_labels = [binary_cross_entropy_with_logits(own[known], target[known]) for own in heads]
    wanted = 0.25 * sum(of_teacher) / 2 + 0.75 * 0.75 * sum(of_labels) / 2
    torch.testing.assert_close(loss, wanted)


def test_a_teacher_of_the_other_kind(tiny: Tiny, run: Path, tmp_path: Path) -> None:
    """Also of the same classes."""

    class OneEach(Squares):
        def __init__(self) -> None:
            super().__init__()
            self.targets = [index % CLASSES for index in range(len(self.targets))]  # type: ignore[misc]

    with pytest.raises(UserError, match="answers with several labels per image and the data has one label"):
        prepare(tiny(data=OneEach(), teacher=str(run)))
    other = train(tiny(data=OneEach(), output=str(tmp_path / "one")))
    with pytest.raises(UserError, match="answers with one label per image and the data has several labels"):
        prepare(tiny(data=Squares(), teacher=str(other)))


def test_unlabelled_images_are_trained_on(tiny: Tiny, run: Path, images: Path, tmp_path: Path) -> None:
    options = {"teacher": str(run), "unlabelled": str(images), "mixup": 0.2, "max_steps": 3}
    folder = train(tiny(data=Squares(), output=str(tmp_path / "run"), **options))
    with (folder / "metrics.csv").open() as file:
        assert all(math.isfinite(float(row["train_loss"])) for row in csv.DictReader(file))
