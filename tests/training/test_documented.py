"""Every flag of train, as the documentation writes it, arrives in the configuration."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import run
from conformer_vision.commands import train
from conformer_vision.training import TrainConfig
from conformer_vision.training import run as training_run
from conformer_vision.training.config import AUGMENT_OPTIONS, OPTIONS
from conformer_vision.training.recipe import find_recipe, recipes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
Configured = Callable[..., TrainConfig]


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Configured:
    """The configuration that the command would train."""
    seen: list[TrainConfig] = []
    monkeypatch.setattr(training_run, "train", lambda config: (seen.append(config), Path("run"))[1])
    monkeypatch.setattr(train, "_finish", lambda folder: None)

    def call(*arguments: str) -> TrainConfig:
        done = run("train", *arguments)
        assert (done.status, done.err) == (0, ""), arguments
        return seen[-1]

    return call


GIVEN: dict[str, tuple[str, Any]] = {
    "data": ("photos", "photos"),
    "data_dir": ("sets", "sets"),
    "folds": ("5", 5),
    "group": (r"(p\d+)_", r"(p\d+)_"),
    "label_column": ("tags", "tags"),
    "label_separator": ("|", "|"),
    "exclude": ("list.csv", "list.csv"),
    "sampling": ("balanced", "balanced"),
    "teacher": ("runs/x", "runs/x"),
    "unlabelled": ("more", "more"),
    "epoch_images": ("100", 100),
    "batch_size": ("auto", "auto"),
    "model": ("resnet18", "resnet18"),
    "pretrained": ("false", False),
    "checkpoint": ("FILE", "FILE"),
    "model_kwargs": ('{"depths": [2, 1, 2]}', {"depths": [2, 1, 2]}),
    "freeze_branch": ("conv", "conv"),
    "input_size": ("[48,64]", (48, 64)),
    "in_chans": ("1", 1),
    "crop_pct": ("0.9", 0.9),
    "drop_path_rate": ("0.1", 0.1),
    "conv_drop_path_rate": ("0.1", 0.1),
    "lr": ("2e-4", 2e-4),
    "layer_decay": ("0.8", 0.8),
    "clip_grad": ("1", 1.0),
    "label_smoothing": ("0.2", 0.2),
    "ema_decay": ("0.99", 0.99),
    "max_steps": ("7", 7),
    "max_minutes": ("2.5", 2.5),
    "patience": ("3", 3),
    "progressive_from": ("32", 32),
    "loggers": ("tensorboard", "tensorboard"),
    "grad_checkpointing": ("off", "off"),
    "devices": ("2", 2),
    "output": ("runs/x", "runs/x"),
    "progress": ("plain", "plain"),
}
"""A value as it is written, and as it arrives; other options are given their default."""


def test_every_flag_arrives(configured: Configured) -> None:
    """All of them in one command; those that need another are given it by their own values."""
    defaults = TrainConfig.from_options(data="digits").to_options()
    given = dict(GIVEN)
    for name in OPTIONS:
        default = defaults[name]
        default = not default if isinstance(default, bool) else default
        given.setdefault(name, (str(default).lower(), default))
    del given["augment"]
    config = configured(*(word for name, (text, _) in given.items() for word in (f"--{name}", text)))
    found = config.to_options()
    assert {name: found[name] for name in given} == {name: value for name, (_, value) in given.items()}


def test_several_loggers(configured: Configured, tmp_path: Path) -> None:
    for value in ("[tensorboard,wandb]", "[tensorboard, wandb]"):
        assert configured("--data=photos", "--loggers", value).output.logger_names == ["tensorboard", "wandb"]
    recipe = tmp_path / "recipe.yaml"
    for text in ("loggers: tensorboard", "loggers: [tensorboard]"):
        recipe.write_text(text)
        assert configured(f"--recipe={recipe}", "--data=photos").output.logger_names == ["tensorboard"]
    assert configured("--data=photos").output.logger_names == []
    assert "loggers neptune: must be one of tensorboard, wandb, mlflow" in run(
        "train", "--data=photos", "--loggers=neptune"
    ).err.replace("'", "")


NEEDS = {
    "--auto_resume": "--output=runs/x",
    "--reset_head": "--checkpoint=FILE",
    "--distillation_type": "--teacher=runs/x",
    "--fold": "--folds=5",
    "--class_weights": "--seed=1",  # not beside --sampling
}


def written_flags() -> list[str]:
    """Flags with their values in the running text of the pages: `--batch_size auto`."""
    found = set()
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for code in re.findall(r"`(--[a-z][^`]*)`", text):
            name, _, value = code.removeprefix("--").partition(" ")
            known = name in OPTIONS or name.startswith(("model_kwargs.", "augment."))
            if known and value and not re.search(r"\b[A-Z]", value):  # such as FILE
                found.add(code)
    return sorted(found)


def test_there_are_flags_in_the_text() -> None:
    assert "--loggers tensorboard" in written_flags()


def test_flags_in_the_text_are_accepted(configured: Configured) -> None:
    """As many in one command as do not repeat a flag, but for those that need or exclude another one."""
    rest = written_flags()
    for code in [code for code in rest if code.split()[0] in NEEDS]:
        configured("--data=photos", *shlex.split(code), NEEDS[code.split()[0]])
        rest.remove(code)
    while rest:
        names: dict[str, str] = {}
        for code in rest:
            names.setdefault(code.split()[0], code)
        rest = [code for code in rest if code not in names.values()]
        configured("--data=photos", *(word for code in names.values() for word in shlex.split(code)))


@pytest.mark.parametrize("name", recipes())
def test_commands_in_recipes_are_accepted(configured: Configured, name: str) -> None:
    """And flags that they mention exist."""
    text = "\n".join(
        line.removeprefix("#").strip()
        for line in find_recipe(name).read_text().splitlines()
        if line[:1] == "#"
    )
    joined = text.replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if "conformer-vision train" in line or "-m conf" in line]
    assert lines
    for line in lines:
        if "`" not in line:
            configured(*shlex.split(line.partition(" train ")[2]))
    flags = re.findall(r"--([a-z][\w.]*)", text.replace("--nproc_per_node", ""))
    assert {flag.removeprefix("augment.") for flag in flags} <= {"recipe", *OPTIONS, *AUGMENT_OPTIONS}


# ---- the recipe of a command without one ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        (["--data=photos"], "finetune"),
        (["--data", "photos", "--output", "runs/x"], "finetune"),
        (["--data=photos", "--checkpoint=FILE"], "finetune"),
        (["--data=photos", "--pretrained=true"], "finetune"),
        (["--pretrained", "--data=photos"], "finetune"),
        (["--data=digits"], "quick"),
        (["--data", "digits", "--epochs=3"], "quick"),
        (["--data=photos", "--pretrained=false"], None),
        (["--pretrained", "False", "--data=photos"], None),
        (["--data=photos", "--model=conformer_nano_patch8_64"], None),
        (["--help"], None),
        (["--data=photos", "--recipe=imagenet"], "imagenet"),
    ],
)
def test_the_default_recipe(arguments: list[str], recipe: str | None) -> None:
    """Fine-tuning, unless a model is named or training from scratch is asked for; quick for digits."""
    moved = train.with_recipe_first(["train", *arguments])
    found = [word.removeprefix("--recipe=") for word in moved if word.startswith("--recipe=")]
    assert found == ([] if recipe is None else [recipe])
