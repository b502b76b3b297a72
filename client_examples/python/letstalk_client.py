"""A small client of the WebSocket protocol (docs/protocol.md); it needs `websockets` and numpy.

async with Client("http://localhost:8080", avatar="mira") as client:
    await client.say(pcm)
    async for item in client:
        ...  # a VideoFrame, an AudioFrame or a message (dict)
"""

import asyncio
import json
import struct
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError, InvalidStatus

SAMPLE_RATE = 16_000
FPS = 25
CHUNK = SAMPLE_RATE // 5
"""Samples per message when a whole utterance is sent."""

MAX_AHEAD_S = 20.0
"""Speech that `say` sends ahead of its playing; the server refuses more than its limit (30 s)."""

_HEADER = struct.Struct("<BBHIIHHII")
_JPEG, _RGB, _PCM16, _OPUS = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One frame of the avatar's video.

    Attributes:
        number: number of the frame, which is due at `number / 25` s of the session.
        segment_id: the utterance that it belongs to.
        size: width and height in pixels.
        data: a JPEG file, or raw RGB if `frames="rgb"` was requested.
        is_repeat: whether it repeats the previous frame, because no newer one was ready.
    """

    number: int
    segment_id: int
    size: tuple[int, int]
    data: bytes
    is_repeat: bool


@dataclass(frozen=True, slots=True)
class AudioFrame:
    """The 40 ms of audio that belong to a video frame: `pcm` is `(n,)` int16, mono.

    `sample_rate` is 16000 Hz unless the session was created with another one.
    """

    number: int
    segment_id: int
    pcm: np.ndarray
    sample_rate: int = SAMPLE_RATE


class Client:
    """A WebSocket connection to one avatar session.

    Args:
        url: address of the server, e.g. `http://localhost:8080`.
        token: access token, if the server requires one.
        avatar: id of the avatar of a new session.
        session: id of an existing session to join.
        frames: format of video frames: `jpeg`, `rgb` or `none`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        avatar: str | None = None,
        session: str | None = None,
        frames: str = "jpeg",
    ) -> None:
        parameters = {"avatar": avatar, "session": session, "frames": frames}
        query = urlencode({key: value for key, value in parameters.items() if value})
        parts = urlsplit(url)
        scheme = {"https": "wss", "wss": "wss"}.get(parts.scheme, "ws")
        self._address = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/v1/ws?{query}"
        self._protocols = ["letstalk.v1", f"bearer.{token}"] if token else ["letstalk.v1"]
        self._socket: ClientConnection | None = None
        self._played_at_s = 0.0  # when all that was sent will have been played

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            RuntimeError: the server refused the connection; the message gives its reason.
            OSError: the server cannot be reached.
        """
        try:
            self._socket = await connect(
                self._address,
                subprotocols=self._protocols,  # type: ignore[arg-type]
                max_size=2**24,
                compression=None,
            )
        except InvalidStatus as error:
            raise RuntimeError(_reason(error)) from None
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._connection.close()

    @property
    def _connection(self) -> ClientConnection:
        assert self._socket is not None, "use `async with Client(...)`"
        return self._socket

    async def send(self, **message: Any) -> None:
        """Send a message, e.g. `send(type="avatar.interrupt")`."""
        await self._connection.send(json.dumps(message))

    async def push(self, pcm: np.ndarray) -> None:
        """Send a chunk of speech: `(n,)` int16, or float32 in [-1, 1]; 16 kHz mono."""
        if pcm.dtype != np.int16:
            pcm = (np.clip(pcm, -1, 1) * 32_767).astype(np.int16)
        await self._connection.send(pcm.astype("<i2").tobytes())
        self._played_at_s = max(self._played_at_s, time.monotonic()) + pcm.size / SAMPLE_RATE

    async def say(self, pcm: np.ndarray) -> None:
        """Send a whole utterance and mark its end, at most `MAX_AHEAD_S` ahead of its playing."""
        for start in range(0, pcm.size, CHUNK):
            wait_s = self._played_at_s - time.monotonic() - MAX_AHEAD_S
            await asyncio.sleep(max(0.0, wait_s))
            await self.push(pcm[start : start + CHUNK])
        await self.send(type="segment.end")

    async def interrupt(self) -> None:
        """Interrupt the avatar: it forgets what was sent and not played yet."""
        await self.send(type="avatar.interrupt")
        self._played_at_s = 0.0

    async def __aiter__(self) -> AsyncIterator[VideoFrame | AudioFrame | dict[str, Any]]:
        """Yield what the server sends, until it ends the session.

        Raises:
            ConnectionError: the connection was lost.
        """
        try:
            async for data in self._connection:
                yield json.loads(data) if isinstance(data, str) else unpack(data)
        except ConnectionClosedError as error:
            raise ConnectionError(f"the connection to the server was lost: {error}") from error


def unpack(data: bytes) -> VideoFrame | AudioFrame:
    """Parse a binary message of the server."""
    kind, flags, length, segment, number, width, height, rate, _ = _HEADER.unpack_from(data)
    payload = data[length:]
    if kind in (_JPEG, _RGB):
        return VideoFrame(number, segment, (width, height), payload, bool(flags & 1))
    if kind == _PCM16:
        return AudioFrame(number, segment, np.frombuffer(payload, "<i2").astype(np.int16), rate)
    raise ValueError(f"binary message of kind {kind}; expected 1 to 3")


def _reason(error: InvalidStatus) -> str:
    """Return the reason in the problem document (RFC 9457) of the server."""
    try:
        return str(json.loads(error.response.body or b"")["detail"])
    except (ValueError, KeyError, TypeError):
        return str(error)
