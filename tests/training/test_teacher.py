"""A teacher: its input, its classes, the loss against its answers, and images without labels."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from conformer_vision.data.unlabelled import open_unlabelled
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec, Preprocessing
from conformer_vision.tensors import evaluation_pipeline
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.groups import DistillationConfig
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.parts import prepare
from conformer_vision.training.run import resume
from conformer_vision.training.teacher import Distillation, Teacher, load_teacher
from option_tools import batch, killed_after, same, shows, untimed
from streamed import write_shards

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
CLASSES = ("blue", "green", "red")
SMALL = Preprocessing((3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_pct=1.0)


@pytest.fixture(scope="module")
def taught(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a teacher: another network at another size."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    return train(tiny(model="test_resnet", model_kwargs={}, input_size=48, output=str(run)))


class Linear(nn.Module):
    """Logits that are sums over the image's channels; they say what the teacher was given."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.mean((2, 3)) @ torch.eye(3)[: images.shape[1]]


def teacher(classes: tuple[str, ...] = CLASSES, **spec: Any) -> Teacher:
    spec = {"input_size": (3, 32, 32), "mean": SMALL.mean, "std": SMALL.std} | spec
    student = SMALL if len(spec["mean"]) != 4 else spec.pop("student")
    made = ModelSpec("resnet18", classes=classes, **spec)
    return Teacher(Linear(), made, student=student, classes=CLASSES, name="T")


# ---- its input and its classes ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 48), (32, 64)])
def test_the_teacher_sees_the_image_as_its_own_transform_shows_it(size: tuple[int, int]) -> None:
    """Smooth images of the student's size, against the transform of a teacher with other values."""
    own = Preprocessing((3, *size), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), crop_pct=1.0, crop_mode="squash")
    pixels = torch.linspace(40, 200, 32)[:, None, None].expand(32, 32, 3) * torch.tensor([1.0, 0.8, 0.5])
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    made = teacher(input_size=own.input_size, mean=own.mean, std=own.std)
    found = made.prepare(evaluation_pipeline(SMALL)(image)[None])[0]
    torch.testing.assert_close(found, evaluation_pipeline(own)(image), atol=0.02, rtol=0)


def test_grey_and_coloured_images_are_turned_into_each_other() -> None:
    grey = teacher(input_size=(1, 32, 32), mean=(0.4,), std=(0.2,))
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    wanted = evaluation_pipeline(grey.spec.preprocessing)(image)
    found = grey.prepare(evaluation_pipeline(SMALL)(image)[None])[0]
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)  # Pillow's luma is a whole number
    spec = ModelSpec("resnet18", classes=CLASSES, input_size=(3, 32, 32), mean=SMALL.mean, std=SMALL.std)
    small = Preprocessing((1, 32, 32), (0.4,), (0.2,), crop_pct=1.0)
    colour = Teacher(Linear(), spec, student=small, classes=CLASSES, name="T")
    found = colour.prepare(evaluation_pipeline(small)(image)[None])[0]
    shade = image.convert("L").convert("RGB")
    torch.testing.assert_close(found, evaluation_pipeline(SMALL)(shade), atol=1e-5, rtol=0)


def test_the_same_input_is_taken_as_it_is() -> None:
    images = torch.randn(2, 3, 32, 32)
    assert teacher().prepare(images) is images


def test_classes_are_matched_by_name() -> None:
    """A teacher may know more, in another order."""
    images = torch.randn(4, 3, 32, 32)
    own = images.mean((2, 3))  # the teacher's logits: red, green, blue
    torch.testing.assert_close(teacher(("red", "green", "blue"))(images), own[:, [2, 1, 0]])
    torch.testing.assert_close(teacher()(images), own)
    with pytest.raises(
        UserError, match="teacher T: the model does not know the class green; it knows blue, r"
    ):
        teacher(("blue", "red", "yellow"))


# ---- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "tau"), [("soft", 1.0), ("soft", 3.0), ("hard", 1.0)])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_loss_of_every_head(kind: Any, tau: float, alpha: float) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 3
    heads = torch.randn(6, 3), torch.randn(6, 3)
    config = DistillationConfig(
        teacher="T", distillation_type=kind, distillation_alpha=alpha, distillation_tau=tau
    )
    made = Distillation(teacher(), config, conv_share=0.25)
    labelled = torch.ones(6, dtype=torch.bool)
    found = made(images, heads, labels, labelled=labelled, label_loss=_mean_of_heads)
    answers = images.mean((2, 3))
    wanted = torch.zeros(())
    for share, logits in zip((0.25, 0.75), heads, strict=True):
        if kind == "hard":
            against = cross_entropy(logits, answers.argmax(1))
        else:
            p, q = (answers / tau).softmax(1), (logits / tau).softmax(1)
            against = tau**2 * (p * (p.log() - q.log())).sum(1).mean()
        wanted = wanted + share * against
    wanted = alpha * wanted + (1 - alpha) * sum(cross_entropy(logits, labels) for logits in heads) / 2
    torch.testing.assert_close(found, wanted)


