"""The text box of the page: what is typed is spoken, by keyboard and on a phone."""

import pytest
from support.browser_tools import (
    TRAINED,
    artefacts,
    live,
    needs_browser,
    running,
    split,
    visiting,
    watch_mouth,
)
from support.packages import needs

pytest.importorskip("playwright.sync_api")
pytestmark = [
    needs_browser,
    needs("espeak-ng"),
]
SENTENCE = "Hello there! What a wonderful open morning."
SPOKEN = """
() => {
  const first = window.seen.findIndex(([, , speaking]) => speaking);
  const last = window.seen.findLastIndex(([, , speaking]) => speaking);
  return first >= 0 && window.seen.length - last > 30;
}
"""


def test_a_typed_sentence_is_spoken(browser, server):
    with visiting(browser, server) as page:
        live(page)
        watch_mouth(page)
        assert page.is_disabled("#say-send"), "there is nothing to say yet"
        page.get_by_label("Text for the avatar to speak").fill(SENTENCE)
        page.screenshot(path=artefacts() / "text-typed.png")
        page.keyboard.press("Enter")
        assert page.input_value("#say-text") == ""
        page.wait_for_selector("body[data-speaking]")
        page.screenshot(path=artefacts() / "text-spoken.png")
        page.wait_for_function(SPOKEN)
        moving, resting = split(page.evaluate("window.seen"))
        assert page.inner_text("#audio-toggle-label") == "Sound on"
        assert page.is_hidden("#notice")
    assert moving.mean() > 4 * resting.mean(), (moving.mean(), resting.mean())


def test_typing_does_not_trigger_the_keys_of_the_page_and_escape_interrupts(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.fill("#say-text", "one two three four five six seven eight nine ten " * 5)
        page.click("#say-send")
        page.wait_for_selector("body[data-speaking]")
        page.keyboard.press("Escape")
        page.wait_for_selector("body:not([data-speaking])")
        page.fill("#say-text", "")
        page.type("#say-text", "a b c")
        assert page.input_value("#say-text") == "a b c"
        assert page.get_attribute("body", "data-mic") == "off"


def test_what_cannot_be_spoken_is_explained(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.fill("#say-text", "\U0001f600")
        page.keyboard.press("Enter")
        page.wait_for_selector("#notice:not([hidden])")
        assert "cannot be spoken" in page.inner_text("#notice")
        assert page.is_disabled("#interrupt")


def test_it_fits_a_phone(browser, server):
    with visiting(browser, server) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        live(page)
        page.fill("#say-text", SENTENCE)
        page.locator("#say").scroll_into_view_if_needed()
        page.screenshot(path=artefacts() / "text-phone.png")
        box = page.locator("#say-send").bounding_box()
        field = page.locator("#say-text").bounding_box()
        assert min(box["height"], field["height"]) >= 44 and box["x"] + box["width"] <= 360
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        size = page.evaluate("getComputedStyle(document.getElementById('say-text')).fontSize")
        assert size == "16px", "smaller text makes phones zoom in"


def test_without_a_voice_the_box_is_off_and_says_why(browser):
    with running([*TRAINED, "--speech", "off"]) as address, visiting(browser, address) as page:
        live(page)
        assert page.is_disabled("#say-text") and page.is_disabled("#say-send")
        assert "no voice for text" in page.inner_text("#say-hint")
