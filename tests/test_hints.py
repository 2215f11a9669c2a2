"""What the command line answers to those who know other programs, and to slips."""

from pathlib import Path

import pytest

from command_line import one_line, run
from conformer_vision import hints
from conformer_vision.cli import SUBCOMMANDS, build_parsers
from conformer_vision.errors import UserError, command_line_words, option, words
from conformer_vision.training import TrainConfig

OPTIONS = {
    "train": {
        "learning-rate": "lr",
        "lr0": "lr",
        "LR": "lr",
        "batch": "batch_size",
        "batch-sise": "batch_size",
        "epoch": "epochs",
        "num_epochs": "epochs",
        "imgsz": "input_size",
        "image-size": "input_size",
        "num_workers": "workers",
        "j": "workers",
        "e": "epochs",
        "gpus": "devices",
        "gpu": "device",
        "arch": "model",
        "weights": "checkpoint",
        "output-dir": "output",
        "amp": "precision",
        "wd": "weight_decay",
        "val-split": "val_fraction",
        "early_stopping": "patience",
        "gradient-accumulation-steps": "accumulate",
        "hflip": "augment.hflip",
        "augment.hflp": "augment.hflip",
        "config": "recipe",
        "dataset": "data",
    },
    "lr-find": {"num_iter": "steps", "dataset": "data"},
    "predict": {"topk": "top_k", "weights": "model", "batch": "batch_size", "imgsz": "input_size"},
    "evaluate": {"dataset": "data", "subset": "split", "bs": "batch_size"},
    "export": {"to": "format", "half": "precision", "out": "output"},
    "benchmark": {"batch_size": "batch", "num-threads": "threads"},
}
"""Options of other programs -> ours, by subcommand."""


@pytest.mark.parametrize("command", OPTIONS)
def test_options_of_other_programs(command: str) -> None:
    for given, meant in OPTIONS[command].items():
        places = [] if command in ("train", "lr-find") else ["x"]
        line = one_line(run(command, *places, f"--{given}", "1"))
        shown = f"--{given.replace('-', '_')}"
        assert f"unknown option {shown}; did you mean --{meant}?" in line, line


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["check", "--data", "photos"], "give its value alone: conformer-vision check DATA"),
        (["evaluate", "--model", "run"], "give its value alone: conformer-vision evaluate MODEL"),
        (["evaluate", "--weights", "run"], "give its value alone: conformer-vision evaluate MODEL"),
        (["report", "--run", "run"], "give its value alone: conformer-vision report RUN"),
        (["predict", "--source", "x"], "alone: conformer-vision predict [MODEL] IMAGE_OR_FOLDER"),
        (["train", "photos"], "unexpected argument 'photos'; did you mean --data photos?"),
        (["train", "--epochs", "3", "my photos"], "did you mean --data 'my photos'?"),
        (["train", "--data", "a.jpg", "b.jpg"], "argument 'b.jpg'; see conformer-vision train --help"),
        (["lr-find", "photos"], "did you mean --data photos?"),
        (["evaluate", "run", "photos"], "did you mean --data photos?"),
        (["export", "run", "onnx"], "did you mean --format onnx?"),
        (["export", "run", "--format", "onnx", "int8"], "did you mean --precision int8?"),
        (["train", "--data", "x", "--no-report"], "unknown option --no_report; did you mean --report false?"),
        (["train", "--data", "x", "--zzz"], "unknown option --zzz; see conformer-vision train --help"),
        (["train", "--data", "x", "--lr"], "--lr needs a value"),
        (["benchmark", "run", "--batch"], "--batch needs a value"),
        (["benchmark", "run", "--batch", "8", "x"], "--batch x: must be a whole number"),
        (["predict", "x", "--json=true"], "--json takes no value"),
        (["evaluate", "run", "--data=x", "--split=foo"], "--split 'foo': must be one of 'val', 'train'"),
        (["train", "--data=x", "--input_size=3,4"], "must be a whole number or two whole numbers such as [2"),
        (["evaluate", "run"], "error: --data is missing; see conformer-vision evaluate --help"),
        (["evaluate", "--data", "x"], "error: model is missing; see conformer-vision evaluate --help"),
        (["--zzz"], "unknown option --zzz; see conformer-vision --help"),
    ],
)  # fmt: skip
def test_values_and_options_that_do_not_fit(arguments: list[str], hint: str) -> None:
    assert hint in one_line(run(*arguments))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("trian", "train"),
        ("tarin", "train"),
        ("finetune", "train"),
        ("eval", "evaluate"),
        ("test", "evaluate"),
        ("pred", "predict"),
        ("inference", "predict"),
        ("lr_find", "lr-find"),
        ("convert", "export"),
        ("bench", "benchmark"),
        ("model", "models"),
    ],
)
def test_commands(given: str, meant: str) -> None:
    assert one_line(run(given, "x")) == f"error: unknown command {given!r}; did you mean {meant}?\n"


