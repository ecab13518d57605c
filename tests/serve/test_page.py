"""The page in a real browser: Chromium, with a recording for its microphone, asks about the drawing."""

import re
import shutil
from pathlib import Path

import pytest

from mmspeech.checkpoint import EMBEDDED

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt install chromium"),
    pytest.mark.skipif(not (EMBEDDED / "config.json").is_file(), reason="no embedded model in this checkout"),
]
ANSWER_MS = 12_000
TRIES = 4


@pytest.fixture
def open_page(served):
    """Open the page in a browser that has a microphone, or none; closes it and finds errors in the console."""
    with sync_api.sync_playwright() as play:
        errors: list[str] = []

        def opened(*, microphone: str | None = "what_colour.wav", width: int = 1200):
            args = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
            if microphone is not None:
                args += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
                args.append(f"--use-file-for-fake-audio-capture={EXAMPLES / microphone}%noloop")
            browser = play.chromium.launch(executable_path=CHROMIUM, args=args)
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(served)
            return page

        yield opened
        assert not errors, errors


def asked(page, button: str, word: str, *, hang_up: bool) -> None:
    """Press a button that asks aloud until the answer has the word: where a busy machine is late, what is said is lost
    as on a bad line, and who gets no answer hangs up or not, and asks again."""
    transcript = page.locator("#transcript")
    for left in reversed(range(TRIES)):
        page.click(button)
        try:
            sync_api.expect(transcript).to_contain_text(re.compile(rf"\b{word}\b"), timeout=ANSWER_MS)
        except AssertionError:
            if not left:
                raise
            if hang_up:
                page.click(button)
        else:
            return


def test_what_is_drawn_is_what_it_says(open_page):
    page = open_page()
    asked(page, "#start", "red", hang_up=True)
    assert "listening" in page.inner_text("#status")
    colours = page.eval_on_selector_all("#transcript span", "all => new Set(all.map(one => one.style.color)).size")
    assert colours >= 1 and page.inner_text("#gate-now")
    with page.expect_download() as wav:
        page.click("#save-wav")
    assert wav.value.suggested_filename == "call.wav" and Path(wav.value.path()).stat().st_size > 100_000
    page.click("#start")
    assert page.inner_text("#start") == "Call"


def test_without_a_microphone_a_question_is_played(open_page):
    page = open_page(microphone=None)
    page.keyboard.press("Tab")
    page.click("text=blue >> nth=0")
    page.focus("#drawing")
    page.keyboard.press("5")  # away with the red circle
    page.keyboard.press("5")  # and there a blue one
    asked(page, "#ask-what_colour", "blue", hang_up=False)


def test_no_microphone_is_explained(open_page):
    page = open_page(microphone=None)
    page.click("#start")
    page.wait_for_selector("#status.fault", timeout=ANSWER_MS)
    assert "microphone" in page.inner_text("#status").lower()
    assert page.inner_text("#start") == "Call"


def test_it_fits_a_phone(open_page):
    page = open_page(width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
