"""Shared by the server tests: a pipeline that paints, a WebRTC peer, and portraits to upload.

The painter has the interface of the real pipeline and no weights: its mouth opens with the level of
the audio. `python -m support.server_fakes` in tests/ serves the page with it.
"""

import asyncio
import functools
import io
import json
import sys
import tempfile
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from PIL import Image, ImageDraw

from letstalk_rt.inference.protocol import (
    DEFAULT_OPTIONS,
    CameraReading,
    CameraStatus,
    Pipeline,
)
from letstalk_rt.models.face.face_motion import NUM_MOTION
from letstalk_rt.performance.direction import channel
from letstalk_rt.types import Face, FaceTrack
from letstalk_server.app import create_app
from letstalk_server.main import serve
from letstalk_server.session.avatar_service import LoadedModel
from letstalk_server.settings import Settings

SPF = 640


class PaintedFinder:
    """Finds a face in every image that is not uniform: one in each square, side by side."""

    crop_px = 256

    def fingerprint(self):
        return "painted"

    def find_faces(self, rgb):
        if rgb.std() < 20:
            return []
        height, width = rgb.shape[:2]
        count = max(1, width // height)
        x = np.array([0.3, 0.7, 0.5, 0.5]) * width / count
        y = np.array([0.5, 0.5, 0.3, 0.75]) * height
        lefts = [width / count * number for number in range(count)]
        return [Face(np.stack([x + left, y], 1).astype(np.float32), 0.9, 0.0) for left in lefts]


class Painter(Pipeline[dict]):
    """A pipeline; steps fail for a canvas with the colour `broken` in its corner."""

    fps, frames_per_window, hop, lookahead_frames = 25, 4, 2560, 2
    partial_sizes, device = (4,), "cpu"

    def __init__(self, broken=None):
        self.finder = PaintedFinder()
        self.broken = broken
        self.steps = 0

    def init_state(self, portrait, options=DEFAULT_OPTIONS):
        return {"portrait": portrait, "past": np.zeros(2 * SPF, np.float32), "count": 0}

    def interrupt(self, state, *, unseen=0):
        state["past"][:] = 0

    def change_portrait(self, state, portrait):
        state["portrait"] = portrait

    def set_motion(self, state, motion):
        state["motion"] = motion

    def track_faces(self, frames, last):
        latent = np.zeros((24, 4, 4), np.float32)
        seen = frames.max((1, 2, 3)) > 100  # a dark frame shows nobody
        return [FaceTrack((1.0, 0.0), (0.0, 0.0), latent, 0.0, 5.0) if s else None for s in seen]

    def batch_key(self, state):
        return id(state)  # each canvas has its own size

    def step(self, pcm, states, deliver=None):
        self.steps += 1
        windows = [self.paint_window(p, s) for p, s in zip(pcm, states, strict=True)]
        if deliver is not None:
            deliver(windows)
        return windows

    def paint_window(self, pcm, state):
        canvas = state["portrait"].canvas
        if self.broken is not None and np.abs(canvas[0, 0].astype(int) - self.broken).max() < 30:
            raise RuntimeError("the secret of a user")
        audio = np.concatenate([state["past"], pcm])
        state["past"] = audio[-2 * SPF :]
        levels = np.sqrt(np.square(audio[: 4 * SPF].reshape(4, SPF)).mean(1))
        state["count"] += 4
        return np.stack([paint(canvas, state["portrait"].box, level) for level in levels])


class BrightFaceReader:
    """Sees a face in every bright frame."""

    def read(self, rgb, captured_s, *, absolute):
        if rgb.mean() < 60:
            return CameraReading(CameraStatus.NO_FACE)
        return CameraReading(CameraStatus.FACE, np.zeros(NUM_MOTION, np.float32))

    def take_neutral(self):
        pass

    def close(self):
        pass


class WatchingPainter(Painter):
    """A painted avatar that looks into the camera, and does not move with it."""

    def open_camera(self):
        return BrightFaceReader()

    def steer(self, state, steering):
        pass


class DirectedPainter(WatchingPainter):
    """A painted avatar that notes how it is directed, window by window, and shows it.

    A patch at the right edge of its frames is grey; its red is brighter the more the head nods, its
    green the more the mouth smiles.
    """

    is_directable = True

    def __init__(self):
        super().__init__()
        self.directed = []

    def direct(self, state, window):
        self.directed.append(window)
        state["direction"] = window

    def paint_window(self, pcm, state):
        frames = super().paint_window(pcm, state)
        window, side = state.pop("direction", None), frames.shape[1] // 8
        frames[:, :side, -side:] = 100
        if window is not None:
            for colour, name, most in ((0, "pitch", 0.1), (1, "smile", 0.3)):
                shares = np.clip(window.added[:, channel(name)] / most, 0, 1)
                frames[:, :side, -side:, colour] += np.uint8(150 * shares)[:, None, None]
        return frames

    def shown(self, name):
        """Return the values that were added to a channel, frame by frame."""
        return [value for each in self.directed for value in each.added[:, channel(name)]]


def paint(canvas, box, level):
    left, top, side = box
    x, y = left + 0.5 * side, top + 0.72 * side
    wide, high = 0.11 * side, side * (0.008 + 0.3 * min(float(level), 0.3))
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    draw.ellipse((x - wide, y - high, x + wide, y + high), fill=(70, 10, 20))
    return np.asarray(image)


def group_jpeg(backdrops):
    """Return a picture of people side by side, each before a backdrop of their own."""
    people = [Image.open(io.BytesIO(portrait_jpeg(backdrop))) for backdrop in backdrops]
    group = Image.new("RGB", (sum(one.width for one in people), people[0].height))
    for place, one in enumerate(people):
        group.paste(one, (place * one.width, 0))
    buffer = io.BytesIO()
    group.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def portrait_jpeg(backdrop=(40, 80, 120), size=(480, 480), skin=(224, 172, 140)):
    image = Image.new("RGB", size, backdrop)
    draw = ImageDraw.Draw(image)
    w, h = size
    draw.ellipse((0.05 * w, 0.78 * h, 0.95 * w, 1.4 * h), fill=(60, 50, 70))
    draw.rounded_rectangle((0.42 * w, 0.6 * h, 0.58 * w, 0.85 * h), 20, fill=skin)
    draw.ellipse((0.24 * w, 0.1 * h, 0.76 * w, 0.6 * h), fill=(50, 30, 22))
    draw.ellipse((0.28 * w, 0.18 * h, 0.72 * w, 0.76 * h), fill=skin)
    for x in (0.4, 0.6):
        draw.ellipse(((x - 0.04) * w, 0.42 * h, (x + 0.04) * w, 0.47 * h), fill="white")
        draw.ellipse(((x - 0.017) * w, 0.425 * h, (x + 0.017) * w, 0.465 * h), fill=(40, 60, 70))
    draw.line((0.5 * w, 0.48 * h, 0.48 * w, 0.56 * h, 0.51 * w, 0.57 * h), (190, 135, 110), 4)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


BACKDROPS = {"amber": (200, 130, 40), "blue": (40, 80, 160)}


@functools.cache
def avatar_folder():
    """Return a folder with a picture for each backdrop, which is removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="avatars-")
    for name, backdrop in BACKDROPS.items():
        Path(folder.name, f"{name}.jpg").write_bytes(portrait_jpeg(backdrop))
    return folder


def model_of(pipeline):
    """Return a loader of the pipeline with two default avatars of different backdrops."""

    def load(settings):
        folder = Path(avatar_folder().name)
        return LoadedModel(pipeline, {name: folder / f"{name}.jpg" for name in BACKDROPS})

    return load


def patient(**options):
    """Return settings for a busy machine: slow connections are not considered lost."""
    return Settings(**{"heartbeat_timeout_s": 60, "report_timeout_s": 60, **options})


@asynccontextmanager
async def serving(settings=None, pipeline=None):
    """Run the application in this loop; yield it and an HTTP client for it."""
    app = create_app(settings or patient(), model_of(pipeline or Painter()))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield app, client


class Voice(MediaStreamTrack):
    """A microphone that plays 48 kHz int16 audio in a loop, in real time."""

    kind = "audio"

    def __init__(self, samples):
        super().__init__()
        self._samples, self._count, self._start_s = samples, 0, None

    async def recv(self):
        loop = asyncio.get_running_loop()
        self._start_s = self._start_s or loop.time()
        await asyncio.sleep(self._start_s + self._count * 0.02 - loop.time())
        index = np.arange(self._count * 960, (self._count + 1) * 960) % self._samples.size
        frame = av.AudioFrame.from_ndarray(self._samples[index][None], "s16", "mono")
        frame.sample_rate, frame.pts = 48_000, self._count * 960
        frame.time_base = Fraction(1, 48_000)
        self._count += 1
        return frame


class Peer:
    """A real WebRTC peer in this process that behaves like the page."""

    def __init__(self, voice=None, ping_s=1.0, camera=None):
        self._ping_s = ping_s
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver(voice or "audio", "sendrecv")
        self.pc.addTransceiver(camera or "video", "sendrecv" if camera else "recvonly")
        self.channel = self.pc.createDataChannel("control")
        self.channel.on("message", self._on_message)
        self.channel.on("open", lambda: self._tasks.append(asyncio.ensure_future(self._ping())))
        self.pc.on("track", self._on_track)
        self.messages, self.video, self.audio = [], [], []
        self.changed = asyncio.Event()
        self._tasks = []

    def _on_message(self, text):
        self.messages.append(json.loads(text))
        self.changed.set()

    async def _ping(self):
        while self._ping_s and self.channel.readyState == "open":
            self.send({"type": "session.ping"})
            await asyncio.sleep(self._ping_s)

    def _on_track(self, track):
        self._tasks.append(asyncio.ensure_future(self._record(track)))

    async def _record(self, track):
        kept = self.video if track.kind == "video" else self.audio
        try:
            while True:
                kept.append(await track.recv())
                self.changed.set()
        except MediaStreamError:
            self.changed.set()

    async def offer(self):
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return {"type": "offer", "sdp": self.pc.localDescription.sdp}

    async def join(self, client, **choice):
        response = await client.post("/v1/offer", json=await self.offer() | choice)
        assert response.status_code == 201, response.text
        answer = response.json()
        self.session = answer["session"]
        await self.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        await self.until(lambda: self.said("session.ready"))
        return self

    async def until(self, wanted, limit_s=30):
        async with asyncio.timeout(limit_s):
            while not wanted():
                self.changed.clear()
                await self.changed.wait()

    def said(self, kind):
        return [message for message in self.messages if message["type"] == kind]

    def send(self, message):
        self.channel.send(message if isinstance(message, str | bytes) else json.dumps(message))

    def corner(self):
        """Return the colour of the backdrop in the last frame."""
        return self.video[-1].to_ndarray(format="rgb24")[8:24, 8:24].mean((0, 1))

    async def close(self):
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def tone(seconds, hz=220, level=0.5):
    t = np.arange(int(48_000 * seconds)) / 48_000
    return (np.sin(2 * np.pi * hz * t) * level * 32_767).astype(np.int16)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    sys.exit(serve(Settings(port=port), model_of(Painter())))


def problem(response, status, code):
    """Check that a response is a problem document of this code, and return its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["code"] == code and document["status"] == status
    assert document["type"].endswith(code) and document["title"] and len(document["detail"]) > 10
    return document["detail"]
