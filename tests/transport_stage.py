"""A session's transport side without a server: a playout that is fed, a transport, real peers.

The picture is grey, and white in the middle while the sound is loud: flash and beep.
"""

import asyncio
from contextlib import asynccontextmanager, suppress

import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from letstalk_rt.types import SAMPLES_PER_FRAME, AVFrame
from letstalk_server.aiortc_transport import AiortcTransport
from letstalk_server.playout import PulledPlayout
from letstalk_server.transport import Handlers, Role

SIDE = 256
PERIOD = 25
"""Frames from flash to flash."""

FLASH = 3
"""Frames that one lasts."""


def flash_and_beep(index, side=SIDE):
    """Give frame `index`: the first ones of each second are white and loud."""
    on = index % PERIOD < FLASH and index >= PERIOD
    rgb = np.full((side, side, 3), 90, np.uint8)
    rgb[:, : side // 2, 0] = index % 200  # every picture differs from the one before
    if on:
        rgb[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    t = np.arange(SAMPLES_PER_FRAME) / 16_000
    pcm = np.sin(2 * np.pi * 1000 * t) * (0.5 if on else 0.0)
    return AVFrame(rgb, pcm.astype(np.float32), index, 0, 0)


class Stage:
    """One session: `transport`, `media` and what makes its frames."""

    def __init__(self, side=SIDE, **options):
        self.transport = AiortcTransport(**options)
        self.playout = PulledPlayout(flash_and_beep(0, side).rgb)
        self.media = self.transport.media(self.playout)
        self.peers = []
        self._side = side

    async def perform(self):
        index = 0
        while True:
            await self.playout.put(flash_and_beep(index, self._side))
            index += 1

    def open(self, role=Role.VIEWER, **handlers):
        peer = self.transport.open(role, self.media, Handlers(**handlers))
        self.peers.append(peer)
        return peer

    async def connect(self, guest, role=Role.VIEWER, **handlers):
        """Connect a `Guest` and give the server's end."""
        peer = self.open(role, **handlers)
        await guest.accept(await peer.answer(await guest.offer()))
        return peer


@asynccontextmanager
async def staged(side=SIDE, **options):
    stage = Stage(side, **options)
    performing = asyncio.create_task(stage.perform(), name="session-performing")
    try:
        yield stage
    finally:
        for peer in stage.peers:
            await peer.aclose()
        await stage.media.aclose()
        performing.cancel()
        with suppress(asyncio.CancelledError):
            await performing
        stage.transport.close()


class Guest:
    """A real peer in this process that keeps what it gets."""

    def __init__(self, voice=None, video=True, codec=None):
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver(voice or "audio", "sendrecv" if voice else "recvonly")
        if video:
            sight = self.pc.addTransceiver("video", "recvonly")
            if codec is not None:
                known = RTCPeerConnection and __import__("aiortc").RTCRtpReceiver
                codecs = known.getCapabilities("video").codecs
                sight.setCodecPreferences([c for c in codecs if c.mimeType == f"video/{codec}"])
        self.video, self.audio = [], []
        self.changed = asyncio.Event()
        self._tasks = []
        self.pc.on("track", self._on_track)

    async def offer(self):
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp

    async def accept(self, answer):
        self.answer = answer
        await self.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def receiver(self, kind):
        return next(t.receiver for t in self.pc.getTransceivers() if t.kind == kind)

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

    async def until(self, wanted, limit_s=30):
        async with asyncio.timeout(limit_s):
            while not wanted():
                self.changed.clear()
                await self.changed.wait()

    async def close(self):
        await self.pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
