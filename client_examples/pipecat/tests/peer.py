"""The other end of a call: an aiortc peer that records what it is sent, and the call itself."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner

LOUD = 3000
POLL_S = 0.02
RECEIVER_S = 0.08
"""How long ago what is heard has arrived: the jitter buffer of aiortc holds 4 packets of 20 ms."""
MICROPHONE_HZ = 48_000


@dataclass
class Heard:
    """Audio that arrived, 20 ms or so."""

    at_s: float
    peak: int


@dataclass
class Seen:
    """An image that arrived; `left` and `right` are the greys in the middle of its halves."""

    at_s: float
    size: tuple[int, int]
    left: int
    right: int


@dataclass
class Peer:
    """A client of the agent.

    Args:
        microphone: a track that it sends, if any.
    """

    microphone: MediaStreamTrack | None = None
    heard: list[Heard] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    tasks: list[asyncio.Task] = field(default_factory=list)
    connection: RTCPeerConnection = field(default_factory=RTCPeerConnection)

    async def offer(self):
        """Return an offer in the order of Pipecat's client: microphone, camera, screen."""
        self.connection.on("track", self._receive)
        kind = self.microphone or "audio"
        direction = "sendrecv" if self.microphone else "recvonly"
        self.connection.addTransceiver(kind, direction)
        self.connection.addTransceiver("video", "recvonly")
        self.connection.addTransceiver("video", "recvonly")
        self.connection.createDataChannel("pipecat")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription

    async def answer(self, answer):
        description = RTCSessionDescription(sdp=answer["sdp"], type=answer["type"])
        await self.connection.setRemoteDescription(description)

    async def close(self):
        await self.connection.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def loud_since(self, since_s):
        """Return when loud audio arrived since then."""
        return [audio.at_s for audio in self.heard if audio.at_s >= since_s and audio.peak > LOUD]

    def bright_since(self, since_s):
        """Return when images with a white right half arrived since then."""
        return [image.at_s for image in self.seen if image.at_s >= since_s and image.right > 128]

    def is_quiet_for(self, seconds):
        """Return whether no loud audio arrived for so long."""
        return not self.loud_since(time.monotonic() - seconds)

    async def until(self, condition, within_s=20.0):
        """Wait for a condition; fail when it takes too long."""
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110 (it may be about anything)
                await asyncio.sleep(POLL_S)

    def _receive(self, track):
        receive = self._listen if track.kind == "audio" else self._watch
        self.tasks.append(asyncio.create_task(receive(track)))

    async def _listen(self, track):
        async for audio in frames_of(track):
            peak = int(np.abs(audio.to_ndarray().astype(int)).max())
            self.heard.append(Heard(time.monotonic(), peak))

    async def _watch(self, track):
        async for video in frames_of(track):
            grey = video.to_ndarray(format="gray")
            height, width = grey.shape
            left, right = grey[height // 2, width // 4], grey[height // 2, width * 3 // 4]
            size = (video.width, video.height)
            self.seen.append(Seen(time.monotonic(), size, int(left), int(right)))


async def frames_of(track):
    """Yield what a track receives until it ends."""
    while True:
        try:
            yield await track.recv()
        except MediaStreamError:
            return


@dataclass
class Call:
    """A running agent and its client."""

    peer: Peer
    worker: PipelineWorker
    task: asyncio.Task
    errors: list = field(default_factory=list)

    async def say(self, frames):
        await self.worker.queue_frames(frames)


@asynccontextmanager
async def call(processors, params: TransportParams):
    """Run a pipeline between the ends of a `SmallWebRTCTransport` and connect a client to it."""
    peer, connection = Peer(), SmallWebRTCConnection()
    offer = await peer.offer()
    await connection.initialize(sdp=offer.sdp, type=offer.type)
    transport = SmallWebRTCTransport(connection, params)
    worker = PipelineWorker(
        Pipeline([transport.input(), *processors, transport.output()]),
        params=PipelineParams(enable_metrics=True),
        cancel_on_idle_timeout=False,
        enable_rtvi=False,
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = Call(peer, worker, asyncio.create_task(runner.run()))

    @worker.event_handler("on_pipeline_error")
    async def on_error(_, frame):
        running.errors.append(frame.error)

    try:
        await peer.answer(connection.get_answer())
        await connection.connect()
        yield running
    finally:
        await worker.cancel()
        await asyncio.wait([running.task], timeout=10)
        await peer.close()


class Microphone(MediaStreamTrack):
    """A microphone that is silent until it is given something to say; 48 kHz mono."""

    kind = "audio"

    def __init__(self):
        super().__init__()
        self._pcm = np.zeros(0, np.int16)
        self._sent = 0
        self._started_s = None

    def say(self, pcm):
        self._pcm = np.concatenate([self._pcm, pcm])

    async def recv(self):
        now_s = asyncio.get_running_loop().time()
        self._started_s = self._started_s or now_s
        await asyncio.sleep(self._started_s + self._sent / MICROPHONE_HZ - now_s)
        piece, self._pcm = self._pcm[:960], self._pcm[960:]
        samples = np.pad(piece, (0, 960 - piece.size))
        frame = AudioFrame.from_ndarray(samples[None], layout="mono")
        frame.sample_rate, frame.pts = MICROPHONE_HZ, self._sent
        frame.time_base = Fraction(1, MICROPHONE_HZ)
        self._sent += 960
        return frame


class LoopLag:
    """Measures whether the event loop runs on time; use it in `async with`."""

    def __init__(self):
        self._late_s = []

    async def __aenter__(self):
        self._task = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def is_busy(self):
        """Whether more than one timer in fifty was 5 ms late."""
        late = sorted(self._late_s)
        return bool(late) and late[len(late) * 49 // 50] > 0.005

    async def _measure(self):
        while True:
            due_s = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self._late_s.append(time.monotonic() - due_s)


@asynccontextmanager
async def in_real_time():
    """Skip a test that fails while the machine is too busy for a call."""
    async with LoopLag() as lag:
        try:
            yield
        except (AssertionError, TimeoutError):
            if lag.is_busy:
                pytest.skip("the machine is too busy for a call")
            raise
