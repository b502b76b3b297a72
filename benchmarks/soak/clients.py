"""Clients of the soak, one for each way to reach a session; they speak in beeps and watch.

talk    WebRTC as the page does it: microphone up, avatar down, a data channel
pair    WHIP speaks and WHEP watches
socket  audio up, JPEG frames and audio down on a WebSocket
"""

import asyncio
import json
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import Any, Protocol

import av
import cv2
import httpx
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtp import RtcpSrPacket
from soak.onsets import BeepFinder, FlashFinder, voice
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from letstalk_rt.types import FPS, SAMPLE_RATE

WIRE_HZ, VIDEO_HZ = 48_000, 90_000
PACKET_S = 0.02
PING_S = 1.5
WAIT_S, POLL_S = 30.0, 0.01
NTP_S = 2_208_988_800  # from 1900, where NTP begins to count, to 1970
SDP = {"content-type": "application/sdp"}
_PATCH = slice(24, 48)
_HEADER = struct.Struct("<BBHIIHHII")
_JPEG, _PCM16 = 1, 3


class View:
    """What a client sees and hears, on one clock.

    Args:
        rate: sample rate of the audio, Hz.

    Attributes:
        pictures: number of frames.
        errors: codes of the errors that the server has sent, and `lost` for a lost connection.
        flashes_s, beeps_s: when flashes and beeps began.
    """

    def __init__(self, rate: int) -> None:
        self.pictures = 0
        self.errors: list[str] = []
        self.flashes_s: list[float] = []
        self.beeps_s: list[float] = []
        self._flashes, self._beeps = FlashFinder(), BeepFinder(rate)

    def read(self, text: str) -> str:
        """Take a message of the server; return its type."""
        message = json.loads(text)
        if message["type"] in ("session.error", "session.warning"):
            self.errors.append(str(message["code"]))
        return str(message["type"])

    def look(self, shade: float, at_s: float) -> None:
        """Take the shade of the patch in a frame."""
        found = self._flashes.look(shade, at_s)
        if found is not None:
            self.flashes_s.append(found)

    def listen(self, pcm: np.ndarray, at_s: float) -> None:
        """Take `(n,)` float32."""
        self.beeps_s += self._beeps.listen(pcm, at_s)


class Client(Protocol):
    """A client of one session."""

    view: View

    async def open(self) -> None:
        """Open a session, connect and wait for the first frames."""

    async def interrupt(self) -> None:
        """Interrupt the avatar, where this client can."""

    async def close(self) -> None:
        """End the session and release everything."""


