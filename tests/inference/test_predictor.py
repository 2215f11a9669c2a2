"""What is predicted for files, folders, bytes and PIL images, whole and broken."""

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError
from conformer_vision.inference import Prediction, Predictor
from conformer_vision.weights import Calibrated, load_model, save_calibration, save_model

Probabilities = Callable[[Path, Image.Image], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def predictor(conformer_run: Path) -> Predictor:
    return Predictor(conformer_run, device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def fast(resnet_run: Path) -> Predictor:
    return Predictor(resnet_run, device="cpu", batch_size=3)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(a: Prediction, b: Prediction, tolerance: float = 1e-5) -> bool:
    return a.labels == b.labels and np.allclose(a.probabilities, b.probabilities, atol=tolerance)


def test_probabilities_are_the_models(
    conformer_run: Path, predictor: Predictor, colours: Image.Image, probabilities: Probabilities
) -> None:
    (answer,) = predictor(colours, top_k=7)
    heads = probabilities(conformer_run, colours)
    order = heads["fused"].argsort(descending=True).tolist()
    assert answer.labels == tuple(predictor.classes[k] for k in order)
    assert answer.probabilities == pytest.approx(heads["fused"][order].tolist(), rel=1e-4)
    for name in ("conv", "trans"):
        guess = getattr(answer, name)
        assert guess.label == predictor.classes[int(heads[name].argmax())]
        assert guess.probability == pytest.approx(float(heads[name].max()), rel=1e-4)
    assert answer.conv != answer.trans
    assert answer.error is None


def test_single_headed_model(
    resnet_run: Path, fast: Predictor, colours: Image.Image, probabilities: Probabilities
) -> None:
    (answer,) = fast([colours])
    assert answer.conv is None and answer.trans is None
    assert answer.probabilities[0] == pytest.approx(
        float(probabilities(resnet_run, colours)["fused"].max()), rel=1e-4
    )


def test_top_k(predictor: Predictor, colours: Image.Image) -> None:
    everything = predictor([colours], top_k=1000)[0]
    assert sorted(everything.labels) == sorted(predictor.classes)
    assert sum(everything.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(everything.probabilities) == sorted(everything.probabilities, reverse=True)
    assert predictor([colours])[0].labels == everything.labels[:5]
    with pytest.raises(UserError, match="top_k 0"):
        predictor.predict([colours], top_k=0)


def test_files_and_objects_are_read_alike(fast: Predictor, colours: Image.Image, tmp_path: Path) -> None:
    """Upright and in RGB, by `open_image`, whose tests have every format."""
    turned = colours.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    path.write_bytes(encoded(turned, "PNG", exif=exif))
    (wanted,) = fast([colours])
    with Image.open(path) as image:
        for answer in fast([path, str(path), path.read_bytes(), image, colours.convert("RGBA")]):
            assert close(answer, wanted), answer.name
    assert not close(fast([turned])[0], wanted)


def test_broken_ones_are_named_and_the_others_answered(
    predictor: Predictor, colours: Image.Image, tmp_path: Path
) -> None:
    data = encoded(colours, "JPEG")
    contents = {
        "a.jpg": data,
        "empty.png": b"",
        "cut.jpg": data[: len(data) // 2],
        "b.png": encoded(colours, "PNG"),
        "text.jpg": b"this is no image\n",
        "ünïcode 犬 %s.png": encoded(colours, "PNG"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in contents]
    paths.insert(1, tmp_path / "missing.png")
    answers = predictor([*paths, paths[0], b"junk"])
    assert [a.name for a in answers] == [*map(str, paths), str(paths[0]), "image 9"]
    good = [paths[0], tmp_path / "b.png", tmp_path / "ünïcode 犬 %s.png"]
    for answer in answers:
        if answer.name in map(str, good):
            assert answer.error is None and len(answer.labels) == 5
        else:
            assert answer.labels == () == answer.probabilities
            assert answer.error is not None and "\n" not in answer.error
            assert Path(answer.name).name in answer.error
    assert close(answers[0], answers[-2])  # the same file twice
    json.dumps([asdict(a) for a in answers], allow_nan=False)


def test_folder(fast: Predictor, colours: Image.Image, tmp_path: Path) -> None:
    names = [
        "img2.png",
        "IMG10.PNG",
        "img1.png",
        "notes.txt",
        ".hidden.png",
        "deep/er/x.png",
        "img3.png/y.png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        colours.save(tmp_path / name, "PNG")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    answers = fast([tmp_path / "img2.png", tmp_path])
    order = ["img2.png", "deep/er/x.png", "img1.png", "img2.png", "img3.png/y.png", "IMG10.PNG"]
    assert [a.name for a in answers] == [str(tmp_path / name) for name in order]
    assert not [a.error for a in answers if a.error]


def test_folder_without_images(fast: Predictor, colours: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "readme.txt").write_text("no images")
    with pytest.raises(UserError, match="holds no images"):
        fast.predict([colours, tmp_path])  # at once
    with pytest.raises(UserError, match="holds no images"):
        list(fast.predict(iter([tmp_path])))


def test_one_path_needs_no_list(fast: Predictor, colours: Image.Image, tmp_path: Path) -> None:
    colours.save(tmp_path / "one.png")
    for one in (tmp_path / "one.png", tmp_path, (tmp_path / "one.png").read_bytes()):
        assert close(fast(one)[0], fast([colours])[0])


def test_names_of_images_without_a_file(fast: Predictor, colours: Image.Image, tmp_path: Path) -> None:
    colours.save(tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        answers = fast([colours, image, encoded(colours, "BMP")])
    assert [a.name for a in answers] == ["image 1", str(tmp_path / "one.png"), "image 3"]


def test_what_is_no_image(fast: Predictor) -> None:
    with pytest.raises(UserError, match="input 1 is of type int"):
        fast([7])  # type: ignore[list-item]
    assert fast([]) == []


def test_stream_reads_no_more_than_two_batches_ahead(fast: Predictor, colours: Image.Image) -> None:
    taken = 0

    def endless() -> Iterator[Image.Image]:
        nonlocal taken
        while True:
            taken += 1
            yield colours

    answers = fast.predict(endless())
    for seen in range(1, 8):
        assert next(answers).name == f"image {seen}"
        assert taken <= seen + 2 * 3
    answers.close()


def test_batch_size_changes_nothing(conformer_run: Path, predictor: Predictor, colours: Image.Image) -> None:
    images = [colours.rotate(30 * i) for i in range(5)]
    alone = Predictor(conformer_run, device="cpu", batch_size=1)(images)
    together = predictor(images)
    assert all(close(a, b) for a, b in zip(alone, together, strict=True))
    assert len({a.probabilities for a in alone}) == 5


def test_changed_image_object(fast: Predictor, colours: Image.Image) -> None:
    """A caller may draw the next image into the same object."""

    def frames() -> Iterator[Image.Image]:
        canvas = Image.new("RGB", colours.size)
        for angle in (0, 90, 180):
            canvas.paste(colours.rotate(angle))
            yield canvas

    wanted = [fast([colours.rotate(angle)])[0] for angle in (0, 90, 180)]
    assert all(close(a, b) for a, b in zip(fast(frames()), wanted, strict=True))


def test_output_that_is_not_finite(resnet_run: Path, tmp_path: Path, colours: Image.Image) -> None:
    model, spec = load_model(resnet_run)
    torch.nn.init.constant_(model.fc.bias, float("nan"))
    save_model(model, spec, tmp_path / "m.safetensors")
    (answer,) = Predictor(tmp_path / "m.safetensors", device="cpu")([colours])
    assert answer.error is not None and "not finite" in answer.error


def test_bad_arguments(resnet_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size 0"):
        Predictor(resnet_run, batch_size=0)
    with pytest.raises(UserError, match="does not exist"):
        Predictor(tmp_path / "nowhere")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBa", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_pil_images(fast: Predictor, colours: Image.Image, mode: str) -> None:
    through = {"PA": "P", "RGBa": "RGBA", "HSV": "RGB"}.get(mode)
    image = (colours.convert(through) if through else colours).convert(mode)
    answer, wanted = fast([image, image.convert("RGB")])
    assert answer.error is None
    assert close(answer, wanted)


@pytest.mark.parametrize(("mode", "dtype"), [("I", np.int32), ("F", np.float32), ("I;16", np.uint16)])
def test_deep_pil_images(fast: Predictor, colours: Image.Image, mode: str, dtype: type) -> None:
    values = np.asarray(colours.convert("L")).astype(dtype)
    image = Image.fromarray(values * (257 if mode != "F" else 1))
    assert image.mode == mode
    shown, wanted = fast([image, colours.convert("L")])
    assert close(shown, wanted, 1e-3)


def test_pil_image_that_breaks_while_it_is_read(fast: Predictor, colours: Image.Image) -> None:
    data = encoded(colours, "PNG")
    broken = Image.open(io.BytesIO(data[: len(data) * 2 // 3]))
    answers = fast([colours, broken, colours])
    assert [a.error is None for a in answers] == [True, False, True]
    assert answers[1].error is not None and answers[1].error.startswith("image 2: ")


def test_temperature_scales_the_prediction_and_no_branch(
    conformer_run: Path, predictor: Predictor, colours: Image.Image, tmp_path: Path
) -> None:
    scaled = tmp_path / "scaled.safetensors"
    scaled.write_bytes((conformer_run / "best.safetensors").read_bytes())
    save_calibration(scaled, Calibrated(2.5))
    (plain,), (answer,) = (p([colours], top_k=7) for p in (predictor, Predictor(scaled, device="cpu")))
    assert answer.labels == plain.labels
    powers = np.array(plain.probabilities) ** (1 / 2.5)
    assert np.allclose(answer.probabilities, powers / powers.sum(), atol=1e-5)
    assert answer.probabilities[0] < plain.probabilities[0]
    for ours, theirs in ((answer.conv, plain.conv), (answer.trans, plain.trans)):
        assert ours is not None and theirs is not None
        assert ours.label == theirs.label
        assert ours.probability == pytest.approx(theirs.probability, rel=1e-5)


def test_read_and_answer_are_predict(predictor: Predictor, colours: Image.Image, tmp_path: Path) -> None:
    images = [encoded(colours.rotate(angle), "PNG") for angle in (0, 90, 180)]
    colours.save(tmp_path / "file.png")
    with ThreadPoolExecutor(3) as pool:
        prepared = list(pool.map(predictor.read, images))
        batches = list(pool.map(predictor.answer, [prepared, prepared[::-1], prepared[1:]]))
    wanted = predictor(images)
    for found, rows in zip(batches, [[0, 1, 2], [2, 1, 0], [1, 2]], strict=True):
        assert all(close(answer, wanted[row]) for answer, row in zip(found, rows, strict=True))
    file, named = predictor.read(tmp_path / "file.png"), predictor.read(images[1], name="upload")
    answers = predictor.answer([file, named], top_k=2)
    assert [answer.name for answer in answers] == [str(tmp_path / "file.png"), "upload"]
    assert [len(answer.labels) for answer in answers] == [2, 2]
    assert predictor.answer([]) == []


def test_errors_of_read_and_answer(
    predictor: Predictor, fast: Predictor, colours: Image.Image, tmp_path: Path
) -> None:
    with pytest.raises(BrokenImageError, match="upload: cannot be read as an image"):
        predictor.read(b"junk", name="upload")
    with pytest.raises(UserError, match="type int"):
        predictor.read(7)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is a folder; give it to predict"):
        predictor.read(tmp_path)
    image = predictor.read(colours)
    with pytest.raises(UserError, match="image 1 was prepared for another model"):
        fast.answer([image])
    with pytest.raises(UserError, match="top_k 0"):
        predictor.answer([image], top_k=0)
