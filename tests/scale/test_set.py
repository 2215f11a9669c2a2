"""Large sets without a cluster: lists, parts, going on, and answers as of plain ``predict``."""

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from command_line import Done, run
from conformer_vision.inference import Prediction
from conformer_vision.scale import run as scale_run
from conformer_vision.scale.cluster import Shares, _shares
from conformer_vision.scale.folder import AnswerFolder, Part, part_size
from conformer_vision.scale.listing import list_images
from conformer_vision.scale.stores import Input, without_keys
from conformer_vision.scale.worker import ANSWERS, Job, Worker
from exports import make_run

BATCH = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("model") / "run")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine images in two folders, one of them broken; the test works beside them."""
    monkeypatch.chdir(tmp_path)
    folder = Path("photos")
    for number in range(1, 9):
        draw(folder / ("inner" if number % 3 == 0 else "") / f"img{number}.png", number)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")


class Cluster:
    """Stands in for a cluster: parts are answered in this process, and processes die when told to."""

    def __init__(self) -> None:
        self.answered: list[Part] = []
        self.deaths: dict[Part, int] = {}
        self.stop_after = 1_000_000

    @contextmanager
    def open(self, *, workers: int | None, device: str) -> Iterator[Shares]:
        yield Shares(workers or 2, 1, 0)

    def round(self, job: Job, parts: Sequence[Part], shares: Shares) -> Iterator[dict[str, Any]]:
        worker = Worker(job)
        for part in reversed(parts):  # a cluster has no order
            if self.deaths.get(part, 0):
                self.deaths[part] -= 1
                continue
            if len(self.answered) == self.stop_after:
                raise KeyboardInterrupt
            answered = worker({name: np.array([value]) for name, value in part._asdict().items()})
            self.answered.append(part)
            yield {name: column[0] for name, column in answered.items()}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(scale_run, "open_cluster", cluster.open)
    monkeypatch.setattr(scale_run, "_round", cluster.round)
    monkeypatch.setattr("conformer_vision.commands.predict_set.check_installed", lambda *names: None)
    return cluster


def predict(*arguments: object, output: str = "answers") -> Done:
    return run("predict", *arguments, f"--batch_size={BATCH}", "--engine=ray", "--output", output)


def failure(done: Done) -> str:
    """The error of a command, which is one line behind the notes."""
    assert done.status == 2, done
    *notes, line = done.err.splitlines()
    assert line.startswith("error: "), done.err
    assert not any(note.startswith(("error", "Traceback")) for note in notes)
    return line


def plain(*arguments: object) -> dict[str, dict[str, Any]]:
    """What ``predict`` says without a cluster, by name."""
    done = run("predict", *arguments, f"--batch_size={BATCH}", "--json")
    return {answer["name"]: answer for answer in json.loads(done.out)}


def answers(folder: str = "answers") -> dict[str, dict[str, Any]]:
    """The rows of a folder by name; none is there twice."""
    table = parquet.read_table(folder)
    assert table.schema.remove_metadata() == ANSWERS
    rows = table.to_pylist()
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def assert_same(found: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    """Probabilities up to rounding, as batches differ, and everything else exactly."""
    assert found.keys() == wanted.keys()
    for name, answer in wanted.items():
        row = dict(found[name])
        for head in ("conv", "trans"):
            guess = row.pop(head)
            if answer[head] is None:
                assert guess is None
            else:
                assert guess["label"] == answer[head][0]
                assert guess["probability"] == pytest.approx(answer[head][1], abs=1e-6)
        assert row.pop("probabilities") == pytest.approx(answer["probabilities"], abs=1e-6)
        for key, value in row.items():
            assert value == answer[key], (name, key)


def test_the_columns_are_the_fields_of_an_answer() -> None:
    assert ANSWERS.names == [field.name for field in dataclasses.fields(Prediction)]


@pytest.mark.parametrize(
    "options", [["--top_k=2"], ["--tta=flip", "--input_size=64"], ["--no_reject"]], ids=" ".join
)
def test_answers_are_those_of_predict(
    model: Path, photos: Path, cluster: Cluster, options: list[str]
) -> None:
    done = predict(model, photos, *options)
    assert done.status == 1, "as of predict with a broken image"
    assert done.out == "answers: the answers to 9 images, 9 of them new\n"
    assert "1 of the new images could not be read" in done.err
    assert len(cluster.answered) > 2
    assert_same(answers(), plain(model, photos, *options))


def test_several_labels_and_sets(photos: Path, cluster: Cluster) -> None:
    """With the bundled weights, which have thresholds."""
    assert predict(photos, "--conformal=0.2").status == 1
    assert_same(answers(), plain(photos, "--conformal=0.2"))


def test_a_command_goes_on(model: Path, photos: Path, cluster: Cluster) -> None:
    """After Ctrl-C nothing is answered twice, and images that came since are answered too."""
    cluster.stop_after = 2
    done = predict(model, photos)
    assert done.status == 130
    assert "the same command goes on" in done.err
    before = {path.name: path.stat().st_mtime_ns for path in Path("answers").glob("part-*")}
    assert len(before) == 2
    (Path("answers") / ".0123456789ab.tmp.parquet").write_bytes(b"left by a killed process")
    draw(photos / "later.png", 77)
    cluster.stop_after = 1_000_000
    done = predict(model, photos)
    assert "of 10 images are answered already" in done.err
    after = {path.name: path.stat().st_mtime_ns for path in Path("answers").glob("part-*")}
    assert before.items() <= after.items()
    assert len(cluster.answered) == len(set(cluster.answered))
    assert not list(Path("answers").glob(".*"))
    assert_same(answers(), plain(model, photos))
    done = predict(model, photos)
    assert (done.status, done.out) == (0, "answers: the answers to 10 images, 0 of them new\n")


def test_parts_that_are_not_whole_are_done_again(model: Path, photos: Path, cluster: Cluster) -> None:
    predict(model, photos)
    first, second, *_ = sorted(Path("answers").glob("part-*"))
    first.write_bytes(first.read_bytes()[:-20])
    second.unlink()
    cluster.answered.clear()
    predict(model, photos)
    assert sorted(part.file for part in cluster.answered) == [first.name, second.name]
    assert_same(answers(), plain(model, photos))


def test_parts_of_processes_that_die_are_done_by_others(model: Path, photos: Path, cluster: Cluster) -> None:
    cluster.deaths = {Part(0, 0): 2, Part(0, 2): 1}
    assert predict(model, photos).status == 1
    assert_same(answers(), plain(model, photos))


def test_images_that_kill_every_process(model: Path, photos: Path, cluster: Cluster) -> None:
    cluster.deaths = {Part(0, 1): 1000}
    line = failure(predict(model, photos))
    assert "processes died again and again with the images of part-000-00001.parquet" in line
    assert len(list(Path("answers").glob("part-*"))) == len(cluster.answered) == 4, "the others are answered"


def test_changed_and_removed_images(model: Path, photos: Path, cluster: Cluster) -> None:
    predict(model, photos)
    before = answers()
    draw(photos / "img1.png", 99)
    os.utime(photos / "img1.png", ns=(1, 1))
    (photos / "img2.png").unlink()
    done = predict(model, photos)
    assert "1 images have changed since they were listed; their answers stay" in done.err
    assert answers() == before


def test_names(model: Path, photos: Path, cluster: Cluster) -> None:
    """Names with line breaks and without UTF-8; an image that is given twice is answered once."""
    if sys.platform != "linux":
        pytest.skip("needs names that are not UTF-8")
    shutil.copy(photos / "img1.png", photos / "a\nb.png")
    shutil.copy(os.fsencode(photos / "img1.png"), os.fsencode(photos) + b"/\xff.png")
    again = "./photos/img5.png", (photos / "img4.png").absolute(), "photos/"
    done = predict(model, photos / "img2.png", photos, *again)
    assert "the answers to 11 images" in done.out, done
    wanted = plain(model, photos)
    escaped = {name.encode("utf-8", "backslashreplace").decode(): answer for name, answer in wanted.items()}
    for name, answer in escaped.items():
        answer["name"] = name
    assert_same(answers(), escaped)


def test_natural_order(photos: Path) -> None:
    draw(photos / "img10.png", 10)
    names = [Path(os.fsdecode(path)).name for path in list_images([Input.open("photos")])["path"].to_pylist()]
    assert names == ["broken.jpg", *(f"img{number}.png" for number in (1, 2, 4, 5, 7, 8, 10, 3, 6))]


def test_a_store(model: Path, photos: Path, cluster: Cluster) -> None:
    """A file system that is reached by an address; also after the command was stopped."""
    address = f"fsspec+file://{photos.absolute()}"
    done = predict(model, address)
    assert done.out.startswith("answers: the answers to 9 images")
    assert "passed over 1 file" in done.err
    wanted = {name.replace("photos", address, 1): answer for name, answer in plain(model, photos).items()}
    for name, answer in wanted.items():
        answer["name"] = name
        if answer["error"] is not None:
            answer["error"] = answer["error"].replace("photos", address, 1)
    assert_same(answers(), wanted)
    assert predict(model, f"{address}/img1.png", output="one").status == 0
    assert_same(answers("one"), {f"{address}/img1.png": wanted[f"{address}/img1.png"]})


def test_what_a_store_does_not_give_is_asked_for_again(
    model: Path, photos: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformer_vision.scale.stores import Store

    address, read = f"fsspec+file://{photos.absolute()}", Store.read

    def refuse(self: Store, path: str) -> bytes:
        if path.endswith("img4.png"):
            raise OSError("timeout")
        if path.endswith("img5.png"):
            raise FileNotFoundError(2, "No such file or directory")
        return read(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", refuse)
        done = predict(model, address)
    assert "3 of the new images could not be read" in done.err
    assert "1 of these were not given by their store; the same command asks again" in done.err
    assert answers()[f"{address}/img4.png"]["error"] == f"{address}/img4.png: cannot be fetched (timeout)"
    cluster.answered.clear()
    predict(model, address)
    assert len(cluster.answered) == 1
    found = answers()
    assert found[f"{address}/img4.png"]["error"] is None
    assert "No such file" in found[f"{address}/img5.png"]["error"], "is gone for good"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing does not exist"),
        (["empty"], "empty holds no images of a format that is read"),
        (["fsspec+file:///nothing-here"], "fsspec+file:///nothing-here does not exist"),
        (["ftp://host/photos"], "no store of pyarrow; give a path, s3://"),
        (["fsspec+nothing://key:secret@host/photos?token=1"], "fsspec+nothing://host/photos: no store"),
        (["photos", "--top_k=0"], "top_k 0: must be 1 or more"),
        (["photos", "--json"], "--engine ray writes parquet files; leave out --json"),
        (["photos", "--page=page.html"], "leave out --page"),
    ],
)
def test_mistakes(model: Path, photos: Path, cluster: Cluster, arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    assert message in failure(predict("--model", model, *arguments))
    assert not Path("answers").exists()


def test_options_of_an_engine(model: Path, photos: Path) -> None:
    assert "--engine ray needs --output" in failure(run("predict", model, photos, "--engine=ray"))
    assert "--output is for --engine ray" in failure(run("predict", model, photos, "--output=answers"))
    assert "--workers is for --engine ray" in failure(run("predict", model, photos, "--workers=2"))


def test_another_folder_is_asked_for(model: Path, photos: Path, cluster: Cluster) -> None:
    predict(model, photos)
    before = answers()
    other = make_run(Path("other"))
    (other / "best.safetensors").write_bytes((model / "best.safetensors").read_bytes())
    assert predict(other, photos).status == 0, "the same weights elsewhere"
    assert "holds answers of another model" in failure(predict(photos))
    assert "holds answers with top_k 3, not 2; give another --output" in failure(
        predict(model, photos, "--top_k=2")
    )
    assert "holds answers to other images" in failure(predict(model, photos / "img1.png"))
    assert answers() == before
    Path("full").mkdir()
    Path("full/file").touch()
    assert "--output full holds other files" in failure(predict(model, photos, output="full"))


def test_a_model_that_differs_elsewhere(
    model: Path, photos: Path, cluster: Cluster, monkeypatch: Any
) -> None:
    monkeypatch.setattr("conformer_vision.scale.worker.version_of", lambda source: "another")
    assert "best.safetensors is another file on another machine" in failure(predict(model, photos))


def test_two_commands_at_once(photos: Path) -> None:
    """Of two that list images at the same time, one does; the other says so."""
    images = list_images([Input.open("photos")])
    folder, other = AnswerFolder(Path("answers")), AnswerFolder(Path("answers"))
    settings: dict[str, Any] = {"model": {}, "inputs": [], "options": {}}
    folder.add(images, settings, part_size=4)
    images_again, changed = other.without_listed(images)
    assert (len(images_again), changed) == (0, 0)
    place = Path("answers/_lists/001")
    rename = os.rename

    def rename_late(before: Path, after: Path) -> None:
        shutil.copytree("answers/_lists/000", place)
        rename(before, after)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename_late)
        with pytest.raises(ValueError, match="another command adds images to answers"):
            other.add(images, settings, part_size=4)
    assert sorted(os.listdir("answers/_lists")) == ["000", "001"]


def test_part_sizes() -> None:
    assert part_size(9, workers=2, batch_size=2) == 2
    assert part_size(1000, workers=1, batch_size=32) == 128
    assert part_size(10_000_000, workers=8, batch_size=32) == 2048
    assert part_size(100_000_000, workers=8, batch_size=32) == 3360, "no more row groups than parquet has"


def test_how_a_cluster_is_shared() -> None:
    assert _shares({"CPU": 8.0}, workers=None, device="auto") == Shares(8, 1, 0)
    assert _shares({"CPU": 8.0}, workers=3, device="cpu") == Shares(3, 1, 0)
    assert _shares({"CPU": 32.0, "GPU": 4.0}, workers=None, device="auto") == Shares(4, 8, 1)
    assert _shares({"CPU": 32.0, "GPU": 4.0}, workers=None, device="cpu") == Shares(32, 1, 0)
    for message, total, workers, device in (
        (r"workers=9: the Ray cluster has 8 CPUs", {"CPU": 8.0}, 9, "auto"),
        (r"device='cuda': the Ray cluster has no GPU", {"CPU": 8.0}, None, "cuda"),
        (r"no CPU to compute with", {}, None, "auto"),
    ):
        with pytest.raises(ValueError, match=message):
            _shares(total, workers=workers, device=device)


def test_keys_are_not_shown() -> None:
    assert without_keys("s3://KEY:SECRET@bucket/a?region=x&secret_key=y") == "s3://bucket/a"
    assert re.search("SECRET|secret", Input.open("fsspec+memory://KEY:SECRET@bucket/a").shown) is None