class Microphone(MediaStreamTrack):
    """A track that speaks in beeps, in real time."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._samples = (voice(WIRE_HZ) * 32_767).astype(np.int16)
        self._count, self._start_s = 0, 0.0

    async def recv(self) -> av.AudioFrame:
        """Return the next packet when it is due."""
        if self.readyState != "live":
            raise MediaStreamError
        now_s = time.monotonic()
        self._start_s = self._start_s or now_s
        await asyncio.sleep(max(0.0, self._start_s + self._count * PACKET_S - now_s))
        size = int(WIRE_HZ * PACKET_S)
        first = self._count * size % self._samples.size
        frame = av.AudioFrame.from_ndarray(self._samples[None, first : first + size], "s16", "mono")
        frame.sample_rate, frame.pts = WIRE_HZ, self._count * size
        frame.time_base = Fraction(1, WIRE_HZ)
        self._count += 1
        return frame


class SenderClock:
    """Maps the timestamps of a received track to wall time by its sender reports.

    Args:
        receiver: of the track; its packets are observed.
        rate: clock rate of the track, Hz.
    """

    def __init__(self, receiver: RTCRtpReceiver, rate: int) -> None:
        self._rate = rate
        self._first: int | None = None
        self._reports: deque[tuple[int, float]] = deque(maxlen=9)
        # aiortc tells nobody of sender reports, so this looks at them on their way.
        handle_rtp, handle_rtcp = receiver._handle_rtp_packet, receiver._handle_rtcp_packet

        async def on_rtp(packet: Any, arrival_time_ms: int) -> None:
            self._first = packet.timestamp if self._first is None else self._first
            await handle_rtp(packet, arrival_time_ms)

        async def on_rtcp(packet: Any) -> None:
            if isinstance(packet, RtcpSrPacket) and packet.sender_info.ntp_timestamp:
                info = packet.sender_info
                self._reports.append((info.rtp_timestamp, info.ntp_timestamp / 2**32 - NTP_S))
            await handle_rtcp(packet)

        receiver._handle_rtp_packet, receiver._handle_rtcp_packet = on_rtp, on_rtcp

    def wall_s(self, pts: int) -> float | None:
        """Return the wall time of a timestamp; None before the first reports."""
        if self._first is None or len(self._reports) < 2:
            return None
        now = self._first + pts
        times = [at + _signed(now - rtp) / self._rate for rtp, at in self._reports]
        return float(np.median(times))


def _signed(ticks: int) -> int:
    return (ticks + 2**31) % 2**32 - 2**31


class Peer:
    """A WebRTC connection of a client.

    Args:
        view: notes what is received.
        speaks: send a microphone.
        watches: receive the avatar.
        codec: of the video, VP8 or H264.
    """

    def __init__(self, view: View, *, speaks: bool, watches: bool, codec: str = "VP8") -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._view = view
        self._microphone = Microphone() if speaks else None
        self._tasks: list[asyncio.Task[None]] = []
        directions = {(True, True): "sendrecv", (True, False): "sendonly"}
        direction = directions.get((speaks, watches), "recvonly")
        self.pc.addTransceiver(self._microphone or "audio", direction)
        if watches:
            sight = self.pc.addTransceiver("video", "recvonly")
            known = RTCRtpReceiver.getCapabilities("video").codecs
            sight.setCodecPreferences([each for each in known if each.mimeType == f"video/{codec}"])
        self._clocks = {
            each.kind: SenderClock(each.receiver, WIRE_HZ if each.kind == "audio" else VIDEO_HZ)
            for each in self.pc.getTransceivers()
        }
        self.pc.on("track", self._on_track)

    async def offer(self) -> str:
        """Return the SDP of an offer."""
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return str(self.pc.localDescription.sdp)

    async def accept(self, sdp: str) -> None:
        """Take the answer."""
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    async def connected(self) -> None:
        """Wait for the connection.

        Raises:
            TimeoutError: it takes too long.
        """
        try:
            await until(lambda: self.pc.connectionState == "connected")
        except TimeoutError:
            states = f"{self.pc.connectionState}, ICE {self.pc.iceConnectionState}"
            raise TimeoutError(f"not connected: {states}") from None

    async def close(self) -> None:
        """Close the connection."""
        if self._microphone is not None:
            self._microphone.stop()
        await self.pc.close()
        await ended(self._tasks)

    def _on_track(self, track: Any) -> None:
        self._tasks.append(asyncio.create_task(self._receive(track)))

    async def _receive(self, track: Any) -> None:
        clock, take = self._clocks[track.kind], self._see if track.kind == "video" else self._hear
        with suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                take(frame, clock.wall_s(frame.pts))

    def _see(self, frame: av.VideoFrame, at_s: float | None) -> None:
        self._view.pictures += 1
        if at_s is not None:
            plane = frame.planes[0]
            luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
            self._view.look((float(luma[_PATCH, _PATCH].mean()) - 16) * 255 / 219, at_s)

    def _hear(self, frame: av.AudioFrame, at_s: float | None) -> None:
        if at_s is not None:
            channels = len(frame.layout.channels)
            pcm = frame.to_ndarray().reshape(-1, channels)[:, 0]
            self._view.listen(pcm.astype(np.float32) / 32_768, at_s)


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Talk:
    """WebRTC as the page does it.

    Args:
        http: at the server's address.
        speaks: speak in beeps; else only the avatar is received.
        codec: VP8 or H264.
    """

    def __init__(self, http: httpx.AsyncClient, *, speaks: bool = True, codec: str = "VP8") -> None:
        self.view = View(WIRE_HZ)
        self._http, self._session = http, ""
        self._peer = Peer(self.view, speaks=speaks, watches=True, codec=codec)
        self._channel = self._peer.pc.createDataChannel("control")
        self._channel.on("message", self.view.read)
        self._pinging: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Open a session, connect and wait for the first frames."""
        body = {"type": "offer", "sdp": await self._peer.offer()}
        answer = read(await self._http.post("/v1/offer", json=body), 201).json()
        self._session = answer["session"]
        await self._peer.accept(answer["sdp"])
        self._pinging.append(asyncio.create_task(self._ping()))
        await until(lambda: self.view.pictures > 2)

    async def interrupt(self) -> None:
        """Interrupt the avatar."""
        if self._channel.readyState == "open":
            self._channel.send(json.dumps({"type": "avatar.interrupt"}))
        else:
            self.view.errors.append("lost")

    async def close(self) -> None:
        """End the session and release everything."""
        await ended(self._pinging)
        await end_session(self._http, self._session)
        await self._peer.close()

    async def _ping(self) -> None:
        while True:
            if self._channel.readyState == "open":
                self._channel.send(json.dumps({"type": "session.ping"}))
            await asyncio.sleep(PING_S)


