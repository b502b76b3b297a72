"""Visitors of a cluster: sessions over HTTP, WebRTC peers that count frames, WebSockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import httpx
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from websockets.asyncio.client import connect

from cluster_stage.cluster import OPERATOR

PING_S = 1.0


def worker_of(session: str) -> str:
    """Return the name of the worker that a session is on."""
    return session.partition(".")[0]


@asynccontextmanager
async def clients(urls: list[str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Yield a client for each proxy, with the operator's key."""
    opened = [httpx.AsyncClient(base_url=url, headers=OPERATOR, timeout=20) for url in urls]
    try:
        yield opened
    finally:
        for client in opened:
            await client.aclose()


@dataclass
class Peer:
    """A WebRTC peer that watches a session and counts its frames.

    Attributes:
        session: the session.
        frames: video frames received.
        candidates: addresses that the answer names.
    """

    session: str
    frames: int = 0
    candidates: set[str] = field(default_factory=set)
    connection: RTCPeerConnection = field(
        default_factory=lambda: RTCPeerConnection(RTCConfiguration(iceServers=[]))
    )
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    async def join(self, client: httpx.AsyncClient) -> "Peer":
        """Connect through a proxy and wait for the first frame."""
        self.connection.addTransceiver("audio", "sendrecv")
        self.connection.addTransceiver("video", "recvonly")
        channel = self.connection.createDataChannel("control")
        channel.on("open", lambda: self._tasks.append(asyncio.ensure_future(_ping(channel))))
        self.connection.on("track", self._on_track)
        await self.connection.setLocalDescription(await self.connection.createOffer())
        offer = {"type": "offer", "sdp": self.connection.localDescription.sdp}
        response = await client.post(f"/v1/offer?session={self.session}", json=offer)
        sdp = response.raise_for_status().json()["sdp"]
        lines = [line.split() for line in sdp.splitlines() if line.startswith("a=candidate")]
        self.candidates = {line[4] for line in lines}
        await self.connection.setRemoteDescription(RTCSessionDescription(sdp, "answer"))
        await self.until_frames(1)
        return self

    async def until_frames(self, more: int, limit_s: float = 20.0) -> None:
        """Wait for further frames.

        Raises:
            TimeoutError: They do not arrive.
        """
        wanted = self.frames + more
        async with asyncio.timeout(limit_s):
            while self.frames < wanted:
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        """Leave."""
        await self.connection.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._tasks.append(asyncio.ensure_future(self._count(track)))

    async def _count(self, track: MediaStreamTrack) -> None:
        with suppress(MediaStreamError):
            while True:
                await track.recv()
                self.frames += track.kind == "video"
                self._changed.set()


async def _ping(channel: object) -> None:
    while channel.readyState == "open":  # type: ignore[attr-defined]
        channel.send('{"type": "session.ping"}')  # type: ignore[attr-defined]
        await asyncio.sleep(PING_S)


async def join_socket(url: str, session: str) -> tuple[object, bool]:
    """Open a WebSocket on a session; return it, and whether it resumed the session."""
    address = url.replace("http", "ws", 1)
    socket = await connect(
        f"{address}/v1/ws?session={session}", max_size=None, additional_headers=OPERATOR
    )
    while True:
        message = await socket.recv()
        if isinstance(message, str) and json.loads(message)["type"] == "session.ready":
            return socket, bool(json.loads(message)["resumed"])


async def open_session(client: httpx.AsyncClient) -> tuple[str | None, float]:
    """Open a session; return its id, or None if it was refused, and how long that took, s.

    Raises:
        HTTPStatusError: The answer was neither a session nor a refusal with Retry-After.
    """
    began_s = time.monotonic()
    response = await client.post("/v1/sessions")
    took_s = time.monotonic() - began_s
    if response.status_code == 503 and "retry-after" in response.headers:
        return None, took_s
    return response.raise_for_status().json()["session"], took_s


async def end_session(client: httpx.AsyncClient, session: str) -> None:
    """End a session, if it still lives."""
    await client.delete(f"/v1/sessions/{session}")
