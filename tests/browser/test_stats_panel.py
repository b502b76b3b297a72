"""The statistics panel: it shows the measured delay from voice to lips, or none."""

import pytest
from support.browser_tools import live, needs_browser, visiting

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

SET_UP = """
async () => {
  const { StatsPanel } = await import("/stats-panel.js");
  const stats = { quality: 4, bufferMs: 30, rttMs: 5, lostPercent: 0 };
  window.avatar = Object.assign(new EventTarget(), {
    state: "live",
    speaking: false,
    serverStats: null,
    stats: async () => stats,
    emit(type) {
      this.speaking = type === "speaking";
      this.dispatchEvent(new Event(type));
    },
  });
  const make = (tag) => document.createElement(tag);
  window.elements = { bars: make("i"), delay: make("b"), list: make("dl") };
  window.panel = new StatsPanel(avatar, elements);
}
"""


@pytest.fixture
def page(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.evaluate(SET_UP)
        yield page


def run(page, script):
    """Run a script, then update the panel; return the delay that it shows in ms, or None."""
    page.evaluate(f"async () => {{ {script}; await new Promise(requestAnimationFrame); }}")
    page.evaluate("panel.update()")
    if page.evaluate("elements.delay.hidden"):
        return None
    return int(page.evaluate("elements.delay.textContent").removesuffix(" ms"))


def test_no_delay_is_shown_before_the_visitor_has_spoken(page):
    assert run(page, "avatar.emit('speaking')") is None  # a file, or another page speaks
    assert "speak to measure" in page.evaluate("elements.list.textContent")


def test_the_delay_is_measured_from_the_onset_to_the_speaking_event(page):
    delay_ms = run(page, "panel.onSpeechStart(performance.now() - 400); avatar.emit('speaking')")
    assert 430 <= delay_ms < 1000
    # After a pause too short to count as an onset the avatar speaks again: no new measurement.
    assert run(page, "avatar.emit('idle'); avatar.emit('speaking')") == delay_ms


def test_the_median_of_the_last_delays_is_shown(page):
    for ago_ms in (300, 3500, 310, 320, 290):
        delay_ms = run(
            page,
            f"panel.onSpeechStart(performance.now() - {ago_ms}); avatar.emit('speaking');"
            "avatar.emit('idle')",
        )
    assert 330 <= delay_ms < 900


def test_without_a_measurement_the_delay_is_what_server_network_and_buffer_tell(page):
    assert page.evaluate("panel.voiceMs") is None
    page.evaluate("avatar.serverStats = { stages_ms: { live: { p50: 300.4 } } }")
    page.evaluate("panel.update()")
    assert page.evaluate("panel.voiceMs") == 335, "with 5 ms of round trip and 30 ms of buffer"
    measured_ms = run(page, "panel.onSpeechStart(performance.now() - 700); avatar.emit('speaking')")
    assert page.evaluate("panel.voiceMs") == measured_ms > 700


def test_the_delay_of_a_text_holds_until_something_else_is_said(page):
    run(page, "panel.onText(performance.now() - 500); avatar.emit('speaking')")
    assert 530 <= page.evaluate("panel.textMs") < 1100
    run(page, "avatar.emit('idle'); avatar.emit('speaking')")
    assert page.evaluate("panel.textMs") is None
