"""Camera drive as a visitor has it: the server, and headless Chromium with a film as its camera.

`bench_latency` measures how much later than in the visitor's mirror the avatar moves, and where the
time goes. `bench_page` sends a filmed clip the same way and compares driver and avatar.
"""

import argparse
import base64
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from browsing import executable
from camera_films import MOVE_FRAMES, moving_face, numbered, write_film

from letstalk_rt.models.face.head_pose import head_angles

SETTLE_S = 8.0
"""Time from the switch of the camera until what is shown is measured."""

LEAST_MOTION = np.radians(1.5)
"""Standard deviation of an angle that counts as motion."""

_IDENTITY_EVERY = 8  # frames

SPY = """
const create = RTCPeerConnection.prototype.createDataChannel;
RTCPeerConnection.prototype.createDataChannel = function (...options) {
  const channel = create.apply(this, options);
  window.bench = { pc: this };
  channel.addEventListener("message", ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === "session.stats") window.bench.stats = message;
  });
  return channel;
};
"""
"""Keeps the connection and the server's latest statistics."""

WATCH = """
() => {
  window.seen = { mirror: [], video: [] };
  const size = 24;
  for (const id of ["mirror", "video"]) {
    const video = document.getElementById(id);
    const canvas = new OffscreenCanvas(size, size);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const look = () => {
      context.drawImage(video, 0, 0, size, size);
      const { data } = context.getImageData(0, 0, size, size);
      window.seen[id].push([performance.now(), ...data.filter((_, i) => i % 4 === 1)]);
      video.requestVideoFrameCallback(look);
    };
    video.requestVideoFrameCallback(look);
  }
}
"""
"""Collects the time in ms and the green of 24x24 pixels of each frame of mirror and avatar."""

RECORD = """
() => {
  window.seen = { mirror: [], video: [] };
  const paint = (video, width, height) => {
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d", { willReadFrequently: true }).drawImage(video, 0, 0, width, height);
    return canvas;
  };
  const mirror = document.getElementById("mirror");
  const number = () => {
    const canvas = paint(mirror, 480, 360);
    let sum = 0;
    for (let bit = 0; bit < 10; bit++) {
      const { data } = canvas.getContext("2d").getImageData(20, 36 * bit + 18, 1, 1);
      if (data[1] > 128) sum += 1 << bit;
    }
    window.seen.mirror.push([performance.now(), sum]);
    mirror.requestVideoFrameCallback(number);
  };
  const video = document.getElementById("video");
  const keep = async () => {
    video.requestVideoFrameCallback(keep);
    const at = performance.now();
    const blob = await paint(video, 384, 384).convertToBlob({ type: "image/jpeg", quality: 0.9 });
    const bytes = new Uint8Array(await blob.arrayBuffer());
    window.seen.video.push([at, btoa(bytes.reduce((s, b) => s + String.fromCharCode(b), ""))]);
  };
  mirror.requestVideoFrameCallback(number);
  video.requestVideoFrameCallback(keep);
}
"""
"""Collects the numbers of the mirror's frames and the avatar's frames as JPEG, with their times."""

BUFFERS = """
async () => {
  const found = {};
  for (const entry of (await window.bench.pc.getStats()).values()) {
    if (entry.type !== "inbound-rtp" || entry.kind !== "video") continue;
    found.jitter_buffer_ms = (1000 * entry.jitterBufferDelay) / entry.jitterBufferEmittedCount;
    found.decode_ms = (1000 * entry.totalDecodeTime) / entry.framesDecoded;
    found.processing_ms = (1000 * entry.totalProcessingDelay) / entry.framesDecoded;
  }
  return found;
}
"""
"""Returns the mean times that the avatar's frames spend in the browser."""


@contextmanager
def visit(
    film: Path, lips: str, *, avatar: str | None = None, microphone: bool = False
) -> Iterator[Any]:
    """Run the server, open its page with a film as camera, and yield it when the camera is on.

    Args:
        film: y4m or mjpeg.
        lips: what moves the lips.
        avatar: whose face is driven; the first of the page when None.
        microphone: whether the microphone is on, too; Chromium's beeps.

    Raises:
        SystemExit: the browser is missing, or the server did not start.
    """
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "letstalk_server", "--port", "0"]
    flags = (
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
        "--autoplay-policy=no-user-gesture-required",
    )
    path = executable()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as run:
        try:
            assert run.stdout is not None
            address = re.search(r"http://\S+", run.stdout.readline())
            if address is None:
                raise SystemExit("the server did not start")
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=path, args=list(flags))
                page = browser.new_page(bypass_csp=True)
                page.set_default_timeout(120_000)
                page.add_init_script(SPY)
                page.goto(address.group() + (f"?avatar={avatar}" if avatar else ""))
                page.wait_for_selector("body[data-state=live]")
                if microphone:
                    page.click("#talk")
                page.check("#camera-switch", force=True)
                page.select_option("#camera-lips", lips)
                time.sleep(SETTLE_S)
                yield page
                browser.close()
        finally:
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=60)


# The delay


