"""A peer of aiortc that speaks in beeps, and records when what it receives is due.

Its first line on standard output is JSON with the session; the last one is JSON with what it saw
and heard: see `Recording`. All times are `time.monotonic`, which all processes share.

    python -m bad_network.aiortc_peer http://10.77.0.1:8080 --seconds 20      (in benchmarks/)
"""

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aioice.ice import get_host_addresses
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import AnyRtcpPacket, RtcpSrPacket, RtpPacket
from bad_network import marks
from bad_network.moving_client import restart_ice

PING_S = 1.0
LOOK_S = 0.2
"""Time between two looks at the addresses of this host."""

PERIOD_S, BEEP_S = 0.8, 0.24
"""Time from beep to beep, and the length of one."""

RATE, PACKET = 48_000, 960
LOUD, QUIET_S = 1500, 0.3
"""Level of an int16 sample that counts as loud, and the silence before a new beep."""


def beeps() -> np.ndarray:
    """Return one period of the microphone, `(n,)` int16 at 48 kHz: a vowel, then silence."""
    t = np.arange(int(RATE * BEEP_S)) / RATE
    hz = 120.0 * np.arange(1, 30)
    gains = 1 / (1 + ((hz - 700) / 200) ** 2) + 0.5 / (1 + ((hz - 1200) / 200) ** 2)
    vowel = (gains[:, None] * np.cos(2 * np.pi * hz[:, None] * t)).sum(0)
    period = np.zeros(int(RATE * PERIOD_S))
    period[: t.size] = 0.12 * vowel
    return (np.clip(period, -1, 1) * 32_767).astype(np.int16)


class Microphone(MediaStreamTrack):
    """A microphone that plays the beeps in a loop, in real time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._samples, self._count = beeps(), 0
        self._start_s = time.monotonic()

    async def recv(self) -> av.AudioFrame:
        """Return the next 20 ms when they are due."""
        await asyncio.sleep(self._start_s + self._count * PACKET / RATE - time.monotonic())
        places = np.arange(self._count * PACKET, (self._count + 1) * PACKET) % self._samples.size
        frame = av.AudioFrame.from_ndarray(self._samples[places][None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, self._count * PACKET
        frame.time_base = Fraction(1, RATE)
        self._count += 1
        return frame


@dataclass
class Recording:
    """What a peer saw and heard.

    Attributes:
        shown: of each frame: when it came, when it is due by the sender's clock, and how long
            before that the last sound was due by the marks in it, or None; seconds.
        heard: when each beep is due by the sender's clock, s.
        sounds: when each packet of audio came, s.
        states: when the connection had each new state, s.
        messages: when each message of the server came, s, and its type.
    """

    shown: list[tuple[float, float, float | None]] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    sounds: list[float] = field(default_factory=list)
    states: list[tuple[float, str]] = field(default_factory=list)
    messages: list[tuple[float, str]] = field(default_factory=list)


class SenderClock:
    """Maps timestamps of a received track to the sender's time, by its sender reports."""

    def __init__(self, receiver: Any, rate: int) -> None:
        self._rate = rate
        self._first: int | None = None
        self._pairs: list[tuple[int, float]] = []
        handle_rtp, handle_rtcp = receiver._handle_rtp_packet, receiver._handle_rtcp_packet

        async def on_rtp(packet: RtpPacket, arrival_time_ms: int) -> None:
            if self._first is None:
                self._first = packet.timestamp
            await handle_rtp(packet, arrival_time_ms=arrival_time_ms)

        async def on_rtcp(packet: AnyRtcpPacket) -> None:
            if isinstance(packet, RtcpSrPacket) and packet.sender_info.ntp_timestamp:
                info = packet.sender_info
                self._pairs.append((info.rtp_timestamp, info.ntp_timestamp / 2**32))
            await handle_rtcp(packet)

        receiver._handle_rtp_packet, receiver._handle_rtcp_packet = on_rtp, on_rtcp

    def due_s(self, pts: int) -> float:
        """Return the sender's time of a timestamp: NTP, s."""
        assert self._first is not None and self._pairs, "no sender report came"
        now = (self._first + pts) % 2**32
        nearest = self._pairs[-1]
        ticks = (now - nearest[0] + 2**31) % 2**32 - 2**31
        return nearest[1] + ticks / self._rate


