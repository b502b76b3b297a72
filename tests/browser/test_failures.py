"""What goes wrong is named in the page, with what to do about it, and mended where it can be."""

import io
import json
import socket
from contextlib import contextmanager

import pytest
from PIL import Image
from support.browser_tools import PAINTED, launched, live, needs_browser, running, visiting
from support.server_fakes import portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser


def note(page):
    page.wait_for_selector("#note:not([hidden])")
    return page.inner_text("#note p")


def trouble(page):
    page.wait_for_selector('body[data-state="failed"]')
    page.wait_for_selector("#curtain:not([hidden])")
    return page.inner_text("#curtain .card")


def problem(status, code, detail):
    """Give a handler of requests that answers with a problem document."""
    body = json.dumps({"code": code, "detail": detail})
    return lambda route: route.fulfill(
        status=status, content_type="application/problem+json", body=body
    )


def test_without_permission_the_page_says_how_to_give_it_and_stays_live(speech, server):
    with launched(speech) as browser, visiting(browser, server) as page:
        live(page)
        page.click("#talk")
        words = note(page)
        assert "microphone is blocked" in words and "No camera is needed" in words
        assert page.get_attribute("#note", "role") == "alert"
        assert page.get_attribute("body", "data-state") == "live"
        assert page.is_enabled("#talk"), "one may try again"


def media_fails(name):
    return (
        "navigator.mediaDevices.getUserMedia = async () => "
        f'{{ throw new DOMException("", "{name}"); }};'
    )


@pytest.mark.parametrize(
    "name, words",
    [
        ("NotFoundError", "No microphone was found"),
        ("NotReadableError", "microphone is in use"),
        ("SecurityError", "https://"),
    ],
)
def test_each_failure_of_the_microphone_has_its_own_words(browser, server, name, words):
    with visiting(browser, server, init=media_fails(name)) as page:
        live(page)
        page.click("#talk")
        assert words in note(page)


def test_a_full_server_is_named_and_can_be_tried_again(browser, server):
    with visiting(browser, server, expect=["v1/sessions"]) as page:
        live(page)
        page.route("**/v1/sessions", problem(503, "at-capacity", "All 2 places are taken."))
        page.evaluate("sessionStorage.clear(); addEventListener('pagehide', () => 0)")
        page.route("**/v1/sessions/*", problem(404, "unknown-session", "It is over."))
        page.reload()
        page.wait_for_selector('body[data-state="reconnecting"]')
        assert "places are taken" in note(page)
        page.unroute("**/v1/sessions")
        page.unroute("**/v1/sessions/*")
        live(page)
        page.wait_for_selector("#note", state="hidden")


def test_a_refused_token_is_explained(browser, server):
    with visiting(browser, server, expect=["v1/"]) as page:
        live(page)
        page.route("**/v1/avatars", problem(401, "token-expired", "The token has expired."))
        page.reload()
        assert "link has expired" in trouble(page)
        page.unroute("**/v1/avatars")
        page.click("#retry")
        live(page)


def test_another_tab_takes_over_and_gives_back(browser, server):
    with visiting(browser, server) as page:
        live(page)
        kept = page.evaluate(
            "JSON.stringify({ session: new URL(document.getElementById('overlay-link').value)"
            ".searchParams.get('session') })"
        )
        init = f"sessionStorage.setItem('letstalk.session', {json.dumps(kept)})"
        with visiting(browser, server, init=init) as other:
            live(other)
            assert "another tab" in trouble(page)
            page.click("#retry")
            live(page)
            assert "another tab" in trouble(other)


@contextmanager
def place():
    """Give a port that is free now and stays the same over restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield [*PAINTED[:-1], str(port)]


def test_the_page_comes_back_with_the_server(browser):
    with place() as command:
        with running(command) as address:
            context = browser.new_context()
            page = context.new_page()
            page.set_default_timeout(60_000)
            page.goto(address)
            live(page)
        page.wait_for_selector('body[data-state="reconnecting"]')
        assert page.is_visible("#still"), "the portrait stands in"
        with running(command):
            live(page)
            context.close()


ONLY_A_WRONG_RELAY = """
const Native = RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  constructor(options) {
    const urls = "turn:127.0.0.1:9?transport=udp"; // nobody is there
    const iceServers = [{ urls, username: "someone", credential: "wrong" }];
    super({ ...options, iceServers, iceTransportPolicy: "relay" });
  }
};
"""
NOBODY_CAN_BE_REACHED = """
const Native = RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  get localDescription() {
    const { type, sdp } = super.localDescription;
    return { type, sdp: sdp.replace(/a=candidate:.*\\r\\n/g, "") };
  }
  setRemoteDescription({ type, sdp }) {
    // 192.0.2.0/24 belongs to nobody (RFC 5737).
    const far = sdp.replace(/(a=candidate:\\S+ \\d udp \\d+) \\S+ \\d+/gi, "$1 192.0.2.1 9");
    return super.setRemoteDescription({ type, sdp: far });
  }
};
"""


@pytest.mark.parametrize("init", [ONLY_A_WRONG_RELAY, NOBODY_CAN_BE_REACHED])
def test_when_no_path_is_found_the_page_says_what_to_do(browser, server, init):
    with visiting(browser, server, init=init) as page:
        page.wait_for_selector('body[data-state="reconnecting"]')
        assert "network blocks the video" in page.inner_text("#note")
        words = note(page)
        assert "without a VPN" in words and "TURN server" in words
        assert page.is_visible("#still"), "the portrait stands in"


def wall():
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), (120, 125, 130)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_bad_portraits_are_refused_in_words_while_the_video_goes_on(browser, server):
    whole = portrait_jpeg()
    bad = {
        "text.jpg": (b"this is a letter", "not a picture"),
        "half.jpg": (whole[: len(whole) // 2], "damaged or incomplete"),
        "wall.jpg": (wall(), "No face was found"),
    }
    with visiting(browser, server) as page:
        live(page)
        page.click("#add")
        for name, (data, words) in bad.items():
            picture = {"name": name, "mimeType": "image/jpeg", "buffer": data}
            page.set_input_files("#file", picture)
            page.check("#consent")
            page.click("#upload-next")
            page.wait_for_selector(f"#upload-note:not([hidden]):has-text('{words}')")
            assert page.get_attribute("#upload-note", "role") == "alert"
            assert page.get_attribute("body", "data-state") == "live"


def test_a_file_that_is_no_sound_is_refused_in_words(browser, server):
    with visiting(browser, server) as page:
        live(page)
        letter = {"name": "letter.wav", "mimeType": "audio/wav", "buffer": b"dear all"}
        page.set_input_files("#audio", letter)
        assert "not a sound file" in note(page)
        assert page.is_hidden("#playing")


def test_an_old_browser_is_told_what_to_use(browser, server):
    with visiting(browser, server, init="delete window.RTCPeerConnection;") as page:
        page.wait_for_selector("#curtain:not([hidden])")
        assert "current version" in page.inner_text("#curtain")