def bench_latency(options: argparse.Namespace) -> dict[str, Any]:
    """Return the delay from the mirror to the avatar, and the parts of it that are known."""
    with tempfile.TemporaryDirectory() as folder:
        film = options.film or Path(folder) / "film.y4m"
        if options.film is None:
            write_film(film, moving_face(8 * MOVE_FRAMES))
        lips = options.lips or "sound"
        with visit(film, lips, microphone=options.microphone) as page:
            page.evaluate(WATCH)
            time.sleep(options.seconds)
            seen = page.evaluate("() => window.seen")
            parts = page.evaluate("() => window.bench.stats?.stages_ms ?? {}")
            buffers = page.evaluate(BUFFERS)
            if options.screenshot is not None:
                page.screenshot(path=str(options.screenshot))
    mirror, avatar = (np.array(seen[name], np.float64) for name in ("mirror", "video"))
    moves = crossings(mirror[:, 0], course(mirror[:, 1:]))
    delays = delays_ms(moves, crossings(avatar[:, 0], course(avatar[:, 1:])))
    result: dict[str, Any] = {"lips": lips, "microphone": options.microphone, "moves": len(moves)}
    result |= {"followed": len(delays), "server_ms": parts, "browser_ms": buffers}
    if delays:
        p50, p95 = np.percentile(delays, (50, 95))
        result |= {"p50_ms": round(float(p50)), "p95_ms": round(float(p95))}
    return result


def course(frames: np.ndarray) -> np.ndarray:
    """Return what changes most in frames `(T, P)`, from 0 at one end to 1 at the other, `(T,)`."""
    changes = frames - frames.mean(0)
    _, _, axes = np.linalg.svd(changes, full_matrices=False)
    along = changes @ axes[0]
    low, high = np.percentile(along, (10, 90))
    return np.asarray((along - low) / max(1e-9, high - low))


def crossings(times_ms: np.ndarray, along: np.ndarray) -> list[float]:
    """Return when a course, from 0 to 1, is half way, in each move from one end to the other."""
    found, last_end = [], None
    half = 0.0
    for at in range(1, len(along)):
        before, after = along[at - 1], along[at]
        if (before - 0.5) * (after - 0.5) <= 0 and before != after:
            share = (0.5 - before) / (after - before)
            half = float(times_ms[at - 1] + share * (times_ms[at] - times_ms[at - 1]))
        end = 0 if after < 0.2 else 1 if after > 0.8 else None
        if end is not None:
            if last_end is not None and end != last_end:
                found.append(half)
            last_end = end
    return found


def delays_ms(moves: Sequence[float], followed: Sequence[float]) -> list[float]:
    """Return for each move of the mirror how much later the avatar made it, if it did."""
    delays = []
    for at in moves:
        after = [one for one in followed if at < one < at + 1000 * MOVE_FRAMES / 25]
        if after:
            delays.append(after[0] - at)
    return delays


# A clip by way of the page


def bench_page(
    clip: Any,
    judge: Callable[[np.ndarray], Any],
    likeness: Callable[[np.ndarray], float],
    driver: np.ndarray,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return how well an avatar follows a clip that is the camera of a browser.

    Args:
        clip: of the data, with `frames` and `name`.
        judge: returns the pose `(4, 4)` of the face in a frame and its eyes; None without a face.
        likeness: returns the likeness of frames `(N, H, W, 3)` uint8 to the portrait.
        driver: yaw, pitch and roll of the clip's frames, `(T, 3)`.
        options: `frames`, `lips`, `seconds`.
    """
    count = min(options.frames, len(driver), 1000)
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.y4m"
        write_film(film, numbered(clip.frames[number] for number in range(count)))
        with visit(film, options.lips or "camera", avatar=options.avatar) as page:
            page.evaluate(RECORD)
            time.sleep(options.seconds)
            seen = page.evaluate("() => window.seen")
    shown = [(at, _decoded(jpeg)) for at, jpeg in sorted(seen["video"])]
    found = [(at, judge(frame)) for at, frame in shown]
    times = np.array([at for at, one in found if one is not None])
    if not len(times):
        raise SystemExit("the page showed no face of an avatar; see its screenshot by --latency")
    avatar = head_angles(np.stack([one[0] for _, one in found if one is not None]))
    result = {"clip": clip.name, "frames": len(found), "seen": len(times) / max(1, len(found))}
    result["identity"] = likeness(np.stack([frame for _, frame in shown[::_IDENTITY_EVERY]]))
    return result | follow(np.array(seen["mirror"]), times, avatar, driver[:count])


def follow(
    mirror: np.ndarray, times_ms: np.ndarray, avatar: np.ndarray, driver: np.ndarray
) -> dict[str, float]:
    """Return the correlations at the delay at which avatar and driver agree best, and that delay.

    Args:
        mirror: time in ms and number of each frame of the mirror, `(N, 2)`.
        times_ms: of the avatar's frames, `(M,)`.
        avatar: their yaw, pitch and roll, `(M, 3)`.
        driver: those of the film's frames, `(T, 3)`. An angle that hardly changes has no r.
    """
    best: tuple[float, float, np.ndarray] = (-np.inf, 0.0, np.full(3, np.nan))
    for delay_ms in np.arange(100.0, 1000.0, 10.0):
        at = np.searchsorted(mirror[:, 0], times_ms - delay_ms, side="right") - 1
        known = at >= 0
        number = mirror[at[known], 1].astype(int)
        known[known] &= number < len(driver)
        shown = driver[number[number < len(driver)]]
        if len(shown) < 50:
            continue
        moves = [a for a in range(3) if shown[:, a].std() > LEAST_MOTION]
        r = np.full(3, np.nan)
        for axis in moves:
            r[axis] = np.corrcoef(shown[:, axis], avatar[known][:, axis])[0, 1]
        if moves and np.nanmean(r) > best[0]:
            best = float(np.nanmean(r)), float(delay_ms), r
    names = ("yaw", "pitch", "roll")
    return {"delay_ms": best[1]} | {n: float(r) for n, r in zip(names, best[2], strict=True)}


def _decoded(jpeg: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(jpeg))).convert("RGB"))