class _MeanOfHeads(nn.Module):
    def forward(self, output: Any, target: Tensor) -> Tensor:
        return sum(cross_entropy(logits, target) for logits in output) / len(output)  # type: ignore[return-value]


_mean_of_heads = _MeanOfHeads()


@shows("teacher", "distillation_alpha", "distillation_tau", "distillation_type")
def test_a_step_with_a_teacher(tiny: Tiny, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher stays as it is, without gradients, and in no state of the module."""
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])

    def loss(**changes: Any) -> float:
        module = prepare(tiny(label_smoothing=0.0, **changes)).module.train()
        module.trainer = SimpleNamespace(global_step=0, world_size=1)  # type: ignore[assignment]
        made = module.distillation
        assert (made is None) == ("teacher" not in changes)
        if made is not None:
            assert not made.teacher.model.training
            before = {name: tensor.clone() for name, tensor in made.teacher.model.state_dict().items()}
        value = module.training_step(batch(images, labels), 0)
        value.backward()
        if made is not None:
            assert same(before, made.teacher.model.state_dict())
            assert all(p.grad is None for p in made.teacher.model.parameters())
            assert not any("teacher" in name or "distill" in name for name in module.state_dict())
        return float(value.detach())

    plain = loss()
    seen = {plain}
    for changes in (
        {},
        {"distillation_alpha": 0.9},
        {"distillation_tau": 4.0},
        {"distillation_type": "hard"},
    ):
        seen.add(loss(teacher=str(taught), **changes))
    assert len(seen) == 5
    assert loss(teacher=str(taught), distillation_alpha=1e-9) == pytest.approx(plain, rel=1e-5)


# ---- images without labels -------------------------------------------------------------------------


@shows("unlabelled")
def test_images_without_labels(
    tiny: Tiny, taught: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch shows them too; they are drawn like the others and are in no class."""
    folder = tmp_path / "more" / "below"
    folder.mkdir(parents=True)
    for number in range(30):
        shutil.copy(images / "red" / f"l{number % 12}.png", folder / f"{number}.png")
    config = tiny(teacher=str(taught), unlabelled=str(tmp_path / "more"), batch_size=9)
    loader = prepare(config).data.train_dataloader()
    assert "unlabelled: 30 images" in capsys.readouterr().out
    labels = torch.cat([drawn.labels for drawn in loader]).tolist()
    assert len(labels) == 63  # of 33 and 30
    assert labels.count(-100) == 30
    assert prepare(tiny()).data.train_dataloader().dataset.__len__() == 33  # type: ignore[attr-defined]


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_their_targets_are_the_teachers_answers_alone(
    tiny: Tiny, taught: Path, images: Path, mixup: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands for their label; images mixed with one of them count as unlabelled too."""
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    options = {"teacher": str(taught), "unlabelled": str(images / "red"), "mixup": mixup}
    module = prepare(tiny(**options, label_smoothing=0.0)).module.train()
    module.trainer = SimpleNamespace(global_step=0, world_size=1)  # type: ignore[assignment]
    drawn = torch.randn(8, 3, 32, 32)
    labels = torch.tensor([0, 1, 2, -100, -100, 0, 1, 2])
    made = module.distillation
    assert made is not None
    loss = module.training_step(batch(drawn.clone(), labels), 0).detach()
    assert module.inputs is not None
    seen = module.inputs.images
    with torch.no_grad():
        heads, answers = module.model(seen), made.teacher(seen).softmax(1)
    against = [(answers * (answers.log() - head.log_softmax(1))).sum(1).mean() for head in heads]
    wanted = 0.5 * (against[0] + against[1]) / 2
    counted = (labels >= 0) & (labels.flip(0) >= 0) if mixup else labels >= 0
    share = float((seen[0] - drawn[7]).norm() / (drawn[0] - drawn[7]).norm()) if mixup else 1.0
    soft = one_hot(labels.clamp(min=0), 3).float()
    soft = share * soft + (1 - share) * soft.flip(0)
    own = [cross_entropy(head[counted], soft[counted]) * counted.float().mean() for head in heads]
    torch.testing.assert_close(loss, wanted + 0.5 * (own[0] + own[1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_batch_without_any_label(tiny: Tiny, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClassifierModule, "log", lambda *_, **__: None)
    module = prepare(tiny(teacher=str(taught))).module.train()
    module.trainer = SimpleNamespace(global_step=0, world_size=1)  # type: ignore[assignment]
    loss = module.training_step(batch(torch.randn(4, 3, 32, 32), torch.full((4,), -100)), 0)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(p.grad is not None for p in module.model.parameters())


def test_resuming_with_everything_on(
    tiny: Tiny,
    taught: Path,
    images: Path,
    tmp_path: Path,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit, from a relative path in another folder, in bfloat16; the teacher is in no checkpoint."""
    options: dict[str, Any] = {
        "teacher": str(taught), "unlabelled": str(images / "red"), "epochs": 2, "max_steps": None,
        "mixup": 0.3, "class_weights": "balanced", "precision": "bf16-mixed", "save_minutes": 1e-9,
    }  # fmt: skip
    whole = train(tiny(**options, output=str(tmp_path / "whole")))
    monkeypatch.chdir(taught.parent)
    run = tmp_path / "run"
    killed_after(7, tiny(**options | {"teacher": "run"}, output=str(run)), monkeypatch)
    monkeypatch.chdir(tmp_path)
    resume(run)
    assert same(weights(run), weights(whole))
    assert untimed(run) == untimed(whole)
    state = torch.load(run / "last.ckpt", weights_only=True)
    assert not any("teacher" in name for name in state["state_dict"])


# ---- what does not fit -----------------------------------------------------------------------------


def test_a_teacher_that_does_not_fit(tiny: Tiny, taught: Path, tmp_path: Path, images: Path) -> None:
    other = tmp_path / "other"
    train(tiny(data="digits", model="test_resnet", model_kwargs={}, max_steps=1, output=str(other)))
    with pytest.raises(UserError, match=f"teacher {other}: the model does not know the class blue, green, r"):
        prepare(tiny(teacher=str(other)))
    for itself in (str(taught), str(taught / "best.safetensors"), str(taught.parent / "." / "run")):
        with pytest.raises(UserError, match=r"is the run itself; give another run"):
            prepare(tiny(teacher=itself, output=str(taught)))
    with pytest.raises(UserError, match=r"teacher: .*nothing"):
        prepare(tiny(teacher=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="only 1 and 3 can be turned into each other"):
        four = Preprocessing((4, 32, 32), (0.5,) * 4, (0.5,) * 4)
        Teacher(Linear(), ModelSpec("resnet18", classes=CLASSES), student=four, classes=CLASSES, name="T")


def test_a_name_whose_weights_are_not_at_hand(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = ModelSpec("resnet18", classes=CLASSES)
    with pytest.raises(UserError, match="teacher resnet18: the published weights of resnet18 cannot be down"):
        load_teacher("resnet18", student=spec)
    with pytest.raises(UserError, match="teacher: conformer_nano_patch4_32 has no published weights"):
        load_teacher("conformer_nano_patch4_32", student=spec)


def test_unlabelled_images_that_do_not_fit(tiny: Tiny, taught: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=f"unlabelled {empty} holds no images of a format that is read"):
        open_unlabelled(empty)
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_unlabelled(tmp_path / "nowhere")
    shards = write_shards(tmp_path, [12, 12])
    with pytest.raises(UserError, match="is a stream"):
        open_unlabelled(shards)
    options: dict[str, Any] = {"teacher": str(taught), "unlabelled": str(tmp_path)}
    with pytest.raises(UserError, match="sampling balanced is for labelled images; leave it or unlabelled"):
        prepare(tiny(**options, sampling="balanced"))
    with pytest.raises(UserError, match="unlabelled cannot be used with the stream"):
        prepare(tiny(**options, data=shards, epoch_images=8))
    assert len(open_unlabelled("digits")) == 1797, "labels are ignored"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unlabelled": "photos"}, "unlabelled has no effect without teacher; set teacher too"),
        ({"distillation_alpha": 0.1}, "distillation_alpha has no effect without teacher; remove it"),
        ({"distillation_tau": 2.0}, "distillation_tau has no effect without teacher"),
        ({"distillation_type": "hard"}, "distillation_type has no effect without teacher"),
        (
            {"teacher": "T", "distillation_alpha": 0.0},
            "distillation_alpha 0.0: must be above 0 and at most 1",
        ),
        ({"teacher": "T", "distillation_alpha": 1.1}, "distillation_alpha 1.1: must be above 0"),
        ({"teacher": "T", "distillation_tau": 0.0}, "distillation_tau 0.0: must be a number above 0"),
        ({"teacher": "T", "distillation_tau": float("nan")}, "distillation_tau nan: must be"),
        (
            {"teacher": "T", "distillation_type": "hard", "distillation_tau": 2.0},
            "distillation_tau has no effect on distillation_type hard; leave it out",
        ),
        ({"teacher": "T", "distillation_type": "warm"}, "warm"),
    ],
    ids=str,
)
def test_values_that_do_not_fit(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(**options)
