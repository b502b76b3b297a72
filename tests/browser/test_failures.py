"""Failures: the page says what happened and what to do, and recovers where it can."""

import io
import json
import socket

import pytest
from PIL import Image
from support.browser_tools import PAINTED, launched, live, needs_browser, running, visiting
from support.server_fakes import portrait_jpeg

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser


def notice(page):
    page.wait_for_selector("#notice:not([hidden])")
    return page.inner_text("#notice p")


def failure(page):
    page.wait_for_selector('body[data-state="failed"]')
    page.wait_for_selector("#failure:not([hidden])")
    return page.inner_text("#failure .card")


def problem(status, code, detail):
    """Return a request handler that answers with a problem document."""
    body = json.dumps({"code": code, "detail": detail})
    return lambda route: route.fulfill(
        status=status, content_type="application/problem+json", body=body
    )


def test_a_denied_microphone_is_explained_and_the_video_stays_live(speech, server):
    with launched(speech) as browser, visiting(browser, server) as page:
        live(page)
        page.click("#talk")
        text = notice(page)
        assert "microphone is blocked" in text and "No camera is needed" in text
        assert page.get_attribute("#notice", "role") == "alert"
        assert page.get_attribute("body", "data-state") == "live"
        assert page.is_enabled("#talk"), "the visitor can try again"


FAIL_MICROPHONE = """(name) => {
  navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", name); };
}"""


def test_each_microphone_error_has_its_own_message(browser, server):
    messages = {
        "NotFoundError": "No microphone was found",
        "NotReadableError": "microphone is in use",
        "SecurityError": "https://",
    }
    with visiting(browser, server) as page:
        live(page)
        for name, message in messages.items():
            page.evaluate(FAIL_MICROPHONE, name)
            page.click("#talk")
            page.wait_for_selector(f"#notice:has-text('{message}')")


def test_a_rejected_token_is_explained(browser, server):
    with visiting(browser, server, expect=["v1/"]) as page:
        live(page)
        page.route("**/v1/avatars*", problem(401, "token-expired", "The token has expired."))
        page.reload()
        assert "link has expired" in failure(page)
        page.unroute("**/v1/avatars*")
        page.click("#retry")
        live(page)


def test_a_session_can_be_taken_over_by_another_tab_and_back(browser, server):
    with visiting(browser, server) as page:
        live(page)
        saved = page.evaluate(
            "JSON.stringify({ session: new URL(document.getElementById('overlay-link').value)"
            ".searchParams.get('session') })"
        )
        init = f"sessionStorage.setItem('letstalk.session', {json.dumps(saved)})"
        with visiting(browser, server, init=init) as other:
            live(other)
            assert "another tab" in failure(page)
            page.click("#retry")
            live(page)
            assert "another tab" in failure(other)


CLOSE_FROM_ANOTHER_CONNECTION = """
() => {
  const { searchParams } = new URL(document.getElementById("overlay-link").value);
  const path = `v1/ws?session=${searchParams.get("session")}`;
  const socket = new WebSocket(new URL(path, location.href.replace("http", "ws")));
  socket.onopen = () => socket.send(JSON.stringify({ type: "session.close" }));
}
"""


def test_a_session_that_another_connection_closes_has_ended_until_the_visitor_starts_again(
    browser, server
):
    with visiting(browser, server) as page:
        live(page)
        created = []
        page.on("request", lambda asked: asked.method == "POST" and created.append(asked.url))
        page.evaluate(CLOSE_FROM_ANOTHER_CONNECTION)
        assert "The session has ended" in failure(page)
        assert created == [], "an empty session in the place of the one that was closed"
        page.click("#retry")
        live(page)


