"""Movement, voice and recording on the page, and how late the avatar says what it is told to."""

import json
import re

import av
import pytest
from support.browser_tools import artefacts, live, needs_browser, visiting
from support.packages import needs

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}
KEEP_SENT = """
window.sent = [];
const send = RTCDataChannel.prototype.send;
RTCDataChannel.prototype.send = function (data) {
  if (typeof data === "string") window.sent.push(JSON.parse(data));
  return send.call(this, data);
};
"""
USUAL = {
    "head_motion": True,
    "blinks_per_min": 15,
    "expressiveness": 1,
    "gaze_at_camera": False,
}
SIDEWAYS = "document.documentElement.scrollWidth > innerWidth"


def session_of(page):
    return page.input_value("#overlay-link").partition("session=")[2].partition("&")[0]


def motion_of(page):
    """Return how the server says that the session moves."""
    path = json.dumps(f"v1/sessions/{session_of(page)}")
    return page.evaluate(f"fetch({path}).then((a) => a.json()).then((a) => a.motion)")


def wait_for_motion(page, wanted):
    """Wait until the session moves so."""
    for _ in range(50):
        if motion_of(page) == wanted:
            return
        page.wait_for_timeout(100)
    assert motion_of(page) == wanted


def move(page, name, value):
    """Set a slider, as a visitor who drags it."""
    page.locator(f"#{name}").fill(str(value))


def test_movement_changes_at_once_and_is_remembered(browser, server):
    with visiting(browser, server, **PHONE) as page:
        live(page)
        page.click("#look summary")
        session = session_of(page)
        assert motion_of(page)["head_motion"] and page.is_checked("#head-motion")
        page.uncheck("#head-motion")
        move(page, "blinks", 4)
        move(page, "expressiveness", 1.5)
        assert page.inner_text("#blinks-value") == "4"
        assert page.inner_text("#expressiveness-value") == "150 %"
        page.locator("#look").scroll_into_view_if_needed()
        page.screenshot(path=artefacts() / "look-phone-dark.png")
        assert not page.evaluate(SIDEWAYS)
        chosen = {
            "head_motion": False,
            "blinks_per_min": 4,
            "expressiveness": 1.5,
            "gaze_at_camera": False,
        }
        wait_for_motion(page, chosen)
        assert session_of(page) == session, "the same session goes on"
        page.reload()
        live(page)
        page.click("#look summary")
        assert not page.is_checked("#head-motion") and page.input_value("#blinks") == "4"
        assert motion_of(page) == chosen, "a new session begins so"
        move(page, "blinks", 15)
        move(page, "expressiveness", 1)
        page.check("#head-motion")
        wait_for_motion(page, USUAL)


def test_the_stage_is_recorded_and_saved(browser, server, tmp_path):
    with visiting(browser, server, bypass_csp=False, accept_downloads=True) as page:
        page.click("#look summary")
        live(page)
        page.get_by_role("button", name="Record", exact=True).click()
        stop = page.get_by_role("button", name="Stop and save")
        stop.wait_for()
        page.screenshot(path=artefacts() / "look-recording.png")
        page.wait_for_timeout(2500)
        with page.expect_download() as download:
            stop.click()
        name = download.value.suggested_filename
        assert re.fullmatch(r"avatar-[-\dT]+\.(mp4|webm)", name), name
        download.value.save_as(tmp_path / name)
        page.get_by_role("button", name="Record", exact=True).wait_for()
    with av.open(str(tmp_path / name)) as film:
        kinds = {stream.type for stream in film.streams}
        frames = sum(1 for _ in film.decode(video=0))
    assert kinds == {"video", "audio"} and frames > 25, (kinds, frames)


@needs("espeak-ng")
def test_a_text_is_said_with_the_chosen_voice_and_its_delay_is_shown(browser, server):
    with visiting(browser, server, init=KEEP_SENT) as page:
        live(page)
        page.click("#look summary")
        page.select_option("#say-voice", "de")
        page.fill("#say-text", "Hello, my name is Mary, and I am happy to meet you all.")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "/^\\d+ ms after the text$/.test(document.getElementById('caption-delay').textContent)"
        )
        page.screenshot(path=artefacts() / "caption-delay.png")
        said = page.evaluate("sent.filter((message) => message.type === 'speech.say')")
        assert [message["voice"] for message in said] == ["de"]
        page.wait_for_selector("body:not([data-speaking])")
        assert page.inner_text("#caption-delay") == ""


def test_how_far_the_avatar_is_behind_the_voice_is_shown_while_it_speaks(browser, server):
    with visiting(browser, server, **PHONE) as page:
        live(page)
        page.click("#talk")
        page.wait_for_function(
            "/^\\d+ ms behind you$/.test(document.getElementById('caption-delay').textContent)"
        )
        page.screenshot(path=artefacts() / "caption-delay-phone.png")
        caption, stage = (page.locator(name).bounding_box() for name in ("#caption", "#stage"))
        ends = caption["y"] + caption["height"]
        badge_begins = stage["y"] + 0.91 * stage["height"]
        assert ends <= badge_begins, "it is above the badge of the video"
        page.wait_for_selector("body:not([data-speaking])")
        assert page.inner_text("#caption-delay") == ""