def test_an_image_alone_is_for_predict(tmp_path: Path) -> None:
    path = tmp_path / "my photo.jpg"
    path.touch()
    assert f"did you mean predict '{path}'?" in one_line(run(path))


def test_an_unknown_command_without_a_neighbour() -> None:
    assert one_line(run("xyzzy")) == "error: unknown command 'xyzzy'; see conformer-vision --help\n"


def test_every_name_of_the_tables_is_an_option_or_command() -> None:
    _, parsers = build_parsers()
    known = {text[2:] for parser in parsers.values() for a in parser._actions for text in a.option_strings}
    known |= {place for parser in parsers.values() for place in parser.positionals()}
    assert hints._OPTIONS.keys() <= known
    assert hints._COMMANDS.keys() <= set(SUBCOMMANDS)


@pytest.mark.parametrize(
    ("arguments", "pretrained"),
    [
        (["--pretrained"], True),
        (["--pretrained", "--seed", "3"], True),
        (["--pretrained", "true"], True),
        (["--pretrained", "no", "--seed", "3"], False),
        (["--pretrained=false"], False),
    ],
)
def test_options_that_are_true_or_false_may_stand_alone(arguments: list[str], pretrained: bool) -> None:
    import yaml

    done = run("train", "--data", "digits", "--model", "resnet18", *arguments, "--print_config")
    assert done.status == 0, done.err
    assert yaml.safe_load(done.out)["pretrained"] is pretrained


def test_every_flag_may_stand_alone() -> None:
    import yaml

    _, parsers = build_parsers()
    flags = parsers["train"].flags()
    assert {"--pretrained", "--compile", "--report", "--sync_bn", "--auto_resume"} <= set(flags)
    done = run("train", *flags, "--data", "digits", "--model", "resnet18", "--print_config")
    assert done.status == 0, done.err
    values = yaml.safe_load(done.out)
    assert all(values[flag[2:]] is True for flag in flags)
    assert "photos does not exist" in one_line(run("check", "--fix", "x.csv", "--fix_duplicates", "photos"))


def test_python_is_answered_in_its_own_words() -> None:
    with pytest.raises(UserError, match=r"^unknown option 'learning_rate'; did you mean lr\?$"):
        TrainConfig.from_options(data="digits", learning_rate=1)
    with pytest.raises(UserError, match=r"^epochs ten: must be a whole number$"):
        TrainConfig.from_options(data="digits", epochs="ten")
    assert "--epochs ten: must be a whole number" in one_line(run("train", "--data=x", "--epochs=ten"))
    assert (option("lr"), option("lr", 0.1), option("data", "x"), words("a", "b")) == (
        "lr",
        "lr=0.1",
        "data='x'",
        "b",
    )
    with command_line_words():
        assert (option("lr"), option("lr", 0.1), words("a", "b")) == ("--lr", "--lr 0.1", "a")
    assert option("data", "photos") == "data='photos'"


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "https://example.org/a.jpg"],
        ["predict", "photo.jpg", "HTTP://example.org/a.jpg"],
        ["predict", "--model", "s3://bucket/model.onnx", "photo.jpg"],
        ["evaluate", "https://example.org/model.pth", "--data", "digits"],
        ["check", "https://example.org/photos.zip"],
        ["train", "--data", "file:///photos", "--model", "resnet18"],
    ],
)
def test_urls_are_not_fetched(arguments: list[str]) -> None:
    line = one_line(run(*arguments))
    assert "://" in line and "not fetched; download " in line


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "cuda:99", "gpu", "hpu", "vulkan"])
def test_a_device_that_is_not_here_is_one_short_line(device: str) -> None:
    line = one_line(run("predict", "conformer_nano_patch8_64", "photo.jpg", "--device", device))
    assert f"device {device!r} cannot be used here (" in line and line.endswith("); 'cpu' always can\n")
    assert len(line) < 130