def command_on_a_fixed_port():
    """Return the command of a server whose port stays the same over restarts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [*PAINTED[:-1], str(port)]


def test_the_page_reconnects_after_a_restart_of_the_server(browser):
    command = command_on_a_fixed_port()
    with running(command) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        live(page)
    page.wait_for_selector('body[data-state="reconnecting"]')
    assert page.is_visible("#still"), "the portrait is shown instead of the video"
    with running(command):
        live(page)
        context.close()


WRONG_TURN_SERVER = """
const Native = RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  constructor(options) {
    const urls = "turn:127.0.0.1:9?transport=udp"; // nothing listens there
    const iceServers = [{ urls, username: "someone", credential: "wrong" }];
    super({ ...options, iceServers, iceTransportPolicy: "relay" });
  }
};
"""
UNREACHABLE_PEERS = """
const Native = RTCPeerConnection;
window.RTCPeerConnection = class extends Native {
  get localDescription() {
    const { type, sdp } = super.localDescription;
    return { type, sdp: sdp.replace(/a=candidate:.*\\r\\n/g, "") };
  }
  setRemoteDescription({ type, sdp }) {
    // 192.0.2.0/24 is reserved for documentation (RFC 5737).
    const far = sdp.replace(/(a=candidate:\\S+ \\d udp \\d+) \\S+ \\d+/gi, "$1 192.0.2.1 9");
    return super.setRemoteDescription({ type, sdp: far });
  }
};
"""


@pytest.mark.parametrize("init", [WRONG_TURN_SERVER, UNREACHABLE_PEERS], ids=["turn", "direct"])
def test_a_blocked_network_is_explained(browser, server, init):
    with visiting(browser, server, init=init) as page:
        page.wait_for_selector('body[data-state="reconnecting"]')
        assert "network blocks the video" in page.inner_text("#notice")
        text = notice(page)
        assert "without a VPN" in text and "TURN server" in text
        assert page.is_visible("#still"), "the portrait is shown instead of the video"


def image_without_face():
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), (120, 125, 130)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_unusable_portraits_are_explained_and_the_video_stays_live(browser, server):
    portrait = portrait_jpeg()
    bad = {
        "text.jpg": (b"this is a letter", "not an image"),
        "half.jpg": (portrait[: len(portrait) // 2], "damaged or incomplete"),
        "wall.jpg": (image_without_face(), "No face was found"),
    }
    with visiting(browser, server) as page:
        live(page)
        page.click("#add")
        for name, (data, message) in bad.items():
            image = {"name": name, "mimeType": "image/jpeg", "buffer": data}
            page.set_input_files("#file", image)
            page.check("#consent")
            page.click("#upload-next")
            page.wait_for_selector(f"#upload-error:not([hidden]):has-text('{message}')")
            assert page.get_attribute("#upload-error", "role") == "alert"
            assert page.get_attribute("body", "data-state") == "live"


def send_photo(page):
    """Choose a photo for an avatar of one's own, and let the server look for the face."""
    page.click("#add")
    image = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg()}
    page.set_input_files("#file", image)
    page.fill("#label", "Me")
    page.check("#consent")
    page.click("#upload-next")


def test_a_photo_whose_dialog_is_closed_while_it_is_sent_is_deleted_again(browser, server):
    with visiting(browser, server) as page:
        live(page)
        held = []
        page.route("**/v1/avatars?consent=*", lambda route: held.append(route))
        with page.expect_request("**/v1/avatars?consent=*"):
            send_photo(page)
        page.click("#upload-close")
        with page.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
            held[0].continue_()
        assert deleted.value.status == 204
        assert page.locator(".own-avatar").count() == 0


def test_an_avatar_that_could_not_be_removed_is_shown_again(browser, server):
    with visiting(browser, server) as page:
        live(page)
        send_photo(page)
        page.wait_for_selector("#upload[data-step=crop]")
        page.click("#upload-next")
        refuse = problem(503, "not-ready", "The server is stopping.")
        page.route("**/v1/avatars/*", refuse)
        page.click(".remove")
        assert "was not removed" in notice(page)
        page.unroute("**/v1/avatars/*")
        assert page.locator(".own-avatar", has_text="Me").count() == 1
        page.click(".remove")
        page.wait_for_selector(".own-avatar", state="detached")
        page.wait_for_selector("#notice", state="hidden")


def test_an_unreadable_audio_file_is_explained(browser, server):
    with visiting(browser, server) as page:
        live(page)
        letter = {"name": "letter.wav", "mimeType": "audio/wav", "buffer": b"dear all"}
        page.set_input_files("#audio-file", letter)
        assert "cannot read the audio file" in notice(page)
        assert page.is_hidden("#playing")


def test_a_browser_without_webrtc_is_told_what_to_use(browser, server):
    with visiting(browser, server, init="delete window.RTCPeerConnection;") as page:
        page.wait_for_selector("#failure:not([hidden])")
        assert "current version" in page.inner_text("#failure")
