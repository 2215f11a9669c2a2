"""The table of answers, read again by pandas; hostile names come back as they are."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conformer_vision.data import ImageSource
from conformer_vision.data.stream import ImageStream, StreamedImage
from conformer_vision.errors import UserError
from conformer_vision.inference import save_predictions
from conformer_vision.inference.answers import Answers, Collector
from conformer_vision.inference.heads import OneLabel

HOSTILE = ("a,b", 'say "hi"', "two\nlines", "=1+1", "-7", "@sum", "fused:cat", "NA", "犬", "true")


class Named(ImageSource):
    def __init__(self, labels: list[int], groups: list[str] | None = None) -> None:
        super().__init__(HOSTILE, labels)
        self.groups = groups

    def image(self, index: int, need: object = None) -> Image.Image:
        raise NotImplementedError

    def name(self, index: int) -> str:
        return f"{HOSTILE[index]} \udce9.png"


class Stream(ImageStream):
    classes = HOSTILE

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        raise NotImplementedError


def answers(source: ImageSource | ImageStream, *, keep_all: bool = True) -> Answers:
    """Nine images in two batches by two heads, and a broken one."""
    torch.manual_seed(0)
    collector = Collector(10, kind=OneLabel(), classes=10, temperature=3.0, keep_all=keep_all)
    for rows in (torch.arange(4), torch.arange(4, 9)):
        logits = {head: torch.randn(len(rows), 10) for head in ("conv", "fused")}
        collector.add(logits, rows, rows, rows)
    return collector.finish(source, broken=[(9, 9, "true.png: cannot be read")])


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    text = dict.fromkeys(("image", "truth", "answer", "error"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"correct": [""]})


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    found = answers(Named(list(range(10))))
    path = tmp_path / f"answers{suffix}"
    save_predictions(found, HOSTILE, path)
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"
    table = read(path)
    heads = [f"{head}:{name}" for head in ("conv", "fused") for name in HOSTILE]
    assert list(table.columns) == ["image", "truth", "answer", "correct", "error", *heads]
    assert len(table) == 10

    def shown(text: str) -> str:
        formula = text[0] in "=@" or text.startswith("-7 ")
        return f"'{text}" if formula and suffix != ".parquet" else text

    assert table["truth"].tolist() == [shown(name) for name in HOSTILE]
    assert table["image"].tolist()[:9] == [shown(f"{name} \\udce9.png") for name in HOSTILE[:9]]
    assert table["image"][9] == "true \\udce9.png"
    for row in range(9):
        head = found.heads["fused"]
        assert table["answer"][row] == shown(HOSTILE[head.predicted[row]])
        assert str(table["correct"][row]).lower() == str(bool(head.predicted[row] == row)).lower()
        for name in ("conv", "fused"):
            own = found.heads[name]
            wanted = (own.logits[row] / own.temperature).softmax(0)
            given = table.loc[row, [f"{name}:{each}" for each in HOSTILE]].astype(float)
            assert np.allclose(given, wanted, atol=1e-7)
    assert table["error"][9] == "true.png: cannot be read"
    assert table["error"][0] in (None, "") or pd.isna(table["error"][0])
    assert table["answer"][9] in (None, "") or pd.isna(table["answer"][9])


def test_a_number_is_no_formula(tmp_path: Path) -> None:
    save_predictions(answers(Named(list(range(10)))), HOSTILE, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["truth"] for row in rows[3:6]] == ["'=1+1", "-7", "'@sum"]


def test_groups_and_streams(tmp_path: Path) -> None:
    save_predictions(
        answers(Named(list(range(10)), [f"p{i // 2}" for i in range(10)])), HOSTILE, tmp_path / "a.parquet"
    )
    assert read(tmp_path / "a.parquet")["group"].tolist() == [f"p{i // 2}" for i in range(10)]
    save_predictions(answers(Stream()), HOSTILE, tmp_path / "b.parquet")
    table = read(tmp_path / "b.parquet")
    assert table["image"][0] == "image 1 of the stream" and table["image"][9] == "image 10 of the stream"
    assert pd.isna(table["truth"][9]), "the stream does not say"


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answers(Named(list(range(10))))
    for name in ("a.xlsx", "a", "a.csv.gz", "csv"):
        with pytest.raises(UserError, match=r"give a name that ends in \.csv or \.parquet"):
            save_predictions(found, HOSTILE, tmp_path / name)
    with pytest.raises(UserError, match="cannot write"):
        save_predictions(found, HOSTILE, tmp_path / "none" / "a.csv")
    monkeypatch.setattr("conformer_vision.inference.answers.MOST_KEPT", 40)
    part = answers(Named(list(range(10))), keep_all=False)
    with pytest.raises(UserError, match="not all kept"):
        save_predictions(part, HOSTILE, tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []
