"""Frozen features: scikit-learn's classifiers on the features that timm gives."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from conformer_vision import ModelSpec, probe
from conformer_vision.data import Splitting, open_images
from conformer_vision.errors import UserError
from conformer_vision.inference.probing import evenly, probe_features
from conformer_vision.tensors import evaluation_transform
from conformer_vision.weights import save_model
from image_sets import write_folders
from streamed import write_shards

SHALLOW = {"depths": [2, 1, 2], "zero_init_last": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folders = {f"{split}/{name}": 8 for split in ("train", "val") for name in ("cat", "dog", "owl")}
    return write_folders(tmp_path_factory.mktemp("data"), folders, size=(32, 32))


def save(model: nn.Module, name: str, folder: Path, kwargs: dict[str, object]) -> Path:
    spec = ModelSpec(name, kwargs, ("some", "others"), (3, 32, 32), crop_pct=1.0)
    save_model(model, spec, folder / "weights.safetensors")
    return folder / "weights.safetensors"


@pytest.mark.parametrize("name", ["conformer_nano_patch8_64", "test_resnet"])
def test_scores_are_those_of_scikit_learn(data: Path, tmp_path: Path, name: str) -> None:
    """On the pooled map, on the class token and on both; the model's own classes do not matter."""
    torch.manual_seed(0)
    kwargs: dict[str, object] = dict(SHALLOW) if "conformer" in name else {}
    model = timm.create_model(name, num_classes=2, **kwargs)
    path = save(model, name, tmp_path, kwargs)
    found = probe(path, data, batch_size=5)
    assert (found.train, found.val, found.complete) == (24, 24, True)
    transform = evaluation_transform(ModelSpec(name, {}, ("a", "b"), (3, 32, 32), crop_pct=1.0))
    features, labels = [], []
    for split in ("train", "val"):
        source = open_images(data, split)
        batch = torch.stack([transform(source.image(i)) for i in range(len(source))])  # type: ignore[arg-type, union-attr]
        with torch.no_grad():
            model.eval()
            if "conformer" in name:
                level = model.forward_features(batch)
                pooled, token = level[:, : model.map_chs].mean((2, 3)), level[:, model.map_chs :, 0, 0]
                features.append({"conv": pooled, "trans": token, "both": torch.cat([pooled, token], 1)})
            else:
                features.append({"all": model.forward_features(batch).mean((2, 3))})
        labels.append(np.array(source.labels))  # type: ignore[union-attr]
    assert [score.features for score in found.scores] == list(features[0])
    for score in found.scores:
        x, x_val = (part[score.features].numpy() for part in features)
        nearest = KNeighborsClassifier(10, metric="cosine").fit(x, labels[0])
        assert score.knn == pytest.approx(nearest.score(x_val, labels[1]), abs=0.05)
        scale = StandardScaler().fit(x)
        linear = LogisticRegression(C=0.01, max_iter=1000).fit(scale.transform(x), labels[0])
        assert score.linear == pytest.approx(linear.score(scale.transform(x_val), labels[1]), abs=0.05)


def test_a_large_set_is_cut_evenly() -> None:
    """As many of every class as there are, the same ones every time."""
    labels = [0] * 90 + [1] * 9 + [2] * 3
    rows = evenly(labels, most=12)
    assert Counter(labels[row] for row in rows) == {0: 5, 1: 4, 2: 3} or Counter(
        labels[row] for row in rows
    ) == {0: 4, 1: 5, 2: 3}
    assert rows == sorted(set(rows)) == evenly(labels, most=12)
    assert evenly(labels, most=500) == list(range(102))


def test_a_part_is_called_a_part(data: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=2)
    spec = ModelSpec("test_resnet", {}, ("a", "b"), (3, 32, 32), crop_pct=1.0)
    train, val = (open_images(data, split) for split in ("train", "val"))
    found = probe_features(model, spec, train, val, most=(9, 6))  # type: ignore[arg-type]
    assert (found.train, found.val, found.complete) == (9, 6, False)


def test_broken_images_are_left_out(tmp_path: Path) -> None:
    folders = {f"{name}": 6 for name in ("cat", "dog")}
    root = write_folders(tmp_path / "data", folders, size=(32, 32))
    for path in sorted((root / "cat").iterdir())[:5]:
        path.write_bytes(b"no image")
    weights = save(timm.create_model("test_resnet", num_classes=2), "test_resnet", tmp_path, {})
    found = probe(weights, root, splitting=Splitting(0.5))
    assert found.train + found.val == 7
    for path in (root / "cat").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be probed: too few images can be read"):
        probe(weights, root, splitting=Splitting(0.5))


def test_a_stream_is_refused(tmp_path: Path) -> None:
    weights = save(timm.create_model("test_resnet", num_classes=2), "test_resnet", tmp_path, {})
    with pytest.raises(UserError, match="is a stream"):
        probe(weights, write_shards(tmp_path, [12, 12]))
