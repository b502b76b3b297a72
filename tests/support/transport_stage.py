"""The transport of a session without a server: a playout with test frames, a transport, real peers.

The video is grey, and white in the middle while the audio is loud: flash and beep.
"""

import asyncio
import random
from contextlib import asynccontextmanager, suppress

import av
import numpy as np
from aiortc import (
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpReceiver,
    RTCSessionDescription,
)
from aiortc.jitterbuffer import JitterBuffer
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtcpSrPacket

from letstalk_rt.types import SAMPLES_PER_FRAME, AVFrame
from letstalk_server.session.playout import SlotPlayout
from letstalk_server.session.transport import Handlers, PeerRole
from letstalk_server.webrtc.aiortc_transport import AiortcTransport
from support import aiortc_internals

SIDE = 256
PERIOD = 15
"""Frames from flash to flash."""

SHADES = (255, 210, 165)
"""Of the frames of one flash, so that a receiver that missed the first can compute its time."""


def flash_and_beep(index, side=SIDE):
    """Return frame `index`: the first ones of each period are bright and loud."""
    place = index % PERIOD
    on = place < len(SHADES) and index >= PERIOD
    rgb = np.full((side, side, 3), 90, np.uint8)
    rgb[:, : side // 2, 0] = index % 200  # every frame differs from the one before
    if on:
        rgb[side // 4 : -side // 4, side // 4 : -side // 4] = SHADES[place]
    t = np.arange(SAMPLES_PER_FRAME) / 16_000
    pcm = np.sin(2 * np.pi * 1000 * t) * (0.5 if on else 0.0)
    return AVFrame(rgb, pcm.astype(np.float32), index, 0, 0)


class Stage:
    """One session: `transport`, `media` and what makes its frames."""

    def __init__(self, side=SIDE, **options):
        self.connections = []
        """aiortc's peer connections at the server's end."""
        self.transport = AiortcTransport(connect=self._connect, **options)
        self.playout = SlotPlayout(flash_and_beep(0, side).rgb)
        self.media = self.transport.media(self.playout)
        self.peers, self.guests = [], []
        self._side = side

    def _connect(self, configuration):
        self.connections.append(RTCPeerConnection(configuration))
        return self.connections[-1]

    async def perform(self):
        index = 0
        while True:
            await self.playout.put(flash_and_beep(index, self._side))
            index += 1

    def open(self, role=PeerRole.VIEWER, **handlers):
        peer = self.transport.open(role, self.media, Handlers(**handlers))
        self.peers.append(peer)
        return peer

    def guest(self, voice=None, **options):
        """Make a peer in this process; it is closed with the stage."""
        self.guests.append(Guest(voice, **options))
        return self.guests[-1]

    async def connect(self, guest, role=PeerRole.VIEWER, **handlers):
        """Connect a `Guest` and return the server's end."""
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
        for guest in stage.guests:
            await guest.close()
        for peer in stage.peers:
            await peer.aclose()
        await stage.media.aclose()
        performing.cancel()
        with suppress(asyncio.CancelledError):
            await performing
        stage.transport.close()


class Guest:
    """A real peer in this process that records what it receives."""

    def __init__(self, voice=None, video=True, codec=None, configuration=None, camera=None):
        self.pc = RTCPeerConnection(configuration or RTCConfiguration(iceServers=[]))
        self.pc.addTransceiver(voice or "audio", "sendrecv" if voice else "recvonly")
        if video:
            sight = self.pc.addTransceiver(camera or "video", "sendrecv" if camera else "recvonly")
            if codec is not None:
                codecs = RTCRtpReceiver.getCapabilities("video").codecs
                sight.setCodecPreferences([c for c in codecs if c.mimeType == f"video/{codec}"])
        for each in self.pc.getTransceivers():
            if each.kind == "video":
                # aiortc waits 5 s for what was lost, a browser one; then both ask for a key frame.
                buffer = JitterBuffer(capacity=128, is_video=True)
                aiortc_internals.set_jitter_buffer(each.receiver, buffer)
        self.onsets = Onsets()
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

    def forget(self):
        """Clear the recording."""
        self.video.clear()
        self.audio.clear()
        self.onsets = Onsets()

    def _on_track(self, track):
        self._tasks.append(asyncio.ensure_future(self._record(track)))

    async def _record(self, track):
        kept = self.video if track.kind == "video" else self.audio
        try:
            while True:
                kept.append(await track.recv())
                self.onsets.note(kept[-1])
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


class SenderClock:
    """Maps timestamps of a received track to wall time by its sender reports, as browsers do."""

    def __init__(self, pc, kind):
        self._rate = {"audio": 48_000, "video": 90_000}[kind]
        self._first, self._pairs = None, []
        receiver = next(t.receiver for t in pc.getTransceivers() if t.kind == kind)
        aiortc_internals.observe_packets(receiver, self._on_rtp, self._on_rtcp)

    def __bool__(self):
        return len(self._pairs) > 2

    def _on_rtp(self, packet):
        self._first = packet.timestamp if self._first is None else self._first

    def _on_rtcp(self, packet):
        if isinstance(packet, RtcpSrPacket) and packet.sender_info.ntp_timestamp:
            info = packet.sender_info
            self._pairs.append((info.rtp_timestamp, info.ntp_timestamp / 2**32))

    def wall_s(self, pts):
        """Return the wall time of a timestamp, by the reports so far."""
        now = self._first + pts
        return float(np.median([ntp + _signed(now - rtp) / self._rate for rtp, ntp in self._pairs]))


def _signed(ticks):
    return (ticks + 2**31) % 2**32 - 2**31


class Onsets:
    """Finds the timestamps at which the middle lights up, and at which the beep begins."""

    def __init__(self):
        self.flashes, self.beeps = [], []
        self._shade, self._quiet = 255, False

    def note(self, frame):
        if isinstance(frame, av.VideoFrame):
            self._look(frame)
        else:
            self._listen(frame)

    def _look(self, frame):
        before = self._shade
        self._shade = int(frame.to_ndarray(format="gray")[frame.height // 2, frame.width // 2])
        if before < 130 <= self._shade:
            missed = int(np.argmin(np.abs(np.array(SHADES) - self._shade)))
            self.flashes.append(frame.pts - missed * 3600)

    def _listen(self, frame):
        samples = np.abs(frame.to_ndarray().reshape(frame.samples, -1).max(1).astype(int))
        if self._quiet and samples.max() > 3000:
            self.beeps.append(frame.pts + int(np.argmax(samples > 3000)))
        self._quiet = samples.max() < 1500


def skews_ms(guest, clocks):
    """Return for each flash how much later its beep is, by the sender reports."""
    if not all(clocks.values()) or not guest.onsets.beeps:
        return []
    sights = [clocks["video"].wall_s(pts) for pts in guest.onsets.flashes]
    chunks = np.array([clocks["audio"].wall_s(pts) for pts in guest.onsets.beeps])
    skews = [float(chunks[np.abs(chunks - at).argmin()] - at) * 1000 for at in sights]
    return [skew for skew in skews if abs(skew) < 250]  # further off is the beep of another flash


class Path:
    """A bad network at the sending side of a peer connection.

    Args:
        pc: the connection whose packets are impaired.
        loss: share of packets lost.
        delay_s: delay of all packets.
        jitter_s: maximum random delay that is added, so that packets are reordered.
    """

    def __init__(self, pc, loss=0.0, delay_s=0.0, jitter_s=0.0, seed=0):
        self.is_scene_change = False
        self.lost = 0
        self._loss, self._delay_s, self._jitter_s = loss, delay_s, jitter_s
        self._random = random.Random(seed)
        self._sending = set()
        self._send_now = aiortc_internals.intercept_sent(pc, self._send)

    async def _send(self, data):
        if self.is_scene_change or self._random.random() < self._loss:
            self.lost += 1
            return
        wait_s = self._delay_s + self._random.random() * self._jitter_s
        task = asyncio.ensure_future(self._send_later(data, wait_s))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send_later(self, data, wait_s):
        await asyncio.sleep(wait_s)
        with suppress(ConnectionError):
            await self._send_now(data)
