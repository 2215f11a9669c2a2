"""Mistakes on the command line: one line that names them, exit status 2, and nothing left behind."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from command_line import TINY, class_folders, one_line, run


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
    """Arguments that train on class folders with so many images."""
    return lambda folder: ["train", f"--data={class_folders(folder / 'data', **counts)}", *TINY]


Arguments = list[str] | Callable[[Path], list[str]]
MISTAKES: dict[str, tuple[Arguments, str]] = {
    # data
    "no data": (["train", *TINY], "data is missing"),
    "empty path": (["train", "--data=", *TINY], "--data is empty"),
    "missing path": (["train", "--data=nothing", *TINY], "nothing does not exist"),
    "empty folder": (on(), "does not exist"),
    "empty class": (on(a=9, b=0), "class folder"),
    "single class": (on(a=20), "single class"),
    "batch larger than the data": (
        on(a=4, b=4),
        "batch_size 8 is more than the 6 images; give a smaller one",
    ),
    "images without class folders": (
        lambda folder: ["train", f"--data={class_folders(folder / 'data', a=3) / 'a'}", *TINY],
        "no class folders",
    ),
    # options
    "unknown subcommand": (["tarin"], "tarin"),
    "unknown option": (training("--epoch=3"), "unknown option --epoch; did you mean --epochs?"),
    "unknown augmentation": (training("--augment.hflp=0"), "did you mean --augment.hflip?"),
    "unexpected argument": (training("extra"), "unexpected argument 'extra'"),
    "no number": (training("--epochs=ten"), "epochs ten: must be a whole number"),
    "no learning rate": (training("--lr=0"), "lr 0.0: must be a number above 0"),
    "batch that cannot be shared": (
        training("--accumulate=3"),
        "batch_size 8: cannot be shared evenly by accumulate 3; give 6",
    ),
    "more folds than images": (training("--folds=999"), "folds 999: no class of digits has so many"),
    "unknown branch": (training("--freeze_branch=fcu"), "freeze_branch fcu: must be one of 'conv', 'trans'"),
    "unknown logger": (training("--loggers=[neptune]"), "neptune"),
    "missing list of exclusions": (training("--exclude=nothing.txt"), "nothing.txt"),
    "unknown device": (training("--device=foo"), "device foo: must be one of 'auto', 'cpu'"),
    "unknown optimiser": (training("--optimizer=adamm"), "did you mean adam"),
    "unknown policy": (training("--augment.auto_augment=foo"), "timm has no such policy"),
    "three sizes": (
        training("--input_size=[32,32,32]"),
        "must be a whole number or two whole numbers such as [224,160]",
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
        ["train", "--data=digits", "--model=test_vit", "--input_size=40", "--batch_size=8"],
        "input_size 40x40: test_vit cannot take it",
    ),
    "size below 32": (
        ["train", "--data=digits", "--model=conformer_nano_patch4_32", "--input_size=31", "--batch_size=8"],
        "input_size 31: each edge must be 32 pixels or more",
    ),
    "single images for BatchNorm": (
        ["train", "--data=digits", "--model=conformer_nano_patch16_224", "--input_size=32", "--batch_size=1"],
        "batch_size 1",
    ),
    "missing checkpoint": (training("--checkpoint=nothing.safetensors"), "nothing.safetensors"),
    # recipes
    "unknown recipe": (training("--recipe=quik"), "recipe 'quik' is unknown; did you mean quick?"),
    "missing recipe": (
        training("--recipe=nothing.yaml"),
        "recipe 'nothing.yaml' is unknown; give a YAML file",
    ),
    "recipe without a name": (["train", "--data=digits", "--recipe"], "--recipe needs a value"),
    "unknown recipe key": (recipe("epoch: 3"), "unknown key 'epoch'; did you mean epochs?"),
    "text for a number in a recipe": (recipe("epochs: ten"), "epochs ten: must be a whole number"),
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
    "predict a model alone": (["predict", "nothing.safetensors"], "is a model; give images"),
    "predict by nothing": (["predict", "nothing", "x.png"], "nothing does not exist"),
    "two formats": (["predict", "x", "y.png", "--json", "--csv"], "give one of them"),
    "unknown option of predict": (["predict", "x", "y.png", "--topk=3"], "did you mean --top_k?"),
    "abbreviated option": (
        ["predict", "x", "y.png", "--top=3"],
        "unknown option --top; did you mean --top_k?",
    ),
}


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


def test_mistakes_with_a_run(trained: Path, images: Path, tmp_path: Path) -> None:
    assert "top_k 0" in one_line(run("predict", trained, images, "--top_k=0"))
    assert "device 'foo'" in one_line(run("predict", trained, images, "--device=foo"))
    assert "batch_size 0" in one_line(run("predict", trained, images, "--batch_size=0"))
    assert "input_size 0x0" in one_line(run("predict", trained, images, "--input_size=0"))
    assert "holds no images" in one_line(run("predict", trained, tmp_path))
    assert "does not exist" in one_line(run("evaluate", trained, "--data=nothing"))
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes((trained / "last.safetensors").read_bytes()[:9999])
    assert "not a whole safetensors file" in one_line(run("predict", truncated, images))


def test_mistakes_in_going_on(trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "classes.txt", "last.ckpt", "last.safetensors"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / "last.ckpt").write_bytes((trained / "last.ckpt").read_bytes()[:-1000])
    assert "last.ckpt is not a whole checkpoint" in one_line(run("train", "--resume", tmp_path))
    (tmp_path / "config.yaml").write_bytes(b"\x80garbage: [")
    assert "config.yaml is not YAML" in one_line(run("train", "--resume", tmp_path))
    (tmp_path / "config.yaml").write_text("epochs: 3\nmodell: x")
    assert "did you mean model?" in one_line(run("train", "--resume", tmp_path))
