"""Moods, gestures and listening on the page: by mouse, keyboard and finger, and from a script."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
from support.browser_tools import (
    PAINTED,
    artefacts,
    live,
    needs_browser,
    running,
    visiting,
)
from support.live_server import join
from support.packages import needs

pytest.importorskip("playwright.sync_api")
pytest.importorskip("pocketsphinx")
pytestmark = [needs_browser, needs("espeak-ng")]

DIRECTED = [sys.executable, "-m", "support.directed_server", "0"]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

PATCH = """
() => {
  const video = document.getElementById("video");
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  window.now = [0, 0];
  window.most = [0, 0];
  const look = () => {
    context.drawImage(video, video.videoWidth - 16, 8, 8, 8, 0, 0, 1, 1);
    const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
    window.now = [red - blue, green - blue];
    window.most = window.most.map((value, i) => Math.max(value, window.now[i]));
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}
"""
"""Reads how far the painted avatar nods (red) and smiles (green)."""


@pytest.fixture(scope="module")
def server():
    """Address of a server with a painted avatar that can be directed."""
    with running(DIRECTED) as address:
        yield address


@pytest.fixture
def page(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.evaluate(PATCH)
        yield page


def test_a_mood_is_chosen_and_shown(page):
    assert page.is_checked("#moods [value=neutral]")
    page.get_by_role("radio", name="Cheerful").check(force=True)
    page.wait_for_function("window.now[1] > 60")
    page.screenshot(path=artefacts() / "performance.png", full_page=True)
    page.keyboard.press("ArrowLeft")
    assert page.is_checked("#moods [value=warm]"), "the row is walked through by arrow keys"
    page.get_by_role("radio", name="Neutral").check(force=True)
    page.wait_for_function("window.now[1] < 30")


def test_gestures_are_made_by_buttons_and_by_keys(page):
    page.get_by_role("button", name="Nod").click()
    page.wait_for_function("window.most[0] > 40")
    page.wait_for_function("window.now[0] < 15")
    page.evaluate("window.most = [0, 0]")
    page.get_by_role("button", name="Nod").evaluate("button => button.blur()")
    page.keyboard.press("1")
    page.wait_for_function("window.most[0] > 40")


def test_digits_that_are_typed_make_no_gestures(page):
    page.evaluate("""() => {
        window.sent = [];
        const send = RTCDataChannel.prototype.send;
        RTCDataChannel.prototype.send = function (data) {
          window.sent.push(JSON.parse(data));
          return send.call(this, data);
        };
    }""")
    page.type("#say-text", "1 2 3")
    page.keyboard.press("Control+2")
    page.get_by_role("heading", name="Mood and gestures").click()
    page.keyboard.press("3")
    gestures = page.evaluate("sent.filter(({ type }) => type === 'performance.gesture')")
    assert [each["gesture"] for each in gestures] == ["tilt"]
    assert page.input_value("#say-text") == "1 2 3"


def test_a_mood_outlives_a_reload_and_another_client_may_change_it(page):
    page.get_by_role("radio", name="Cheerful").check(force=True)
    page.wait_for_function("window.now[1] > 60")
    live(page.reload() and page)
    page.wait_for_selector("#moods [value=cheerful]:checked", state="attached")
    page.evaluate(PATCH)
    page.wait_for_function("window.now[1] > 60")
    link = urlsplit(page.input_value("#overlay-link"))
    (session,) = parse_qs(link.query)["session"]

    async def direct():
        client = await join(link.netloc, f"session={session}")
        assert (await client.hear("session.ready"))["performance"]["mood"] == "cheerful"
        await client.send({"type": "performance.mood", "mood": "serious"})
        await client.hear("performance.updated")
        await client.close()

    with ThreadPoolExecutor() as beside:  # Playwright has a loop in this thread
        beside.submit(asyncio.run, direct()).result()
    page.wait_for_selector("#moods [value=serious]:checked", state="attached")
    page.wait_for_function("window.now[1] < 30")


def test_who_converses_chooses_how_the_avatar_listens(page):
    assert page.is_checked("#listening [value=attentive]")
    page.get_by_role("radio", name="Calm").check(force=True)
    live(page.reload() and page)
    page.wait_for_selector("#listening [value=calm]:checked", state="attached")


def test_the_camera_may_be_watched_after_a_clear_word(page):
    assert not page.is_checked("#camera-watch") and "nothing is stored" in page.inner_text(
        ".camera"
    )
    page.check("#camera-watch")
    page.wait_for_function("document.getElementById('mirror').videoWidth > 0")
    assert page.is_hidden("#camera-fields"), "it does not move the lips"
    page.check("#camera-switch")
    assert not page.is_checked("#camera-watch")
    page.uncheck("#camera-switch")
    assert page.is_hidden("#mirror")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fingers_find_every_mood_and_gesture(browser, server, scheme):
    with visiting(browser, server, color_scheme=scheme, **PHONE) as page:
        live(page)
        boxes = page.evaluate("""() => [...document.querySelectorAll(".chips span, .chips button")]
            .map((each) => each.getBoundingClientRect()).map(({ width, height }) => [width, height])
        """)
        assert len(boxes) > 20
        assert all(width >= 44 and height >= 44 for width, height in boxes)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("#performance").scroll_into_view_if_needed()
        assert page.locator("#gestures kbd").first.is_hidden(), "there is no keyboard"
        page.screenshot(path=artefacts() / f"performance-phone-{scheme}.png")


def test_a_model_that_cannot_be_directed_shows_nothing_of_it(browser):
    with running(PAINTED) as address, visiting(browser, address) as page:
        live(page)
        assert page.is_hidden("#performance") and page.is_hidden("#camera-watch")
