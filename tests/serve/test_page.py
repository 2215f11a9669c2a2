"""The page in a real browser, against the real server: what a visitor drops, reads, moves and gets wrong."""

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from conformer_vision import Predictor
from conformer_vision.inference.predictor import Guess
from conformer_vision.pages.palette import PALETTE
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import Limits
from conformer_vision.serve.models import Loader
from http_server import png
from page_server import MadeUp, listening

playwright = pytest.importorskip("playwright.sync_api")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = "<img src=x onerror=alert(1)> \"'& 犬"
BROKEN = b"\x89PNG\r\n\x1a\n and no image"

pytestmark = pytest.mark.xdist_group("browser")

DROP = """([kind, files]) => {
    const transfer = new DataTransfer();
    for (const [name, data] of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
    }
    const options = { bubbles: true, cancelable: true };
    document.getElementById("drop").dispatchEvent(
        kind === "paste"
            ? new ClipboardEvent(kind, { ...options, clipboardData: transfer })
            : new DragEvent(kind, { ...options, dataTransfer: transfer }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium. It ends with this file: its event loop would be in the way of others."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("needs Chromium, which is not here")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page; at the end nothing has failed in it, and nothing came from elsewhere."""
    contexts, problems = [], list[str]()

    def visit(address: str, *, ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if "violates" in line.text else None)
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        inside = (f"{address}/", f"blob:{address}/", "data:")
        page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(r.url))
        page.goto(f"{address}/")
        if ready:
            page.get_by_text("version").first.wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def address(load: Loader) -> Iterator[str]:
    """A server of the real model."""
    with listening(load) as address:
        yield address


def hand_over(page: Any, kind: str, **files: bytes) -> None:
    """Drop or paste files; ``_png`` ends a name for ``.png``."""
    encoded = [[name.replace("_", "."), base64.b64encode(data).decode()] for name, data in files.items()]
    page.evaluate(DROP, [kind, encoded])


def rows(part: Any) -> list[tuple[str, str]]:
    """The names and percentages of bars."""
    return list(
        zip(part.locator("dt").all_inner_texts(), part.locator(".value").all_inner_texts(), strict=True)
    )


def test_drop_read_look_and_move_the_slider(
    visit: Callable[..., Any], address: str, run_folder: Path
) -> None:
    page = visit(address)
    assert (
        page.locator("#model").inner_text().startswith("run: conformer_nano_patch8_64, 10 classes, version ")
    )
    hand_over(page, "drop", photo_png=png(1))
    card = page.locator("#gallery > li")
    card.locator(".where").wait_for()
    (wanted,) = Predictor(run_folder, device="cpu")(png(1))
    shown = [f"{100 * share:.1f} %" for share in wanted.probabilities]
    both, conv, trans = (card.locator(".heads dl").nth(place) for place in range(3))
    assert card.locator("h3").inner_text() == "photo.png"
    assert card.locator(".headline").inner_text() == f"{wanted.labels[0]} {shown[0]}"
    assert rows(both) == list(zip(wanted.labels, shown, strict=True))
    for part, guess in ((conv, wanted.conv), (trans, wanted.trans)):
        assert guess is not None
        assert rows(part) == [(guess.label, f"{100 * guess.probability:.1f} %")]
    width = both.locator(".fill").first.evaluate("each => each.style.width")
    assert float(width.removesuffix("%")) == pytest.approx(100 * wanted.probabilities[0], abs=0.05)
    assert re.search(
        r"ms in all; on the server: network [\d.]+ ms, ", card.locator(".timing").first.inner_text()
    )
    assert page.locator("#status").inner_text() == "1 image answered."

    button = card.get_by_role("button", name="Where does it look?")
    button.focus()
    page.keyboard.press("Enter")
    slider = card.get_by_role("slider")
    slider.wait_for()
    assert card.locator(".heat").count() == 3
    for image in card.locator(".heat, .map").all():
        assert image.evaluate("each => each.decode().then(() => each.naturalWidth)") > 0
        assert image.get_attribute("alt")
    assert card.locator("figcaption b").all_inner_texts() == [
        "Convolution branch",
        "Transformer branch",
        "Both, coupled",
    ]
    last = int(slider.get_attribute("max"))
    output, image = card.locator("output"), card.locator(".map").first
    assert output.inner_text() == f"{last} of {last}"
    before = image.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert output.inner_text() == f"{last - 1} of {last}"
    assert slider.get_attribute("aria-valuetext") == f"block {last - 1} of {last}"
    assert image.get_attribute("src") != before
    assert image.get_attribute("alt") == f"Feature map of block {last - 1}"

    other = card.locator("select option").nth(1).get_attribute("value")
    heat = card.locator(".heat").first.get_attribute("src")
    card.locator("select").select_option(other)
    card.get_by_alt_text(f"Evidence for {other}: Convolution branch").wait_for()
    assert card.locator(".heat").first.get_attribute("src") != heat
    assert output.inner_text() == f"{last - 1} of {last}"  # the slider stays where it is
    card.get_by_role("button", name="Hide where it looks").click()
    assert not slider.is_visible()


