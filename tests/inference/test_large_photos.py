"""A large JPEG is decoded at a reduced size, and everything that evaluates it sees the same, bit for bit."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from conformer_vision import Predictor, load
from conformer_vision.data import ImageDataModule, ImageSource, Splitting, open_images
from conformer_vision.explain import Explainer
from conformer_vision.inference.conversion.images import prepared
from conformer_vision.inference.evaluation import evaluate_images
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.report.images import again_by_number
from conformer_vision.runtime.base import Floats
from conformer_vision.spec import ModelSpec

COUNT = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, conformer_run: Path) -> Path:
    """Photos of two classes, some of them lying on their side; no class is like another by its name."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(COUNT):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x0112] = (1, 6)[number // 2 % 2]
        path = root / load(conformer_run).spec.classes[number % 2] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        small.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90, exif=exif)
    return root


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The batches that models are shown."""
    batches: list[Tensor] = []
    original = TrainedModel.outputs

    def spy(self: TrainedModel, batch: Floats) -> object:
        batches.append(torch.from_numpy(batch))
        return original(self, batch)

    monkeypatch.setattr(TrainedModel, "outputs", spy)
    return batches


def by_hand(path: Path, spec: ModelSpec, by: int) -> Tensor:
    """Pillow's and timm's own calls."""
    image = Image.open(path)
    image.draft("RGB", (image.width // by, image.height // by))
    orientation = image.getexif()[0x0112]
    image.load()
    upright = image.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else image
    values = spec.preprocessing
    transform = create_transform(
        values.input_size,
        mean=values.mean,
        std=values.std,
        interpolation=values.interpolation,
        crop_pct=values.crop_pct,
        crop_mode=values.crop_mode,
    )
    tensor: Tensor = transform(upright)
    return tensor


def test_all_show_the_same(conformer_run: Path, photos: Path, shown: list[Tensor]) -> None:
    spec = load(conformer_run).spec
    source = open_images(photos, "all", classes=spec.classes)
    assert isinstance(source, ImageSource)
    paths = [Path(str(source.file(index))) for index in range(COUNT)]
    Predictor(conformer_run, device="cpu")(paths)
    (wanted,) = shown
    torch.testing.assert_close(
        wanted, torch.stack([by_hand(path, spec, 8) for path in paths]), rtol=1e-5, atol=1e-5
    )
    full = torch.stack([load(conformer_run).transform(source.image(index)) for index in range(COUNT)])
    assert 0 < (wanted - full).abs().mean() < 0.1

    def seen() -> Tensor:
        return torch.cat(shown)

    for inputs in ([path.read_bytes() for path in paths], [str(path) for path in paths]):
        shown.clear()
        Predictor(conformer_run, device="cpu", tta="flip")(inputs)
        assert torch.equal(seen(), wanted)
    shown.clear()
    trained = TrainedModel(conformer_run, device="cpu")
    evaluate_images(trained, source, batch_size=4, workers=0)
    assert torch.equal(seen(), wanted)
    assert torch.equal(torch.cat(list(prepared(source, spec, count=COUNT))), wanted)
    data = ImageDataModule(str(photos), spec, splitting=Splitting(val_fraction=0.5), batch_size=2)
    held_out = [data.val_images.name(place) for place in range(len(data.val_images))]  # type: ignore[arg-type, union-attr]
    places = [paths.index(Path(name)) for name in held_out]
    assert torch.equal(torch.cat([batch.images for batch in data.val_dataloader()]), wanted[places])
    explainer = Explainer(conformer_run, device="cpu")
    explained = list(explainer.show(paths))
    assert torch.equal(torch.cat([each.batch for each in explained]), wanted)
    assert [each.image.size for each in explained] == [source.image(n).size for n in range(COUNT)]  # type: ignore[union-attr]
    again = [again_by_number(source, index, explainer).batch for index in range(COUNT)]
    assert torch.equal(torch.cat(again), wanted)


def test_an_image_in_memory_is_shown_in_full(conformer_run: Path, photos: Path, shown: list[Tensor]) -> None:
    path = next(photos.rglob("0.jpg"))
    predictor = Predictor(conformer_run, device="cpu")
    spec = load(conformer_run).spec
    buffer = BytesIO()
    with Image.open(path) as image:
        image.save(buffer, "PNG", exif=image.getexif())
        predictor(image)
    predictor(buffer.getvalue())
    for batch in shown:
        torch.testing.assert_close(batch[0], by_hand(path, spec, 1), rtol=1e-5, atol=1e-5)


def test_a_larger_input_keeps_more(conformer_run: Path, photos: Path, shown: list[Tensor]) -> None:
    path = next(photos.rglob("0.jpg"))
    spec = load(conformer_run).spec
    by_size = {}
    for size in (64, 128):
        Predictor(conformer_run, device="cpu", input_size=size)(path)
        enlarged = replace(spec, input_size=(3, size, size))
        by_size[size] = next(
            by
            for by in (8, 4, 2, 1)
            if torch.allclose(shown[-1][0], by_hand(path, enlarged, by), rtol=1e-4, atol=1e-4)
        )
    assert by_size == {64: 4, 128: 2}


def test_a_whole_image_is_explained_as_its_reduced_file(conformer_run: Path, photos: Path) -> None:
    path = next(photos.rglob("0.jpg"))
    explainer = Explainer(conformer_run, device="cpu", whole=True)
    (found,) = explainer.show(path)
    with Image.open(path) as image:
        image.draft("RGB", (80, 60))
        image.load()
        assert image.size == (80, 60) and found.seen == (0, 0, 640, 480)
        height, width = found.batch.shape[2:]
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    spec = explainer.spec
    wanted = (torch.from_numpy(pixels) - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    torch.testing.assert_close(found.batch[0], wanted.permute(2, 0, 1), rtol=1e-4, atol=1e-4)
