"""The page says so when the camera sees no face for two seconds."""

import time

import av
import numpy as np
import pytest
from support.browser_tools import ALLOWED, artefacts, launched, live, needs_browser, visiting
from support.live_server import live as serving
from support.server_fakes import WatchingPainter, patient

pytest.importorskip("playwright.sync_api")
pytestmark = needs_browser

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": "dark"}


@pytest.fixture(scope="module")
def dark_film(tmp_path_factory):
    """Eight seconds of darkness, and eight of light."""
    path = tmp_path_factory.mktemp("film") / "dark.y4m"
    with av.open(str(path), "w", format="yuv4mpegpipe") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(160):
            rgb = np.full((240, 320, 3), 10 if number < 80 else 180, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def browser(speech, dark_film):
    """A browser whose camera shows the film."""
    with launched(speech, ALLOWED, f"--use-file-for-fake-video-capture={dark_film}") as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    """Address of a server that looks for faces in what cameras show."""
    with serving(patient(size=256), WatchingPainter()) as (_, address):
        yield f"http://{address}/"


def test_the_page_says_when_the_camera_sees_no_face_until_it_sees_one(browser, server):
    with visiting(browser, server, **PHONE) as page:
        live(page)
        page.check("#camera-switch")
        seen = "#notice:not([hidden]) #notice-title:has-text('The camera sees no face.')"
        page.wait_for_selector(seen)
        page.screenshot(path=str(artefacts() / "camera-no-face.png"))
        page.wait_for_selector("#notice", state="hidden")
        page.wait_for_selector(seen)
        page.uncheck("#camera-switch")
        page.wait_for_selector("#notice", state="hidden")


CONTROL = """
async () => {
  const { CameraControl } = await import("/camera-control.js");
  window.stub = new EventTarget();
  window.told = [];
  const show = ({ code }) => told.push(code);
  new CameraControl(stub, { show, hide: () => {} });
  window.see = (status) => stub.dispatchEvent(new CustomEvent("camera", { detail: { status } }));
}
"""


def test_a_face_that_is_away_for_a_moment_is_no_matter(browser, server):
    with visiting(browser, server) as page:
        live(page)
        page.evaluate(CONTROL)
        page.evaluate("see('no-face')")
        page.wait_for_timeout(1000)
        page.evaluate("see('face')")
        page.wait_for_timeout(1500)
        assert page.evaluate("told") == []
        page.evaluate("see('several-faces')")
        began_s = time.monotonic()
        page.wait_for_function("told.length > 0")
        assert page.evaluate("told") == ["camera-several-faces"]
        assert time.monotonic() - began_s > 1.9
