"""Exported files are read and answered without PyTorch, also where everything is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conformer_vision import Predictor
from conformer_vision.errors import UserError
from conformer_vision.runtime import Predictor as ExportPredictor
from exports import FILES, WITH_EXPORTS
from rejecting import noise
from uninstalled import without

pytestmark = WITH_EXPORTS

HEAVY = [
    *(
        "torch",
        "torchvision",
        "timm",
        "lightning",
        "torchmetrics",
        "sklearn",
        "scipy",
        "matplotlib",
        "pandas",
    ),
    *("pyarrow", "datasets", "safetensors"),
]
OF_THE_COMMAND = ["jsonargparse", "yaml", "rich"]
"""What the command line imports besides."""
PYTHON = """
import dataclasses, json, sys
from conformer_vision.runtime import Predictor

predictor = Predictor(sys.argv[1], batch_size=2, tta="flip+scales=1,1.25")
answers = [*predictor.predict(sys.argv[2:]), *predictor.answer([predictor.read(sys.argv[2], name="again")])]
print(json.dumps([dataclasses.asdict(answer) for answer in answers]))
"""
PACKAGE = """
import sys
import conformer_vision

(answer,) = conformer_vision.Predictor(sys.argv[1])(sys.argv[2])
assert answer.error is None
"""
COMMAND = """
import sys
from conformer_vision_command import main

sys.argv[1:] = ["predict", *sys.argv[1:], "--jsonl", "--tta=flip+scales=1,1.25", "--top_k=5"]
assert main() == 0
"""
WHAT_IS_LOADED = """
print(*sorted(set(NAMES) & sys.modules.keys()))
"""


def python(code: str, *arguments: object, hidden: list[str] | None = None) -> list[str]:
    """The lines that a new process prints, in which some libraries cannot be imported."""
    command = [sys.executable, "-c", without(hidden or []) + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{number}.jpg" for number in range(3)]
    for path, image in zip(paths, noise(3), strict=True):
        image.resize((300, 200)).save(path)
    return paths


def assert_same(found: list[dict[str, object]], exported: Path, photos: list[Path]) -> None:
    """The answers are those of the weights in PyTorch."""
    predictor = Predictor(exported, device="cpu", tta="flip+scales=1,1.25")
    for answer, wanted in zip(found, predictor(photos), strict=True):
        assert (answer["name"], answer["labels"]) == (wanted.name, list(wanted.labels))
        assert answer["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
        assert wanted.conv is not None and answer["conv"] == [
            wanted.conv.label,
            pytest.approx(wanted.conv.probability, abs=1e-5),
        ]


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_from_photo_to_answer(format: str, exported: Path, photos: list[Path]) -> None:  # noqa: A002
    file = exported / FILES[format]
    *answers, again = json.loads(python(PYTHON, file, *photos, hidden=[*HEAVY, *OF_THE_COMMAND])[0])
    assert_same(answers, exported, photos)
    assert again == answers[0] | {"name": "again"}
    lines = python(COMMAND, file, *photos, hidden=HEAVY)
    assert_same([json.loads(line) for line in lines], exported, photos)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_nothing_else_is_imported_where_it_is_installed(
    format: str,  # noqa: A002
    exported: Path,
    photos: list[Path],
) -> None:
    file = exported / FILES[format]
    loaded = WHAT_IS_LOADED.replace("NAMES", repr([*HEAVY, *OF_THE_COMMAND]))
    assert python(PYTHON + loaded, file, *photos)[-1] == ""
    assert python(PACKAGE + loaded, file, photos[0])[-1] == ""
    assert python(COMMAND + WHAT_IS_LOADED.replace("NAMES", repr(HEAVY)), file, *photos)[-1] == ""


MISTAKES = """
import sys
from conformer_vision.cli import main

for arguments in (
    ["predict", run, photo], ["predict", photo], ["predict", "resnet18", photo], ["explain", run, photo],
    ["evaluate", file, "--data", "digits"], ["export", run, "--format", "onnx"],
    ["train", "--data", "digits"],
):
    assert main(arguments) == 2, arguments
import conformer_vision
for use in (
    lambda: conformer_vision.Predictor(run), lambda: conformer_vision.Predictor(),
    lambda: conformer_vision.load(run), lambda: conformer_vision.train,
):
    try:
        use()
    except ImportError as error:
        print(error, file=sys.stderr)
"""


def test_what_needs_pytorch_says_so_in_one_line(exported: Path, photos: list[Path]) -> None:
    names = f"run, file, photo = {str(exported)!r}, {str(exported / 'model.onnx')!r}, {str(photos[0])!r}\n"
    command = [sys.executable, "-c", without(HEAVY) + names + MISTAKES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 7 + 4, done.stderr
    named = lines.pop(2)
    assert named.startswith("error: resnet18 does not exist")
    for line in lines:
        assert " is not installed: pip install " in line and "conformer-vision" in line


def test_what_the_door_does_not_take(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no exported file; conformer_vision.Predictor takes it"):
        ExportPredictor(exported)
    with pytest.raises(UserError, match="does not exist"):
        ExportPredictor(tmp_path / "model.onnx")


def test_a_batch_that_does_not_fit(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says what an image takes, and all is within a factor of what PyTorch's tensors take."""
    predictor = ExportPredictor(exported / "model.onnx", batch_size=1000)
    images = [Image.new("RGB", (32, 32))] * 1000
    monkeypatch.setattr("conformer_vision.available.available_memory", lambda: 3e8)
    with pytest.raises(UserError, match=r"^batch_size 1000: needs 0\.\d GB of memory, .*; give \d+ or less$"):
        predictor.predict(images)
    monkeypatch.setattr("conformer_vision.available.available_memory", lambda: 1e9)
    predictor.predict(images).close()  # type: ignore[attr-defined]
