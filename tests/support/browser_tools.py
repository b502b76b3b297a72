"""A server, a real browser whose microphone plays a file, and probes of the video it shows."""

import os
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

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=LocalNetworkAccessChecks",  # a test embeds from another site
    "--no-first-run",
]
ALLOWED = "--use-fake-ui-for-media-stream"
"""Grants the permission for the microphone, which is otherwise denied."""

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
PAINTED = [sys.executable, "-m", "support.flash_server", "0"]
TRAINED = [sys.executable, "-m", "letstalk_server", "--port", "0"]

SPEECH_S = 4.0
TEXT = "Hello there! My name is Mary, and I am happy to meet you. What a wonderful open morning."
RATE = 16_000

WATCH = """
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
"""Collects `[time in s, mouth movement, whether the page shows speaking]` of each frame."""

CORNER_IS = """
(wanted) => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.drawImage(document.getElementById("video"), 8, 8, 8, 8, 0, 0, 1, 1);
  const colour = context.getImageData(0, 0, 1, 1).data;
  return wanted.every((value, i) => Math.abs(value - colour[i]) < 30);
}
"""
END = """
async () => {
  const link = document.getElementById("overlay-link")?.value;
  const session = link && new URL(link).searchParams.get("session");
  if (session) await fetch(`v1/sessions/${session}`, { method: "DELETE" }).catch(() => {});
}
"""
"""Ends the session at once; the server would keep it for its grace period."""

AMBER, BLUE = [200, 130, 40], [40, 80, 160]


def artefacts() -> Path:
    """Return the folder for screenshots and measurements; git ignores it."""
    folder = Path(os.environ.get("LETSTALK_ARTEFACTS", ROOT / "out" / "browser"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_wav(path, samples, rate=RATE):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


@pytest.fixture(scope="session")
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
    samples = samples * min(1.0, 5000 / max(np.sqrt(np.square(samples.astype(float)).mean()), 1))
    silence = np.zeros(rate * 30)
    return write_wav(path, np.concatenate([samples[: int(rate * SPEECH_S)], silence]), rate)


def hum(rate):
    """Return a voiced sound with syllables, for machines without a speech synthesizer."""
    t = np.arange(int(rate * SPEECH_S)) / rate
    voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    return (voice * np.clip(np.sin(2 * np.pi * 3 * t), 0, 1) * 9000).astype(np.int16)


@contextmanager
def running(command):
    """Run a server process, yield its address, and check that it exits cleanly."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, "the server did not start"
            yield address.group()
            assert process.poll() is None, "the server died"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            assert process.returncode == 0, "the server did not exit cleanly"


@contextmanager
def launched(speech, *flags):
    """Run a browser whose microphone plays the file once when it is opened."""
    from playwright.sync_api import sync_playwright

    flags = [*FLAGS, f"--use-file-for-fake-audio-capture={speech}%noloop", *flags]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@contextmanager
def visiting(browser, address, path="", *, expect=(), init="", **options):
    """Open the page in a new profile; failures of its scripts and requests fail the test.

    Args:
        browser: from `launched`.
        address: of the server.
        path: of the page.
        expect: parts of addresses whose requests may fail.
        init: a script to run before those of the page.
        options: of the profile, such as `viewport`.
    """
    options.setdefault("viewport", {"width": 1280, "height": 800})
    options.setdefault("bypass_csp", True)  # Playwright waits by `eval`, which the page forbids
    context = browser.new_context(**options)
    context.set_default_timeout(60_000)
    if init:
        context.add_init_script(init)
    page = context.new_page()
    errors = watch_errors(page, address, expect)
    page.goto(address + path)
    yield page
    found = list(errors)
    page.unroute_all()
    page.evaluate(END)
    context.close()
    assert found == []


def watch_errors(page, address, expect=()):
    """Collect script errors, failed requests and requests to other servers."""
    errors = []

    def failed(request):
        if not any(part in request.url for part in expect) and "ERR_ABORTED" not in str(
            request.failure
        ):
            errors.append(f"{request.failure} {request.url}")

    def asked(request):
        if not request.url.startswith((address, "blob:", "data:")):
            errors.append(request.url)

    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", failed)
    if not expect:
        page.on("request", asked)
    return errors


@pytest.fixture(scope="module")
def server():
    """Address of a server with the painted avatar."""
    with running(PAINTED) as address:
        yield address


@pytest.fixture(scope="module")
def browser(speech):
    """A browser that may use the microphone."""
    with launched(speech, ALLOWED) as browser:
        yield browser


def live(page, state="live"):
    page.wait_for_selector(f'body[data-state="{state}"]')
    if state == "live":
        page.wait_for_selector("body[data-video]")
    return page


def watch_mouth(page):
    """Start to record how the mouth of the first avatar moves, in `window.seen`."""
    face = page.evaluate("fetch('v1/avatars').then(a => a.json()).then(a => a.avatars[0].face)")
    page.evaluate(WATCH, face)
    wait_for_frames(page, 5)


def wait_for_frames(page, count):
    start = page.evaluate("window.seen.length")
    page.wait_for_function("(count) => window.seen.length >= count", arg=start + count)


def split(seen):
    """Return the movement during the speech of the file, and that in the silence at the end."""
    time_s, movement, speaking = np.array(seen).T
    start_s = time_s[speaking > 0][0]
    moving = movement[(time_s > start_s + 0.3) & (time_s < start_s + SPEECH_S - 1)]
    return moving, movement[time_s > time_s[-1] - 1.5]
