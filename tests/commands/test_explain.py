"""``conformer-vision explain`` and ``predict --page``: files, lines and pages."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command_line import one_line, run
from conformer_vision.errors import Terminated
from conformer_vision.explain import Explainer
from conformer_vision.weights import save_model
from exports import FILES
from pages import Page

HOSTILE = "<img src=x onerror=alert(1)>.png"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images of one name, one of a hostile name, one broken."""
    folder = tmp_path / "photos"
    for place in ("a/one.png", "b/one.png", HOSTILE, "wide.jpg"):
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((90, 60 if "wide" in place else 90), 60).convert("RGB").save(path)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_files_lines_and_page(trained: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(
        "explain", trained, photos, "--out", out, "--classes", "3", "7", "--couplings", "--device", "cpu"
    )
    assert done.status == 1, "one image is broken"
    assert "skipped: " in done.err and "1 of the images could not be read" in done.err
    written = sorted(path.name for path in out.iterdir())
    stems = ["img-src-x-onerror-alert-1", "one", "one~2", "wide"]
    names = [f"{stem}-{kind}.png" for stem in stems for kind in ("3-cam", "7-cam", "couplings")]
    assert written == sorted([*names, "explained.html"])
    assert done.out.count("\n") == 13
    assert re.search(
        r"one.png: 3 \d+\.\d% \(conv \d+\.\d%, trans \d+\.\d%\), see .*one-3-cam.png\n", done.out
    )
    with Image.open(out / "wide-3-cam.png") as drawn:
        assert drawn.size == (90, 60)
    page = Page(out / "explained.html")
    ((policy, script),) = zip(
        re.findall(r"script-src 'sha256-([^']+)'", page.source),
        re.findall("<script>(.*?)</script>", page.source, re.DOTALL),
        strict=True,
    )
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() == policy
    assert page.tags["script"] == 1 and page.tags["article"] == 4
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert all("alt" in attributes for tag, attributes in page.elements if tag == "img")
    assert page.values("max") == ["5"] * 4, "the blocks of this network"
    assert HOSTILE in page.text


def test_a_network_with_one_head(tmp_path: Path, photos: Path, other_weights: Path) -> None:
    out = tmp_path / "out"
    done = run("explain", other_weights, photos / "wide.jpg", "--out", out, "--device", "cpu")
    assert (done.status, done.err) == (0, "")
    assert "conv" not in done.out
    page = Page(out / "explained.html")
    assert page.tags["select"] == 1 and not page.values("max")
    line = one_line(run("explain", other_weights, photos, "--out", out, "--couplings", "--device", "cpu"))
    assert "has no couplings; a Conformer has" in line


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm

    from conformer_vision import ModelSpec

    path = tmp_path_factory.mktemp("other") / "resnet.safetensors"
    model = timm.create_model("test_resnet", num_classes=3)
    save_model(model, ModelSpec("test_resnet", classes=("a", "b", "c"), input_size=(3, 64, 64)), path)
    return path


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--method", "cram"], "method 'cram': must be one of cam"),
        (["--classes", "eleven"], "has no class 'eleven'"),
        (["--top_k", "0"], "--top_k 0: must be 1 or more"),
        (["--cut", "2"], "--cut is for the figure of the couplings; add --couplings"),
        (["--couplings", "--cut", "1"], "block 1 has no couplings"),
        (["--blocks", "2"], "method cam has no choice of blocks"),
        (["--scales", "0"], "give one or more positive numbers"),
        (["--input_size", "8"], "each edge must be 32 pixels or more"),
    ],
)
def test_mistakes(trained: Path, photos: Path, tmp_path: Path, options: list[str], line: str) -> None:
    out = tmp_path / "out"
    assert line in one_line(run("explain", trained, photos / "wide.jpg", "--out", out, *options))
    assert not out.exists() or not list(out.glob(".*"))


def test_a_folder_that_cannot_be_made(trained: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = one_line(run("explain", trained, photos / "wide.jpg", "--out", tmp_path / "file"))
    assert "cannot make the folder" in line and "a file of that name exists" in line


def test_a_page_of_predictions(trained: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.html"
    done = run("predict", trained, photos, "--page", out, "--device", "cpu")
    assert done.status == 1 and done.out.count("\n") == 4
    page = Page(out)
    page.check_complete()
    assert "Answers for 5 images" in page.text and "Images, the least sure first" in page.text
    assert "broken.png: cannot be read" in page.text and HOSTILE in page.text
    assert page.tags["img"] == 8, "four images, each with its heat map"
    shares = [
        float(text) for text in re.findall(r"<li><bdi>\d</bdi> <span class=\"value\">([\d.]+) %", page.source)
    ]
    firsts = shares[::3]
    assert len(firsts) == 4 and firsts == sorted(firsts)


@pytest.mark.xdist_group("export")
def test_the_page_of_an_export_says_that_it_has_no_heat_maps(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    done = run(
        "predict",
        exported / FILES["onnx"],
        photos / "wide.jpg",
        "--page",
        tmp_path / "answers.html",
        "--device",
        "cpu",
    )
    assert done.status == 0
    page = Page(tmp_path / "answers.html")
    page.check_complete()
    assert "An exported file has no heat maps." in page.text and page.tags["img"] == 1


def test_output_stride_and_two_folders_of_images(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("explain", photos / "a", photos / "b", "--out", out, "--output_stride", "8", "--device", "cpu")
    assert done.status == 0 and done.err.startswith("using the bundled weights")
    assert sorted(path.suffix for path in out.iterdir()) == [".html", ".png", ".png"]
    done = run("localize", photos / "a", "--out", tmp_path / "found", "--output_stride", "16")
    assert one_line(done).startswith("error: --output_stride 16 changes nothing: ")
    done = run("explain", tmp_path / "empty", photos, "--out", out)
    assert "empty" in one_line(done)
    (tmp_path / "empty").mkdir()
    done = run("explain", tmp_path / "empty", photos, "--out", out)
    assert "is it a run folder?" in one_line(done)


@pytest.mark.parametrize(("interrupt", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_the_page_holds_what_was_done(
    interrupt: type[BaseException],
    status: int,
    trained: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    show = Explainer.show

    def interrupted(self: Explainer, inputs: Any) -> Any:
        found = show(self, inputs)
        yield from itertools.islice(found, 3)
        raise interrupt

    monkeypatch.setattr(Explainer, "show", interrupted)
    out = tmp_path / "out"
    done = run("explain", trained, photos, "--out", out, "--device", "cpu")
    assert done.status == status
    assert "stopped after 3 of 5 images\n" in done.err
    assert Page(out / "explained.html").tags["article"] == len(list(out.glob("*.png")))
