"""Honest viewers, which note when each frame arrives and decode none, so that they cost little.

Two watch over WebRTC (WHEP), two on WebSockets.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from soak.clients import SDP, VIDEO_HZ, read, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from letstalk_rt.types import FPS
from letstalk_server.http.binary_frames import HEADER, PayloadType

QUIET_S = 5.0
"""Time before an attack whose frames tell when one that is not late arrives."""


@dataclass(slots=True)
class Arrivals:
    """When the frames of one session were due and arrived, s of one clock."""

    due_s: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    def add(self, due_s: float) -> None:
        """Note a frame that arrives now."""
        self.due_s.append(due_s)
        self.at_s.append(time.monotonic())

    def lateness_ms(self, from_s: float, to_s: float) -> np.ndarray:
        """Return by how much each frame between two times was late, ms.

        By its timestamp against the least delayed frame of the quiet time before, or by the gap to
        the frame before it, whichever is more: a sender that stops may also move its timestamps.
        """
        due_s, at_s = np.array(self.due_s), np.array(self.at_s)
        delay_s = at_s - due_s
        gaps_s = np.diff(at_s, prepend=at_s[:1] - 1 / FPS)
        quiet = (at_s >= from_s - QUIET_S) & (at_s < from_s)
        during = (at_s >= from_s) & (at_s < to_s)
        if not during.any():
            return np.array([1000 * (to_s - from_s)])
        least_s = delay_s[quiet if quiet.any() else during].min()
        late_s = np.maximum(delay_s - least_s, gaps_s - 1 / FPS)[during]
        # What has not arrived at the end is late, too.
        missing_s = to_s - at_s[during][-1] - 1 / FPS
        return np.append(np.maximum(late_s, 0), max(missing_s, 0)) * 1000


class Viewer(Protocol):
    """A viewer of one session."""

    arrivals: Arrivals
    session: str

    def __init__(self, http: httpx.AsyncClient) -> None:
        """Take a client with the viewer's token."""

    async def open(self) -> None:
        """Connect, and wait for the first frames."""

    async def close(self) -> None:
        """Disconnect."""


class NotingBuffer:
    """Takes the place of aiortc's jitter buffer: notes the end of each frame, and keeps nothing."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._last: int | None = None
        self._ticks = 0

    def add(self, packet: Any) -> tuple[bool, None]:
        """Take an RTP packet; there is never a frame to decode."""
        if packet.marker:
            if self._last is not None:
                self._ticks += (packet.timestamp - self._last + 2**31) % 2**32 - 2**31
            self._last = packet.timestamp
            self._arrivals.add(self._ticks / VIDEO_HZ)
        return False, None


class Player:
    """A viewer over WebRTC.

    Args:
        http: a client with the viewer's token.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.arrivals, self.session = Arrivals(), ""
        self._http = http
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._tasks: list[asyncio.Task[None]] = []
        self._pc.addTransceiver("audio", "recvonly")
        video = self._pc.addTransceiver("video", "recvonly")
        video.receiver._RTCRtpReceiver__jitter_buffer = NotingBuffer(self.arrivals)
        self._pc.on("track", lambda track: self._tasks.append(asyncio.create_task(_drop(track))))

    async def open(self) -> None:
        """Open a session, connect, and wait for the first frames."""
        made = read(await self._http.post("/v1/sessions", json={}), 201)
        self.session = made.json()["session"]
        await self._pc.setLocalDescription(await self._pc.createOffer())
        path, sdp = f"/v1/whep?session={self.session}", self._pc.localDescription.sdp
        answer = read(await self._http.post(path, content=sdp, headers=SDP), 201)
        await self._pc.setRemoteDescription(RTCSessionDescription(answer.text, "answer"))
        await until(lambda: len(self.arrivals.at_s) > 10)

    async def close(self) -> None:
        """Disconnect."""
        await self._pc.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _drop(track: Any) -> None:
    with suppress(MediaStreamError):
        while True:
            await track.recv()


class SocketViewer:
    """A viewer on a WebSocket.

    Args:
        http: a client with the viewer's token.
    """

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.arrivals, self.session = Arrivals(), ""
        self._http = http
        self._socket: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open a session, connect, and wait for the first frames."""
        made = read(await self._http.post("/v1/sessions", json={}), 201)
        self.session = made.json()["session"]
        address = str(self._http.base_url).rstrip("/").replace("http", "ws", 1)
        headers = {"authorization": self._http.headers["authorization"]}
        self._socket = await connect(
            f"{address}/v1/ws?session={self.session}&frames=jpeg",
            additional_headers=headers,
            max_size=2**22,
            compression=None,
        )
        self._reading = asyncio.create_task(self._read(self._socket))
        await until(lambda: len(self.arrivals.at_s) > 10)

    async def close(self) -> None:
        """Disconnect."""
        if self._socket is not None and self._reading is not None:
            await self._socket.close()
            await self._reading

    async def _read(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            async for data in socket:
                if isinstance(data, bytes) and data[0] == PayloadType.JPEG:
                    self.arrivals.add(HEADER.unpack_from(data)[4] / FPS)
