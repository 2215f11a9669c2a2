"""Checkpoints of the authors' and OpenMMLab's code in `predict`, `evaluate` and `export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from command_line import one_line, run, spawn
from conformer_vision.models.checkpoints import to_official, to_openmmlab
from image_sets import write_folders

MODEL = "conformer_nano_patch16_224"
"""Its parameters are those of no other variant."""
CLASSES = ("ant", "bee", "cat")


def authors(weights: dict[str, Tensor]) -> object:
    """As their training writes it; the classes have no names."""
    return {
        "model": to_official(weights),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 299,
        "args": argparse.Namespace(model="Conformer_nano_patch16", nb_classes=3),
    }


def openmmlab(weights: dict[str, Tensor]) -> object:
    return {"meta": {"dataset_meta": {"classes": CLASSES}}, "state_dict": to_openmmlab(weights)}


def test_predict_evaluate_and_export(tmp_path: Path) -> None:
    """The first in a process of its own, which knows the models by itself."""
    torch.manual_seed(0)
    weights = timm.create_model(MODEL, num_classes=3).state_dict()
    torch.save(authors(weights), tmp_path / "authors.pth")
    torch.save(openmmlab(weights), tmp_path / "openmmlab.pth")
    data = write_folders(tmp_path / "data", dict.fromkeys(CLASSES, 1))
    image, options = data / "bee" / "0.png", ("--device", "cpu", "--json")

    numbered = spawn("predict", tmp_path / "authors.pth", image, *options)
    assert numbered.status == 0 and "the names of the 3 classes" in numbered.err
    (by_number,) = json.loads(numbered.out)
    assert set(by_number["labels"]) == {"0", "1", "2"}
    named = run("predict", tmp_path / "openmmlab.pth", image, *options)
    assert (named.status, named.err) == (0, "")
    (by_name,) = json.loads(named.out)
    assert by_name["labels"] == [CLASSES[int(number)] for number in by_number["labels"]]
    assert by_name["probabilities"] == pytest.approx(by_number["probabilities"])

    done = run("evaluate", tmp_path / "openmmlab.pth", "--data", data, "--split", "all", *options)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["confusion"]["bee"] == {by_name["labels"][0]: 1}

    wrong = ("--arch", "conformer_tiny_patch16_224")
    for arguments in (
        ("export", tmp_path / "openmmlab.pth", "--format", "folded"),
        ("predict", tmp_path / "openmmlab.pth", image),
        ("evaluate", tmp_path / "openmmlab.pth", "--data", data),
    ):
        assert one_line(run(*arguments, *wrong)).endswith(
            f"holds the weights of another model than {wrong[1]}; name the right one with --arch\n"
        )
    done = run("export", tmp_path / "openmmlab.pth", "--format", "folded", "--arch", MODEL)
    assert done.status == 0, done.err
    exported = run("predict", tmp_path / "openmmlab-folded.safetensors", image, *options)
    (same,) = json.loads(exported.out)
    assert same["labels"] == by_name["labels"]
    assert same["probabilities"] == pytest.approx(by_name["probabilities"], abs=1e-4)
