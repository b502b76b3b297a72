"""The figures at the head of the page: the true delay from voice to lips, and no other."""

import pytest
from support.browser_tools import live, needs_browser, visiting

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

SCENE = """
async () => {
  const { Readout } = await import("/stats-panel.js");
  const figures = { quality: 4, bufferMs: 30, rttMs: 5, lostPercent: 0 };
  window.scene = Object.assign(new EventTarget(), {
    state: "live",
    speaking: false,
    serverStats: null,
    stats: async () => figures,
    tell(type) {
      this.speaking = type === "speaking";
      this.dispatchEvent(new Event(type));
    },
  });
  const part = (name) => document.createElement(name);
  window.parts = { bars: part("i"), delay: part("b"), list: part("dl") };
  window.readout = new Readout(scene, parts);
}
"""


@pytest.fixture
def page(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.evaluate(SCENE)
        yield page


def shown(page):
    """Wait for the figure; give it, in ms."""
    page.wait_for_function("!parts.delay.hidden && parts.delay.textContent")
    return int(page.evaluate("parts.delay.textContent").removesuffix(" ms"))


def test_without_a_word_no_figure_stands_in(page):
    page.evaluate("scene.tell('speaking')")  # a file is played, or another page speaks
    page.wait_for_function("parts.list.children.length > 0")
    assert page.evaluate("parts.delay.hidden")
    assert "speak to measure" in page.evaluate("parts.list.textContent")


def test_the_delay_is_that_of_a_word_and_its_answer(page):
    page.evaluate("readout.spoken(performance.now() - 400); scene.tell('speaking')")
    first = shown(page)
    assert 430 <= first < 1000
    # A pause too short for the microphone, long enough for the avatar to come to rest.
    page.evaluate("scene.tell('idle')")
    page.wait_for_timeout(1200)
    page.evaluate("scene.tell('speaking')")
    page.wait_for_timeout(1200)
    assert shown(page) == first


def test_the_middle_of_the_last_words_counts(page):
    for ago_ms in (300, 3500, 310, 320, 290):
        page.evaluate(
            f"readout.spoken(performance.now() - {ago_ms}); scene.tell('speaking');"
            "scene.tell('idle')"
        )
    page.wait_for_timeout(1200)
    assert 330 <= shown(page) < 900