def test_a_broken_file_fails_alone_and_many_make_a_gallery(visit: Callable[..., Any], address: str) -> None:
    page = visit(address, viewport={"width": 390, "height": 800}, color_scheme="dark", has_touch=True)
    assert page.locator("#camera").get_attribute("capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photo").click()
    assert not chooser.value.is_multiple()
    hand_over(page, "paste", a_png=png(1), b_png=BROKEN, c_png=png(2))
    page.get_by_text("3 images: 2 answered, 1 without an answer.").wait_for()
    cards = page.locator("#gallery > li")
    assert [cards.nth(place).locator(".result").is_visible() for place in range(3)] == [True, False, True]
    failure = cards.nth(1).locator(".failure")
    assert failure.inner_text().startswith("No answer. cannot be read as an image (")
    assert not failure.get_by_role("button").is_visible()  # trying again would not help
    assert cards.nth(1).locator(".missing").is_visible()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    page.set_input_files("#files", [{"name": "d.png", "mimeType": "image/png", "buffer": png(3)}])
    page.get_by_text("4 images: 3 answered, 1 without an answer.").wait_for()
    page.get_by_role("button", name="Clear all").click()
    assert cards.count() == 0 and not page.locator("#answers").is_visible()
    assert page.evaluate("() => document.activeElement.id") == "choose"
    hand_over(page, "drop")  # an image from another page is no file
    page.get_by_text("That was no file.").wait_for()


def test_what_a_screen_reader_and_a_keyboard_find(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    hand_over(page, "drop", a_png=png(1))
    page.locator(".where").wait_for()
    levels = [
        int(tag[1]) for tag in page.locator("h1, h2, h3, h4").evaluate_all("all => all.map((e) => e.tagName)")
    ]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= level + 1 for level, below in pairwise(levels))
    assert not page.get_by_role("button", name="Take a photo").is_visible()  # there is no touch screen
    page.locator("body").focus()
    reached = []
    for _ in range(5):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.textContent.trim()"))
    assert reached == ["Choose images", "Clear all", "Where does it look?", "same way", "The 10 classes"]
    assert page.locator("#gallery article").get_attribute("aria-busy") == "false"
    assert all(page.locator("img").evaluate_all("all => all.map((each) => each.alt !== '')"))


def test_unsure_answers_sets_and_names_that_are_no_html(visit: Callable[..., Any]) -> None:
    model = MadeUp(
        labels=(HOSTILE, "b"),
        probabilities=(0.75, 0.25),
        conv=Guess(HOSTILE, 0.5),
        trans=Guess("b", 1.0),
        unsure="the two heads disagree",
        conformal_set=(HOSTILE, "b"),
    )
    with listening(model.load(HOSTILE, "b")) as address:
        page = visit(address)
        hand_over(page, "drop", a_png=png())
        card = page.locator("#gallery > li")
        card.locator(".headline").wait_for()
        assert card.locator(".headline").inner_text() == f"{HOSTILE} 75.0 %"
        assert card.locator(".unsure").inner_text() == "Unsure: the two heads disagree"
        assert card.locator(".set").inner_text() == f"Set that holds the class: {HOSTILE}, b"
        assert page.get_by_text(
            "This server does not show where its model looks"
        ).is_visible()  # it is an export
        assert not card.locator(".where").is_visible()


