"""The page in a real browser: a fake microphone plays a file, the received video is looked at.

Twice: with a painted avatar, which is quick and always there, and with the trained model.
"""

import re
import shutil
import signal
import subprocess
import sys
import wave
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from server_fakes import portrait_jpeg

import letstalk_rt

sync_api = pytest.importorskip("playwright.sync_api")

TESTS = Path(__file__).parent
WEIGHTS = Path(letstalk_rt.__file__).parent / "weights" / "tiny.safetensors"
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SPEECH_S = 4.0
TEXT = "Hello there! My name is Mary, and I am happy to meet you. What a wonderful open morning."

RECORDER = """
([left, top, side]) => {
  const video = document.getElementById("video");
  const canvas = new OffscreenCanvas(48, 32);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const mouth = [left + 0.33 * side, top + 0.60 * side, 0.34 * side, 0.24 * side];
  let last = null;
  window.seen = [];
  const look = () => {
    context.drawImage(video, ...mouth, 0, 0, 48, 32);
    const now = context.getImageData(0, 0, 48, 32).data;
    if (last) {
      let sum = 0;
      for (let i = 0; i < now.length; i++) sum += Math.abs(now[i] - last[i]);
      const speaking = document.body.hasAttribute("data-speaking");
      window.seen.push([performance.now() / 1000, sum / now.length, Number(speaking)]);
    }
    last = now;
    video.requestVideoFrameCallback(look);
  };
  video.requestVideoFrameCallback(look);
}
"""

CORNER_IS = """
(wanted) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.drawImage(document.getElementById("video"), 8, 8, 8, 8, 0, 0, 1, 1);
  const colour = context.getImageData(0, 0, 1, 1).data;
  return wanted.every((value, i) => Math.abs(value - colour[i]) < 30);
}
"""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium browser")
painted = [sys.executable, str(TESTS / "server_fakes.py"), "0"]
real = [sys.executable, "-m", "letstalk_server", "--port", "0"]
AVATARS = [
    pytest.param((painted, 4.0), id="painted"),
    pytest.param(
        (real, 1.5),
        id="trained",
        marks=pytest.mark.skipif(not WEIGHTS.exists(), reason="the model is not trained yet"),
    ),
]


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A file with speech and then silence."""
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    if espeak := shutil.which("espeak-ng"):
        subprocess.run([espeak, "-v", "en-us", "-s", "150", "-w", str(path), TEXT], check=True)
        with wave.open(str(path)) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    else:
        rate, samples = 22_050, hum(22_050)
    silence = np.zeros(rate * 30, np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(np.concatenate([samples[: int(rate * SPEECH_S)], silence]).tobytes())
    return path


def hum(rate):
    """Give something voiced with syllables, where there is no speech synthesizer."""
    t = np.arange(int(rate * SPEECH_S)) / rate
    voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    return (voice * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * 9000).astype(np.int16)


@contextmanager
def running(command):
    """Run a server process; gives its address, and checks that it ends in order."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, "the server did not start"
            yield address.group()
            assert process.poll() is None, "the server died"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                rest, _ = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert rest == "", "one line and no more"


@contextmanager
def browsing(speech, address):
    """Open the page in a browser whose microphone plays the file once."""
    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={speech}%noloop"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.set_default_timeout(60_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("requestfailed", lambda request: page.errors.append(request.url))
        page.on(
            "request",
            lambda request: (
                page.errors.append(request.url)
                if not request.url.startswith((address, "blob:"))
                else None
            ),
        )
        page.goto(address)
        yield page
        assert page.errors == []
        browser.close()


def live(page):
    page.wait_for_selector('body[data-state="live"]')


def frames_seen(page):
    return page.evaluate("window.seen.length")


def wait_for_frames(page, count):
    start = frames_seen(page)
    page.wait_for_function("(count) => window.seen.length >= count", arg=start + count)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("avatar", AVATARS)
