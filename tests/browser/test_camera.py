"""The page's switch "Move with my camera", with Chromium's fake camera that shows a film."""

import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from support.browser_tools import (
    ALLOWED,
    PAINTED,
    TRAINED,
    artefacts,
    launched,
    live,
    needs_browser,
    running,
    visiting,
)

import letstalk_rt
from letstalk_rt.avatars import list_avatars

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

WEIGHTS = Path(letstalk_rt.__file__).parent / "weights" / "tiny.safetensors"
PERIOD_S = 4.0

PLACE = """
() => {
  window.places = [];
  const video = document.getElementById("video");
  const context = new OffscreenCanvas(96, 96).getContext("2d", { willReadFrequently: true });
  let still = null;
  const look = () => {
    context.drawImage(video, 0, 0, 96, 96);
    const now = context.getImageData(0, 0, 96, 96).data;
    still ??= now;
    let sum = 0;
    for (let i = 0; i < now.length; i++) sum += Math.abs(now[i] - still[i]);
    window.places.push([performance.now() / 1000, sum / now.length]);
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}
"""
"""Collects how much each frame differs from the first one."""


BLOCKED = """
const blocked = () => Promise.reject(new DOMException("", "NotAllowedError"));
navigator.mediaDevices.getUserMedia = blocked;
"""

PROMPT = """
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.prompts = [];
navigator.mediaDevices.getUserMedia = async (constraints) => {
  const stream = await ask(constraints);
  await new Promise((allow, deny) => window.prompts.push({ allow, deny, stream }));
  return stream;
};
"""
"""Keeps the permission prompt open until `allow` or `deny` of `window.prompts` is called."""
LIVE_CAMERAS = "prompts.map(({ stream }) => stream.active)"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A face that moves from side to side."""
    path = tmp_path_factory.mktemp("film") / "camera.y4m"
    portrait = Image.open(next(iter(list_avatars().values()))).convert("RGB").resize((220, 220))
    face = np.asarray(portrait)
    with av.open(str(path), "w", format="yuv4mpegpipe") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(int(25 * PERIOD_S)):
            left = round(50 + 40 * np.sin(2 * np.pi * number / 25 / PERIOD_S))
            rgb = np.full((240, 320, 3), 110, np.uint8)
            rgb[10:230, left : left + 220] = face
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def filmed(speech, film):
    """A browser with a camera that shows the film."""
    with launched(speech, ALLOWED, f"--use-file-for-fake-video-capture={film}") as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    """Address of a server with the painted avatar."""
    with running(PAINTED) as address:
        yield address


def test_the_camera_is_off_until_it_is_asked_for_and_shown_in_a_mirror(filmed, server):
    with visiting(filmed, server) as page:
        live(page)
        assert not page.is_checked("#camera-switch") and not page.is_visible("#mirror")
        page.check("#camera-switch")
        page.wait_for_function("document.getElementById('mirror').videoWidth > 0")
        # The painted avatar cannot follow: the server got a frame, and says so.
        page.wait_for_function(
            "document.getElementById('notice-title').textContent.includes('cannot follow a camera')"
        )
        page.screenshot(path=str(artefacts() / "camera.png"))
        page.uncheck("#camera-switch")
        assert not page.is_visible("#mirror")
        assert page.evaluate("document.getElementById('mirror').srcObject === null")


def test_a_blocked_camera_is_explained(filmed, server):
    with visiting(filmed, server, init=BLOCKED) as page:
        live(page)
        page.click("#camera-switch")
        page.wait_for_function(
            "document.getElementById('notice-title').textContent === 'The camera is blocked.'"
        )
        assert not page.is_checked("#camera-switch") and not page.is_visible("#mirror")


def test_only_the_last_wish_counts_while_the_permission_prompt_is_open(filmed, server):
    with visiting(filmed, server, init=PROMPT) as page:
        live(page)
        for number in (1, 2, 3):
            page.check("#camera-switch")
            page.wait_for_function(f"prompts.length === {number}")
            page.uncheck("#camera-switch")
        page.evaluate("prompts[0].allow()")
        page.wait_for_function(f"!({LIVE_CAMERAS})[0]")
        assert not page.is_visible("#mirror"), "it was switched off before it was allowed"
        page.check("#camera-switch")
        page.wait_for_function("prompts.length === 4")
        page.evaluate("prompts[1].deny(new DOMException('', 'NotAllowedError'))")
        page.evaluate("prompts[3].allow()")
        page.evaluate("prompts[2].allow()")
        page.wait_for_function("document.getElementById('mirror').srcObject === prompts[3].stream")
        page.wait_for_function(f"!({LIVE_CAMERAS})[2]")
        assert page.is_checked("#camera-switch") and page.evaluate(LIVE_CAMERAS)[3]
        assert "blocked" not in page.inner_text("#notice"), "nobody waits for that any more"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the package has no weights")
def test_the_avatar_moves_as_the_face_before_the_camera(filmed):
    with running(TRAINED) as address, visiting(filmed, address) as page:
        live(page)
        page.check("#camera-switch")
        time.sleep(8)
        page.evaluate(PLACE)
        time.sleep(4 * PERIOD_S)
        places = np.array(page.evaluate("window.places"))
        page.screenshot(path=str(artefacts() / "driven.png"))
    times_s, change = places.T
    # What repeats with the film's half period (left and right look alike) is due to the camera.
    steady = np.interp(np.arange(times_s[0], times_s[-1], 0.04), times_s, change)
    spectrum = np.abs(np.fft.rfft(steady - steady.mean()))
    rates_hz = np.fft.rfftfreq(len(steady), 0.04)
    main_hz = rates_hz[spectrum.argmax()]
    assert min(abs(main_hz - 1 / PERIOD_S), abs(main_hz - 2 / PERIOD_S)) < 0.1, main_hz