class AiortcPeer:
    """A peer that behaves like the page in a browser, without its reconnects."""

    def __init__(self) -> None:
        self.recording = Recording()
        self.session = ""
        self.live = asyncio.Event()
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        audio = self._pc.addTransceiver(Microphone(), "sendrecv")
        video = self._pc.addTransceiver("video", "recvonly")
        self._clocks = {
            "audio": SenderClock(audio.receiver, 48_000),
            "video": SenderClock(video.receiver, 90_000),
        }
        self._channel = self._pc.createDataChannel("control")
        self._channel.on("message", self._on_message)
        self._pc.on("track", self._on_track)
        self._pc.on("connectionstatechange", self._on_state)
        self._tasks: list[asyncio.Task[None]] = []
        self._quiet_s, self._next_pts = 0.0, 0
        self._place = ""
        self._heard_pts: list[int] = []
        self._shown_pts: list[tuple[float, int, float | None]] = []

    async def open(self, address: str) -> None:
        """Connect to a server."""
        await self._pc.setLocalDescription(await self._pc.createOffer())
        body = {"type": "offer", "sdp": self._pc.localDescription.sdp}
        request = urllib.request.Request(
            f"{address}/v1/offer", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        answer = await asyncio.to_thread(
            lambda: json.load(urllib.request.urlopen(request, timeout=20))
        )
        self.session = answer["session"]
        connection = answer["connection"]
        self._place = f"{address}/v1/sessions/{self.session}/connections/{connection}"
        await self._pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
        self._tasks.append(asyncio.create_task(self._ping()))
        self._tasks.append(asyncio.create_task(self._follow_addresses()))

    async def close(self) -> Recording:
        """Close the connection, and return what was recorded."""
        await self._pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        clocks, kept = self._clocks, self.recording
        kept.heard = [clocks["audio"].due_s(pts) for pts in self._heard_pts]
        kept.shown = [
            (at_s, clocks["video"].due_s(pts), age_s) for at_s, pts, age_s in self._shown_pts
        ]
        return kept

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            if self._channel.readyState == "open":
                self._channel.send('{"type": "session.ping"}')

    async def _follow_addresses(self) -> None:
        known = get_host_addresses(True, True)
        while True:
            await asyncio.sleep(LOOK_S)
            now = get_host_addresses(True, True)
            if now and now != known:
                known = now
                await restart_ice(self._pc, self._restart)

    async def _restart(self, fragment: str) -> str:
        headers = {"content-type": "application/trickle-ice-sdpfrag", "if-match": "*"}
        request = urllib.request.Request(self._place, fragment.encode(), headers, method="PATCH")
        return await asyncio.to_thread(
            lambda: urllib.request.urlopen(request, timeout=5).read().decode()
        )

    def _on_message(self, text: str) -> None:
        self.recording.messages.append((time.monotonic(), json.loads(text)["type"]))

    def _on_state(self) -> None:
        self.recording.states.append((time.monotonic(), self._pc.connectionState))

    def _on_track(self, track: MediaStreamTrack) -> None:
        record = self._watch if track.kind == "video" else self._listen
        self._tasks.append(asyncio.create_task(record(track)))

    async def _watch(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, av.VideoFrame) and frame.pts is not None
            self.live.set()
            found = marks.read(frame.to_ndarray(format="gray"))
            age_s = None if found is None else (40 * found[0] - found[1]) / 1000
            self._shown_pts.append((time.monotonic(), frame.pts, age_s))

    async def _listen(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, av.AudioFrame) and frame.pts is not None
            self.recording.sounds.append(time.monotonic())
            if frame.pts != self._next_pts:
                self._quiet_s = 0.0  # a beep whose beginning was lost cannot be timed
            self._next_pts = frame.pts + frame.samples
            samples = np.abs(frame.to_ndarray().reshape(frame.samples, -1).max(1).astype(int))
            loud = np.flatnonzero(samples > LOUD)
            if loud.size and self._quiet_s + loud[0] / RATE > QUIET_S:
                self._heard_pts.append(frame.pts + int(loud[0]))
            self._quiet_s = 0.0 if loud.size else self._quiet_s + frame.samples / RATE


async def watch(address: str, seconds: float) -> None:
    """Connect, tell when the first frame has come, and record for so long."""
    peer = AiortcPeer()
    await peer.open(address)
    async with asyncio.timeout(30):
        await peer.live.wait()
    print(json.dumps({"session": peer.session, "live_s": time.monotonic()}), flush=True)
    await asyncio.sleep(seconds)
    print(json.dumps(asdict(await peer.close())), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="of the server, http://HOST:PORT")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args(argv)
    asyncio.run(watch(options.address, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