class Pair:
    """WHIP, WHEP, or both on one session.

    Args:
        http: at the server's address.
        speaks: connect a microphone by WHIP.
        watches: connect a player by WHEP.
    """

    def __init__(
        self, http: httpx.AsyncClient, *, speaks: bool = True, watches: bool = True
    ) -> None:
        self.view = View(WIRE_HZ)
        self._http, self._session = http, ""
        self._peers: dict[str, Peer] = {}
        if speaks:
            self._peers["whip"] = Peer(self.view, speaks=True, watches=False)
        if watches:
            self._peers["whep"] = Peer(self.view, speaks=False, watches=True)

    async def open(self) -> None:
        """Open a session, connect, and wait for the first frames or for the connection."""
        self._session = read(await self._http.post("/v1/sessions", json={}), 201).json()["session"]
        for name, peer in self._peers.items():
            address = f"/v1/{name}?session={self._session}"
            offer = await peer.offer()
            answer = read(await self._http.post(address, content=offer, headers=SDP), 201)
            await peer.accept(answer.text)
        for peer in self._peers.values():
            await peer.connected()
        if "whep" in self._peers:
            await until(lambda: self.view.pictures > 2)

    async def interrupt(self) -> None:
        """Only look whether the connections live: WHIP has no messages."""
        if any(peer.pc.connectionState != "connected" for peer in self._peers.values()):
            self.view.errors.append("lost")

    async def close(self) -> None:
        """End the session and release everything."""
        await end_session(self._http, self._session)
        for peer in self._peers.values():
            await peer.close()


class Socket:
    """A WebSocket.

    Args:
        address: of the server.
        speaks: speak in beeps.
        text: let the server speak a text instead, and wait until it begins.
    """

    def __init__(self, address: str, *, speaks: bool = True, text: str = "") -> None:
        self.view = View(SAMPLE_RATE)
        self._address = f"{address.replace('http', 'ws', 1)}/v1/ws?frames=jpeg"
        self._speaks, self._text = speaks, text
        self._socket: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._began_s = 0.0
        self._messages: set[str] = set()

    async def open(self) -> None:
        """Open a session, connect and wait for the first frames."""
        self._socket = await connect(self._address, max_size=2**22, compression=None)
        self._began_s = time.time()
        self._tasks.append(asyncio.create_task(self._receive(self._socket)))
        if self._speaks:
            self._tasks.append(asyncio.create_task(self._speak(self._socket)))
        await until(lambda: self.view.pictures > 2)
        if self._text:
            await self._send({"type": "speech.say", "text": self._text})
            await until(lambda: "segment.started" in self._messages)

    async def interrupt(self) -> None:
        """Interrupt the avatar."""
        try:
            await self._send({"type": "avatar.interrupt"})
        except ConnectionClosed:
            self.view.errors.append("lost")

    async def close(self) -> None:
        """End the session and release everything."""
        if self._socket is not None:
            with suppress(ConnectionClosed):
                await self._send({"type": "session.close"})
            await self._socket.wait_closed()
        await ended(self._tasks)

    async def _send(self, message: Mapping[str, Any]) -> None:
        assert self._socket is not None, "it was opened"
        await self._socket.send(json.dumps(message))

    async def _speak(self, socket: ClientConnection) -> None:
        samples = (voice(SAMPLE_RATE) * 32_767).astype("<i2")
        size, count, start_s = int(SAMPLE_RATE * PACKET_S), 0, time.monotonic()
        with suppress(ConnectionClosed):
            while True:
                first = count * size % samples.size
                await socket.send(samples[first : first + size].tobytes())
                count += 1
                await asyncio.sleep(max(0.0, start_s + count * PACKET_S - time.monotonic()))

    async def _receive(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            async for data in socket:
                if isinstance(data, str):
                    self._messages.add(self.view.read(data))
                else:
                    self._take(data)

    def _take(self, data: bytes) -> None:
        kind, _, length, _, number, *_ = _HEADER.unpack_from(data)
        at_s = self._began_s + number / FPS
        if kind == _JPEG:
            self.view.pictures += 1
            picture = cv2.imdecode(np.frombuffer(data[length:], np.uint8), cv2.IMREAD_GRAYSCALE)
            self.view.look(float(picture[_PATCH, _PATCH].mean()), at_s)
        elif kind == _PCM16:
            pcm = np.frombuffer(data[length:], "<i2").astype(np.float32) / 32_768
            self.view.listen(pcm, at_s)


def read(response: httpx.Response, status: int) -> httpx.Response:
    """Return a response of the server.

    Raises:
        RuntimeError: it has another status.
    """
    if response.status_code != status:
        raise RuntimeError(f"the server answered {response.status_code}: {response.text[:300]}")
    return response


async def end_session(http: httpx.AsyncClient, session: str) -> None:
    """End a session, unless it has ended by itself."""
    if session:
        await http.delete(f"/v1/sessions/{session}")


async def until(wanted: Callable[[], bool]) -> None:
    """Wait until something has happened.

    Raises:
        TimeoutError: it takes too long.
    """
    end_s = time.monotonic() + WAIT_S
    while not wanted():
        if time.monotonic() > end_s:
            raise TimeoutError("the server did not do what was asked of it in time")
        await asyncio.sleep(POLL_S)