def test_several_labels_and_one_head(visit: Callable[..., Any]) -> None:
    several = MadeUp(labels=("a", "b"), probabilities=(0.9, 0.2), present=("a",))
    with listening(several.load("a", "b", multilabel=True)) as address:
        page = visit(address)
        hand_over(page, "drop", a_png=png())
        card = page.locator("#gallery > li")
        card.locator(".headline").wait_for()
        assert card.locator(".headline").inner_text() == "a"
        assert rows(card) == [("a ✓ present", "90.0 %"), ("b", "20.0 %")]
        assert card.locator("h4").all_inner_texts() == ["The model"]
        assert not card.locator(".unsure").is_visible() and several.top_k == [5]
    with listening(MadeUp(labels=("a",), probabilities=(0.1,), present=()).load("a")) as address:
        page = visit(address)
        hand_over(page, "drop", a_png=png())
        page.get_by_text("No class").wait_for()


def test_a_busy_server_is_asked_again(visit: Callable[..., Any]) -> None:
    model = MadeUp(labels=("a",), probabilities=(1.0,))
    with listening(model.load("a"), limits=Limits(max_queue=1, max_images=1)) as address:
        page = visit(address)
        model.go.clear()
        hand_over(page, "drop", a_png=png(), b_png=png(), c_png=png(), d_png=png())
        page.get_by_text(re.compile("The server is busy. Trying again in [0-9]+ s")).first.wait_for()
        model.go.set()
        page.get_by_text("4 images answered.").wait_for()


def test_a_server_that_is_gone_can_be_asked_again(visit: Callable[..., Any]) -> None:
    model = MadeUp(labels=("a",), probabilities=(1.0,))
    with listening(model.load("a"), limits=Limits(max_body_mb=0.01)) as address:
        page = visit(address)
        page.route("**/predict", lambda route: route.abort())
        hand_over(page, "drop", a_png=png(), b_png=bytes(19_500))
        page.get_by_text("2 images: 0 answered, 2 without an answer.").wait_for()
        assert page.get_by_text("The server cannot be reached.").is_visible()
        assert page.get_by_text("It has 20 kB, and the server takes at most 10 kB.").is_visible()
        page.unroute("**/predict")
        page.get_by_role("button", name="Try again").locator("visible=true").click()
        page.get_by_text("2 images: 1 answered, 1 without an answer.").wait_for()


def test_a_server_that_asks_for_a_key(visit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    model = MadeUp(labels=("a",), probabilities=(1.0,))
    with listening(model.load("a"), keys=Keys(str(tmp_path / "keys"))) as address:
        assert httpx.get(f"{address}/model").status_code == 401
        page = visit(address, ready=False)
        field = page.get_by_label("This server asks for an API key")
        field.wait_for()
        for wrong, said in (("wrong", "does not know this key"), ("größe 1", "no spaces")):
            field.fill(wrong)
            page.keyboard.press("Enter")
            page.locator("#key-error").get_by_text(said).wait_for()
        hand_over(page, "drop", a_png=png())
        field.fill("secret")
        page.keyboard.press("Enter")
        page.get_by_text("1 image answered.").wait_for()
        assert not field.is_visible()


def style(name: str) -> str:
    return (files("conformer_vision.serve") / "page" / name).read_text(encoding="utf-8")


def test_the_colours_are_those_of_all_pages() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", style("style.css"), flags=re.DOTALL)
    for text, place in ((light, "light"), (dark, "dark")):
        found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))
        assert found == {name: getattr(colour, place) for name, colour in PALETTE.items()}


def test_text_can_be_read_in_light_and_dark() -> None:
    """WCAG AA: a contrast of 4.5 for text."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(map(float.__mul__, (0.2126, 0.7152, 0.0722), parts))

    pairs = [
        (text, ground) for text in ("ink", "muted", "conv", "bad", "good") for ground in ("page", "surface")
    ]
    for text, ground in [*pairs, ("ink", "warn"), ("surface", "conv"), ("muted", "track")]:
        for place in ("light", "dark"):
            one, other = (luminance(getattr(PALETTE[name], place)) for name in (text, ground))
            assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5, (text, ground, place)