def test_the_mouth_moves_while_the_file_speaks_and_rests_when_it_is_silent(avatar, speech):
    command, ratio = avatar
    with running(command) as address, browsing(speech, address) as page:
        live(page)
        face = page.evaluate("fetch('v1/avatars').then(a => a.json()).then(a => a.avatars[0].face)")
        page.evaluate(RECORDER, face)
        wait_for_frames(page, 10)
        page.focus("#talk")
        page.keyboard.press("Space")  # by keyboard, as some do
        page.wait_for_selector("body[data-speaking]")
        page.wait_for_timeout(1000 * (SPEECH_S + 1))
        page.wait_for_selector("body:not([data-speaking])")
        wait_for_frames(page, 60)
        seen = np.array(page.evaluate("window.seen"))
        assert page.get_attribute("#talk", "aria-pressed") == "true"
    moving, resting = split(seen)
    assert len(moving) > 25 and len(resting) > 25, (len(moving), len(resting))
    assert moving.mean() > ratio * resting.mean(), (moving.mean(), resting.mean())


def split(seen):
    """Give the movement while speaking and while silent; the half second around a change is out."""
    time_s, movement, speaking = seen.T
    changes = time_s[1:][np.diff(speaking) != 0]
    clear = np.array([not len(changes) or np.abs(changes - t).min() > 0.5 for t in time_s])
    return movement[clear & (speaking > 0)], movement[clear & (speaking == 0)]


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("avatar", AVATARS)
def test_bad_portraits_show_clear_errors_while_the_video_goes_on(avatar, speech):
    whole = portrait_jpeg()
    bad = {
        "text.jpg": (b"this is a letter", "not a picture"),
        "half.jpg": (whole[: len(whole) // 2], "damaged or incomplete"),
        "wall.jpg": (wall(), "No face was found"),
    }
    with running(avatar[0]) as address, browsing(speech, address) as page:
        live(page)
        page.evaluate(RECORDER, [0, 0, 256])
        for name, (data, words) in bad.items():
            picture = {"name": name, "mimeType": "image/jpeg", "buffer": data}
            page.set_input_files("#file", picture)
            page.wait_for_selector(f"#upload-note:not([hidden]):has-text('{words}')")
            assert page.get_attribute("#upload-note", "role") == "alert"
            wait_for_frames(page, 5)
            assert page.get_attribute("body", "data-state") == "live"


def wall():
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), (120, 125, 130)).save(buffer, "JPEG")
    return buffer.getvalue()


@needs_browser
@pytest.mark.slow
def test_faces_can_be_changed_uploaded_and_survive_a_reload(speech):
    with running(painted) as address, browsing(speech, address) as page:
        live(page)
        page.wait_for_function(CORNER_IS, arg=[200, 130, 40])
        page.click("label.face:has-text('Blue')")
        page.wait_for_function(CORNER_IS, arg=[40, 80, 160])
        own = {"name": "me.jpg", "mimeType": "image/jpeg", "buffer": portrait_jpeg((20, 140, 40))}
        page.set_input_files("#file", own)
        page.wait_for_function(CORNER_IS, arg=[20, 140, 40])
        assert page.is_checked("label.face:has-text('Yours') input")
        for _ in range(3):  # each visit gives its place back
            page.reload()
            live(page)
        page.wait_for_function(CORNER_IS, arg=[200, 130, 40])


@needs_browser
@pytest.mark.slow
def test_a_lost_server_is_named_and_the_page_can_try_again(speech):
    with running(painted) as address, browsing(speech, address) as page:
        live(page)
        page.route(
            "**/v1/offer",
            lambda route: route.fulfill(
                status=503,
                content_type="application/problem+json",
                body='{"code": "at-capacity", "detail": "All 2 places are taken."}',
            ),
        )
        page.reload()
        page.wait_for_selector('body[data-state="error"]')
        assert "places are taken" in page.inner_text("#trouble")
        page.unroute("**/v1/offer")
        page.click("#retry")
        live(page)
