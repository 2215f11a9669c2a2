"""The command ``conformer-vision``: mistakes in this process, the main job in real ones."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conformer_vision.cli import main
from conformer_vision.data import open_source
from conformer_vision.data.sources import write_examples
from conformer_vision.models import variants

MODEL = ["--model=conformer_nano_patch8_64", "--input_size=32", "--model_kwargs.depths=[2,1,2]"]
TINY = [*MODEL, "--batch_size=8", "--max_steps=2", "--workers=0", "--device=cpu", "--progress=plain"]
TINY.append("--report=false")  # takes longer than two steps


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


COMMAND = [sys.executable, "-m", "conformer_vision"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def spawn(*arguments: object) -> Done:
    """The command in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=100
    )
    return Done(done.returncode, done.stdout, done.stderr)


def class_folders(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (20 * number % 255, 20, 30)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two steps on the digits."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = run("train", "--data", "digits", *TINY, "--output", folder)
    assert (done.status, done.err) == (0, "")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three digits, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    first, *_ = write_examples(open_source("digits", split="all"), folder, count=3)
    first.write_bytes(b"no picture")
    return folder


# ---- without torch ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["--version"], ["train", "--epoch=3"]]
)
def test_help_and_mistyped_options_do_not_wait_for_torch(arguments: list[str]) -> None:
    """As ``python -m conformer_vision``, whose ``__init__`` must not import the models either."""
    code = (
        "import runpy, sys\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "sys.orig_argv[1:] = ['-m', 'conformer_vision', *sys.argv[1:]]\n"
        "try:\n    runpy.run_module('conformer_vision', run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    slow = {'torch', 'timm', 'lightning', 'sklearn', 'matplotlib'}\n"
        "    print('slow:', *(slow & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("slow:\n"), done.stdout[-200:] + done.stderr
    assert done.returncode == (2 if arguments[-1] == "--epoch=3" else 0)


def test_without_arguments_prints_the_help() -> None:
    done = run()
    assert done.status == 0
    for name in ("check", "lr-find", "train", "report", "evaluate", "predict", "models"):
        assert name in done.out


def test_train_help_describes_every_option() -> None:
    done = run("train", "--help")
    assert done.status == 0
    text = " ".join(done.out.split())
    assert "Learning rate after the warm-up. (type: float, default: 0.001)" in text
    assert "--augment.hflip" in text
    assert "Probability of mirroring left to right" in text
    assert "quick" in text, "the recipes of the package"


# ---- mistakes --------------------------------------------------------------------------------------


def recipe(text: str | bytes) -> Callable[[Path], list[str]]:
    """Arguments that train by a recipe of this text."""

    def arguments(folder: Path) -> list[str]:
        path = folder / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["train", "--data=digits", *TINY, f"--recipe={path}"]

    return arguments


def training(*arguments: str) -> list[str]:
    return ["train", "--data=digits", *TINY, *arguments]


def on(**counts: int) -> Callable[[Path], list[str]]:
    """Arguments that train on class folders with so many pictures."""
    return lambda folder: ["train", f"--data={class_folders(folder / 'data', **counts)}", *TINY]


Arguments = list[str] | Callable[[Path], list[str]]
MISTAKES: dict[str, tuple[Arguments, str]] = {
    # data
    "no data": (["train", *TINY], "data is missing"),
    "missing path": (["train", "--data=nothing", *TINY], "nothing does not exist"),
    "empty folder": (on(), "does not exist"),
    "empty class": (on(a=9, b=0), "class folder"),
    "single class": (on(a=20), "single class"),
    "batch larger than the data": (
        on(a=4, b=4),
        "batch_size 8 is more than the 6 pictures; give a smaller one",
    ),
    "pictures without class folders": (
        lambda folder: ["train", f"--data={class_folders(folder / 'data', a=3) / 'a'}", *TINY],
        "no class folders",
    ),
    # options
    "unknown subcommand": (["tarin"], "tarin"),
    "unknown option": (training("--epoch=3"), "unknown option --epoch; did you mean --epochs?"),
    "unknown augmentation": (training("--augment.hflp=0"), "did you mean --augment.hflip?"),
    "unexpected argument": (training("extra"), "unexpected argument 'extra'"),
    "no number": (training("--epochs=ten"), "epochs ten: must be a whole number"),
    "half an epoch": (training("--epochs=1.5"), "epochs 1.5: must be a whole number"),
    "endless number": (training(f"--epochs=1{'0' * 400}"), "epochs"),
    "no learning rate": (training("--lr=0"), "lr 0.0: must be a number above 0"),
    "negative learning rate": (training("--lr=-1"), "lr -1.0: must be a number above 0"),
    "odd batch with mixup": (
        training("--mixup=0.2", "--batch_size=7"),
        "batch_size 7: mixup and cutmix need an even number of pictures per pass, not 7",
    ),
    "batch that cannot be shared": (
        training("--accumulate=3"),
        "batch_size 8: cannot be shared evenly by accumulate 3; give 6",
    ),
    "batch size in words": (training("--batch_size=all"), "batch_size all: must be a whole number or"),
    "average without a decay": (training("--ema_warmup=true"), "ema_warmup has no effect without ema_decay"),
    "going on without a place": (training("--auto_resume=true"), "auto_resume has no effect without output"),
    "fold without folds": (training("--fold=1"), "fold 1: must be below folds"),
    "fold beyond the folds": (training("--folds=3", "--fold=3"), "fold 3: must be below folds, 3"),
    "more folds than pictures": (training("--folds=999"), "folds 999: no class of digits has so many"),
    "unknown branch": (training("--freeze_branch=fcu"), "freeze_branch fcu: must be one of 'conv', 'trans'"),
    "more frozen blocks than there are": (training("--freeze_blocks=9"), "freeze_blocks 9: the model has 5"),
    "frozen branch of a ResNet": (
        ["train", "--data=digits", "--model=resnet18", "--freeze_branch=conv", "--batch_size=8"],
        "freeze_branch is for Conformers; model resnet18 is none",
    ),
    "shared weights of one process": (training("--strategy=fsdp"), "strategy fsdp shares weights between"),
    "float16 without a GPU": (training("--precision=16-mixed"), "precision 16-mixed needs a GPU"),
    "BatchNorm of one CPU": (training("--sync_bn=true"), "sync_bn needs GPUs"),
    "unknown logger": (training("--loggers=[neptune]"), "neptune"),
    "missing list of exclusions": (training("--exclude=nothing.txt"), "nothing.txt"),
    "epoch of a set with a length": (training("--epoch_pictures=9"), "epoch_pictures is for streams"),
    "two ways to draw": (
        training("--aug_repeats=2", "--sampling=balanced"),
        "aug_repeats and sampling balanced both choose the pictures; keep one of them",
    ),
    "unknown device": (training("--device=foo"), "device foo: must be one of 'auto', 'cpu'"),
    "unknown optimiser": (training("--optimizer=adamm"), "did you mean adam"),
    "unknown policy": (training("--augment.auto_augment=foo"), "timm has no such policy"),
    "two channels": (training("--in_chans=2"), "in_chans 2: must be one of 1, 3"),
    "three sizes": (
        training("--input_size=[32,32,32]"),
        "must be a whole number or two whole numbers or null",
    ),
    # model
    "unknown model": (training("--model=conformer_nan_patch8_64"), "did you mean conformer_nano_patch8_64?"),
    "unknown model option": (
        training("--model_kwargs.upsampel=x"),
        "takes no upsampel; did you mean upsample?",
    ),
    "impossible depths": (training("--model_kwargs.depths=[1,1]"), "depths=[1, 1] is not possible"),
    "depths of letters": (training("--model_kwargs.depths=abc"), "model conformer_nano_patch8_64"),
    "size that the model cannot take": (
        [
            "train",
            "--data=digits",
            "--model=convnext_atto",
            "--input_size=16",
            "--batch_size=8",
            "--workers=0",
        ],
        "input_size 16x16: convnext_atto cannot take it",
    ),
    "size below one patch": (
        ["train", "--data=digits", "--model=vit_tiny_patch16_224", "--input_size=8", "--batch_size=8"],
        "input_size 8x8: vit_tiny_patch16_224 cannot take it",
    ),
    "single pictures for BatchNorm": (
        ["train", "--data=digits", "--model=conformer_nano_patch16_224", "--input_size=32", "--batch_size=1"],
        "batch_size 1",
    ),
    "missing checkpoint": (training("--checkpoint=nothing.safetensors"), "nothing.safetensors"),
    "two sources of weights": (training("--checkpoint=x.safetensors", "--pretrained=true"), "keep one"),
    # recipes
    "unknown recipe": (training("--recipe=quik"), "recipe 'quik' is unknown; did you mean quick?"),
    "missing recipe": (
        training("--recipe=nothing.yaml"),
        "recipe 'nothing.yaml' is unknown; give a YAML file",
    ),
    "recipe without a name": (["train", "--data=digits", "--recipe"], "--recipe needs a value"),
    "unknown recipe key": (recipe("epoch: 3"), "unknown key 'epoch'; did you mean epochs?"),
    "broken recipe": (recipe("epochs: [3"), "is not YAML"),
    "recipe that is a list": (recipe("- epochs"), "has to be keys with values"),
    "binary recipe": (recipe(bytes(range(256))), "is not YAML"),
    "Latin-1 recipe": (recipe("data: Café".encode("latin-1")), "is not YAML"),
    "text for a number in a recipe": (recipe("epochs: ten"), "epochs ten: must be a whole number"),
    "text for a part in a recipe": (
        recipe("augment: {hflip: x}"),
        "augment.hflip x: must be a number or null",
    ),
    "impossible value in a recipe": (recipe("lr: -1.0"), "lr -1.0: must be a number above 0"),
    # resume
    "resume nothing": (
        ["train", "--resume=nothing"],
        "nothing has no config.yaml, so it is no run to resume",
    ),
    "resume without a name": (["train", "--resume"], "--resume needs a value"),
    "resume otherwise": (["train", "--resume=x", "--epochs=3"], "--epochs cannot be given with --resume"),
    "resume two": (["train", "--resume", "x", "y"], "unexpected argument 'y'"),
    "resume loudly": (["train", "--resume=x", "--progress=loud"], "progress loud: must be one of"),
    # use
    "evaluate nothing": (["evaluate", "nothing", "--data=digits"], "nothing does not exist"),
    "evaluate without data": (["evaluate", "nothing"], "data is missing"),
    "evaluate an unknown split": (["evaluate", "x", "--data=digits", "--split=foo"], "foo"),
    "predict with nothing": (["predict"], "is missing"),
    "predict nothing": (["predict", "nothing"], "inputs is missing"),
    "predict by nothing": (["predict", "nothing", "x.png"], "nothing does not exist"),
    "two formats": (["predict", "x", "y.png", "--json", "--csv"], "give one of them"),
    "unknown option of predict": (["predict", "x", "y.png", "--topk=3"], "did you mean --top_k?"),
    "abbreviated option": (
        ["predict", "x", "y.png", "--top=3"],
        "unknown option --top; did you mean --top_k?",
    ),
}


def one_line(done: Done) -> str:
    """The error of a command that ended with exit status 2."""
    assert done.status == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    return done.err


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, wanted = MISTAKES[name]
    arguments = arguments if isinstance(arguments, list) else arguments(tmp_path)
    assert wanted in one_line(run(*arguments))
    assert not (tmp_path / "runs").exists(), "a failed start leaves no run folder"


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    file = tmp_path / "file"
    file.touch()
    assert "is not empty" in one_line(run(*training(f"--output={tmp_path / 'full'}")))
    assert "cannot make the run folder" in one_line(run(*training(f"--output={file / 'below'}")))
    assert "cannot make the run folder" in one_line(run(*training(f"--output={file}")))


def test_checkpoint_of_another_model(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = trained / "last.safetensors"
    line = one_line(
        run("train", "--data=digits", "--model=resnet18", "--batch_size=8", f"--checkpoint={weights}")
    )
    assert str(weights) in line
    assert "ResNet" in line
    data = class_folders(tmp_path / "data", a=9, b=9)
    line = one_line(run("train", f"--data={data}", *TINY, f"--checkpoint={weights}"))
    assert "reset_head" in line
    assert not (tmp_path / "runs").exists()


def test_label_out_of_range(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parquet: a number that the file's own list of names does not have; in folders: an unknown class."""
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    table = pa.table(
        {"image": [{"bytes": buffer.getvalue(), "path": None}] * 20, "label": [0, 1] * 9 + [0, 2]}
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "data.parquet")
    assert "2" in one_line(run("train", "--data=data.parquet", *TINY))
    assert not (tmp_path / "runs").exists()
    line = one_line(run("evaluate", trained, "--data", class_folders(tmp_path / "data", cat=3, dog=3)))
    assert "does not know the class cat, dog" in line


def test_mistakes_with_a_run(trained: Path, pictures: Path, tmp_path: Path) -> None:
    assert "top_k 0" in one_line(run("predict", trained, pictures, "--top_k=0"))
    assert "device 'foo'" in one_line(run("predict", trained, pictures, "--device=foo"))
    assert "batch_size 0" in one_line(run("predict", trained, pictures, "--batch_size=0"))
    assert "holds no pictures" in one_line(run("predict", trained, tmp_path))
    assert "does not exist" in one_line(run("evaluate", trained, "--data=nothing"))
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes((trained / "last.safetensors").read_bytes()[:9999])
    assert "not a whole safetensors file" in one_line(run("predict", truncated, pictures))


def test_mistakes_in_going_on(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "classes.txt", "last.ckpt", "last.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "last.ckpt").write_bytes((trained / "last.ckpt").read_bytes()[:-1000])
    assert "last.ckpt is not a whole checkpoint" in one_line(run("train", "--resume", tmp_path))
    (tmp_path / "config.yaml").write_bytes(b"\x80garbage: [")
    assert "config.yaml is not YAML" in one_line(run("train", "--resume", tmp_path))
    (tmp_path / "config.yaml").write_text("epochs: 3\nmodell: x")
    assert "did you mean model?" in one_line(run("train", "--resume", tmp_path))


# ---- recipes ---------------------------------------------------------------------------------------


def kept(*arguments: str) -> dict[str, object]:
    """The configuration that the command line comes to."""
    import yaml

    done = run("train", *arguments, "--print_config")
    assert done.status == 0, done.err
    values = yaml.safe_load(done.out)
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("order", ["recipe first", "flags first"])
def test_flags_beat_the_recipe(order: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\nepochs: 7\nlr: 1e-4\naugment: {hflip: 0.25, re_prob: 0.5}\n")
    flags = ["--epochs=2", "--augment.hflip=0"]
    values = kept(
        *([f"--recipe={path}", *flags] if order == "recipe first" else [*flags, "--recipe", str(path)])
    )
    assert (values["epochs"], values["lr"], values["data"]) == (2, 1e-4, "digits")
    assert values["augment"]["hflip"] == 0  # type: ignore[index]
    assert values["augment"]["re_prob"] == 0.5  # type: ignore[index]


def test_recipe_by_name_and_dashes_for_underscores() -> None:
    values = kept(
        "--recipe", "quick", "--data", "digits", "--batch-size", "16", "--model-kwargs.drop_rate=0.1"
    )
    assert values["model"] == "conformer_nano_patch8_64"
    assert values["batch_size"] == 16
    assert values["model_kwargs"] == {"drop_rate": 0.1}


def test_kept_recipe_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    done = run("train", "--recipe", trained / "config.yaml", "--output", tmp_path / "again")
    assert (done.status, done.err) == (0, "")
    first, second = (load_file(folder / "last.safetensors") for folder in (trained, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- the main job ----------------------------------------------------------------------------------


def test_evaluate(trained: Path, tmp_path: Path) -> None:
    picture = tmp_path / "confusion.png"
    done = run("evaluate", trained, "--data=digits", "--confusion_matrix", picture)
    assert (done.status, done.err) == (0, "")
    for word in ("conv", "trans", "fused", "top-1", "top-5", "%", "179 pictures", str(picture)):
        assert word in done.out, word
    Image.open(picture).verify()


def test_evaluate_draws_into_a_run_folder_but_not_beside_a_file(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "confusion_matrix.png").unlink(missing_ok=True)
    assert run("evaluate", folder / "best.safetensors", "--data=digits").status == 0
    assert not (folder / "confusion_matrix.png").exists()
    assert run("evaluate", folder, "--data=digits", "--json").status == 0
    Image.open(folder / "confusion_matrix.png").verify()


def test_predict_table_and_csv(trained: Path, pictures: Path) -> None:
    paths = sorted(pictures.iterdir())
    done = run("predict", trained, pictures, "--top_k=2")
    assert done.status == 1
    assert done.err.count("\n") == 2
    assert f"skipped: {paths[0]}" in done.err
    assert "1 of the pictures could not be read" in done.err
    assert [path.name in done.out for path in paths] == [False, True, True]

    done = run("predict", trained, *paths, "--csv", "--top_k=2")
    assert done.status == 1
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["picture"] for row in rows] == [str(paths[i]) for i in (0, 1, 1, 2, 2)]
    assert [row["rank"] for row in rows] == ["", "1", "2", "1", "2"]
    assert str(paths[0]) in rows[0]["error"]
    assert all(0 <= float(row["probability"]) <= 1 and row["label"] in "0123456789" for row in rows[1:])

    done = run("predict", trained, *paths[1:], "--csv", "--top_k=99")
    assert (done.status, done.err) == (0, "")
    assert len(done.out.splitlines()) == 1 + 2 * 10


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(variants.VARIANTS)[:2]  # all of them take seconds
    monkeypatch.setattr(variants, "VARIANTS", {name: variants.VARIANTS[name] for name in names})
    rows = json.loads(run("models", "--json").out)
    assert [row["name"] for row in rows] == ["conformer_tiny_patch16_224", "conformer_small_patch16_224"]
    assert rows[0]["parameters"] == 23_524_704
    assert rows[0]["gmacs"] == pytest.approx(5.2, abs=0.1)
    table = run("models")
    assert table.status == 0
    assert all(row["name"] in table.out for row in rows)


def test_train_evaluate_predict_in_processes(trained: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = spawn("train", "--data=digits", *TINY, "--output", folder)
    assert (done.status, done.err) == (0, "")
    epoch, last = done.out.splitlines()
    assert epoch.startswith("epoch 1/30  loss ")
    assert last == f"run folder: {folder}"
    first, second = (load_file(path / "last.safetensors") for path in (trained, folder))
    assert all(torch.equal(first[name], second[name]) for name in first), "the same in another process"

    done = spawn("evaluate", folder, "--data=digits", "--json", "--device=cpu")
    assert (done.status, done.err) == (0, "")
    evaluation = json.loads(done.out)
    assert evaluation["samples"] == 179
    assert evaluation["top1"].keys() == evaluation["top5"].keys() == {"conv", "trans", "fused"}

    done = spawn("predict", folder, pictures, "--json", "--device=cpu")
    assert done.status == 1
    answers = json.loads(done.out)
    assert [answer["error"] is None for answer in answers] == [False, True, True]
    assert all(len(answer["labels"]) == 3 for answer in answers[1:])
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("name", "job", "auto_resume", "asked", "status", "line"),
    [
        ("SIGINT", None, False, False, 130, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGTERM", None, True, False, 143, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGTERM", "7", False, False, 143, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGINT", "7", True, False, 130, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGTERM", "7", True, True, 143, "stopped; requeued job 7"),
    ],
)
def test_stopped_by_a_signal(
    name: str,
    job: str | None,
    auto_resume: bool,
    asked: bool,
    status: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job goes back into the queue where the same command would continue it; not after Ctrl-C."""
    from conformer_vision.training import interrupt
    from conformer_vision.training import run as training_run

    def stop(config: object) -> Path:
        raise interrupt.TrainingInterrupted(tmp_path, number=signal.Signals[name], auto_resume=auto_resume)

    jobs: list[str] = []
    monkeypatch.setattr(training_run, "train", stop)
    monkeypatch.setattr(interrupt, "requeue", lambda job: (jobs.append(job), True)[1])
    for variable in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(variable, raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    done = run("train", "--data=digits")
    assert (done.status, done.out, done.err) == (status, "", line.format(run=tmp_path) + "\n")
    assert jobs == ([job] if asked else [])


def test_a_job_that_cannot_be_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformer_vision.training import interrupt
    from conformer_vision.training import run as training_run

    def stop(config: object) -> Path:
        raise interrupt.TrainingInterrupted(tmp_path, number=signal.SIGTERM, auto_resume=True)

    monkeypatch.setattr(training_run, "train", stop)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run("train", "--data=digits")
    assert (done.status, done.err) == (143, "stopped; job 7 cannot be requeued\n")


def test_interrupt_and_resume(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", a=20, b=20)
    folder = tmp_path / "run"
    options = ["--batch_size=8", "--epochs=400", "--workers=1", "--device=cpu", f"--output={folder}"]
    options.append("--report=false")
    process = subprocess.Popen(
        [*COMMAND, "train", f"--data={data}", *MODEL, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,  # Ctrl-C reaches the whole group, workers included
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("epoch 1/400")
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130, err
    assert err == f"stopped; continue with: conformer-vision train --resume {folder}\n"

    def epochs() -> list[int]:
        with (folder / "metrics.csv").open(newline="") as file:
            return [int(row["epoch"]) for row in csv.DictReader(file)]

    done = len(epochs())
    assert 1 <= done < 400
    assert run("predict", folder / "last.safetensors", data / "a").status == 0

    config = folder / "config.yaml"  # so that the rest takes no minutes
    config.write_text(config.read_text().replace("epochs: 400", f"epochs: {done + 2}"))
    resumed = run("train", "--resume", folder, "--progress=plain")
    assert (resumed.status, resumed.err) == (0, "")
    assert resumed.out.startswith(f"epoch {done + 1}/{done + 2}")
    assert epochs() == list(range(1, done + 3))
