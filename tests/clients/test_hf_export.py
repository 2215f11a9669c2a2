"""Folders of `export --format hf`, read by transformers where this package is not installed, and by timm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from clients import HEIGHT, WIDTH, WITHOUT, fresh_process, images, three_steps
from conformer_vision import Predictor, load
from conformer_vision.export.run import export
from conformer_vision.models.variants import SHIPPED
from conformer_vision.spec import ModelSpec
from exports import SPEC, write_run

transformers = pytest.importorskip("transformers", reason=WITHOUT)

CLASSES = ("cat", "dog", "owl", "fox", "bee")
CALIBRATED = replace(SPEC, classes=CLASSES, temperature=1.7, crop_pct=0.875)
RUNS = {
    "conformer": CALIBRATED,
    "sum": replace(CALIBRATED, model_kwargs={**SPEC.model_kwargs, "head_fusion": "sum"}),
    "grey": replace(CALIBRATED, input_size=(1, 32, 32), mean=(0.4,), std=(0.2,), in_chans=1),
    "resnet18": ModelSpec("resnet18", classes=CLASSES, input_size=(3, 64, 96), temperature=0.6, crop_pct=1.0),
}

ALONE = """
import json, sys
from importlib.util import find_spec
assert find_spec("conformer_vision") is None
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
source, photo, saved = sys.argv[1:]
trust = {"trust_remote_code": True}
model = AutoModelForImageClassification.from_pretrained(source, **trust).eval()
processor = AutoImageProcessor.from_pretrained(source, **trust)
inputs = processor(Image.open(photo).convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    output = model(**inputs, labels=torch.tensor([1]))
    features = AutoModel.from_pretrained(source, **trust).eval()(**inputs).pooler_output
answers = pipeline("image-classification", model=source, top_k=5, **trust)(photo)
model.save_pretrained(saved)
print(json.dumps({
    "probabilities": output.logits.softmax(1)[0].tolist(),
    "loss": output.loss.item(),
    "labels": model.config.id2label,
    "features": features[0].tolist(),
    "answers": {answer["label"]: answer["score"] for answer in answers},
}))
"""


PIPELINE = """
import json, sys
from transformers import pipeline
source, photo = sys.argv[1:]
answers = pipeline("image-classification", model=source, top_k=5, trust_remote_code=True)(photo)
print(json.dumps({answer["label"]: answer["score"] for answer in answers}))
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(2))
    path = tmp_path / "photo.png"
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    return path


def ours(model: Path | str, photo: Path) -> dict[str, float]:
    (answer,) = Predictor(model, device="cpu")([photo])
    return dict(zip(answer.labels, answer.probabilities, strict=True))


def test_the_pipeline_gives_our_probabilities_of_several_labels(tmp_path: Path, photo: Path) -> None:
    run = write_run(tmp_path / "run", replace(CALIBRATED, multilabel=True))
    folder = export(run, format="hf").path
    found = json.loads(fresh_process(PIPELINE, folder, photo, package=False).splitlines()[-1])
    (answer,) = Predictor(run, device="cpu")([photo], top_k=5)
    assert found == pytest.approx(dict(zip(answer.labels, answer.probabilities, strict=True)), abs=1e-4)
    assert sum(found.values()) != pytest.approx(1, abs=0.05), "sigmoids, no softmax"


@pytest.mark.parametrize("kind", RUNS)
def test_transformers_without_this_package(kind: str, tmp_path: Path, photo: Path) -> None:
    run = write_run(tmp_path / "run", RUNS[kind])
    folder = export(run, format="hf").path
    saved = tmp_path / "saved"
    found = json.loads(fresh_process(ALONE, folder, photo, saved, package=False).splitlines()[-1])
    expected = ours(run, photo)
    assert found["answers"] == pytest.approx(expected, abs=1e-4)
    assert [found["labels"][str(index)] for index in range(5)] == list(CLASSES)
    named = dict(zip(CLASSES, found["probabilities"], strict=True))
    assert named == pytest.approx(expected, abs=1e-4)
    assert found["loss"] == pytest.approx(-torch.tensor(expected["dog"]).log().item(), abs=1e-3)
    model, _, transform = load(run)
    with torch.inference_mode():
        x = transform(Image.open(photo).convert("RGB"))[None]
        features = model.forward_head(model.forward_features(x), pre_logits=True)  # type: ignore[operator]
    torch.testing.assert_close(torch.tensor(found["features"]), features[0], rtol=1e-3, atol=1e-4)
    # Predictor reads the export, and what transformers saved of it.
    assert ours(folder, photo) == pytest.approx(expected, abs=1e-5)
    assert ours(saved, photo) == pytest.approx(expected, abs=1e-5)


def test_the_bundled_weights(tmp_path: Path, photo: Path) -> None:
    folder = export(SHIPPED, format="hf", output=tmp_path / "bundled").path
    found = json.loads(
        fresh_process(ALONE, folder, photo, tmp_path / "saved", package=False).splitlines()[-1]
    )
    assert found["labels"]["0"] == "goldfish" and len(found["labels"]) == 20
    assert found["answers"] == pytest.approx(ours(SHIPPED, photo), abs=1e-4)
    assert load(folder).spec.classes == load(SHIPPED).spec.classes, "codes as well as their names"


def test_fine_tuning_the_export(tmp_path: Path) -> None:
    """With the code from the folder, other classes and gradient checkpointing."""
    folder = export(write_run(tmp_path / "run", CALIBRATED), format="hf").path
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=True, num_labels=3, ignore_mismatched_sizes=True
    )
    assert type(model.timm_model).__module__.startswith("transformers_modules")
    model.gradient_checkpointing_enable()
    assert model.timm_model.grad_checkpointing == "full"
    target = torch.tensor([0, 2])
    three_steps(model, lambda: model(pixel_values=images(), labels=target).loss)


HUB = """
import json, sys
import conformer_vision, timm, torch
model = timm.create_model("hf-hub:somebody/animals", pretrained=True).eval()
print(json.dumps([model.pretrained_cfg["label_names"], model(torch.zeros(1, 3, 40, 50))[0].tolist()]))
"""


def test_timm_and_the_hub(tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder, and as a repository in the cache of the Hub, which needs no network."""
    run = write_run(tmp_path / "run", CALIBRATED)
    folder = export(run, format="hf").path
    expected, _, _ = load(run)
    x = torch.zeros(1, 3, 40, 50)
    with torch.inference_mode():
        logits = expected(x) / CALIBRATED.temperature
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(model(x), logits, rtol=1e-4, atol=1e-5)
    assert model.pretrained_cfg["label_names"] == list(CLASSES) and not model.pretrained_cfg.get("tag")
    data = timm.data.resolve_model_data_config(model)
    assert (list(data["input_size"]), data["crop_pct"]) == ([3, 32, 32], 0.875)

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    repository = tmp_path / "home" / "hub" / "models--somebody--animals"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))
    names, values = json.loads(fresh_process(HUB).splitlines()[-1])
    assert names == list(CLASSES)
    torch.testing.assert_close(torch.tensor([values]), logits, rtol=1e-4, atol=1e-5)
    arguments = "somebody/animals", photo, tmp_path / "saved"
    found = json.loads(fresh_process(ALONE, *arguments, package=False).splitlines()[-1])
    assert found["answers"] == pytest.approx(ours(run, photo), abs=1e-4)


def test_a_folder_of_timm(tmp_path: Path) -> None:
    """timm's own export names the number of classes twice, which transformers refuses; we read it."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    labels = {"label_names": ["a", "b", "c"]}
    timm.models.save_for_hf(model, tmp_path / "folder", model_config=labels, safe_serialization=True)
    ours, spec, _ = load(tmp_path / "folder")
    assert spec.classes == ("a", "b", "c")
    x = torch.randn(1, *spec.input_size)
    torch.testing.assert_close(ours(x), model(x))
