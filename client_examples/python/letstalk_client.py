"""A small client of the WebSocket protocol (docs/protocol.md); needs `websockets` and numpy.

async with Client("http://localhost:8080", avatar="mira") as client:
    await client.say(pcm)
    async for item in client:
        ...  # a Picture, a Sound or a message (dict)
"""

import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

SAMPLE_RATE = 16_000
FPS = 25
PIECE = SAMPLE_RATE // 5
"""Samples of one message when a recording is sent."""

_HEADER = struct.Struct("<BBHIIHHII")
_JPEG, _RGB, _PCM16, _OPUS = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame of the avatar.

    Attributes:
        number: which frame; due at `number / 25` s of the session.
        segment_id: the utterance it belongs to.
        size: width and height, px.
        data: a JPEG file, or raw RGB where that was asked for.
        is_repeat: the server had no newer one.
    """

    number: int
    segment_id: int
    size: tuple[int, int]
    data: bytes
    is_repeat: bool


@dataclass(frozen=True, slots=True)
class Sound:
    """The 40 ms of the avatar's voice that belong to a frame: `(n,)` int16, 16 kHz mono."""

    number: int
    segment_id: int
    pcm: np.ndarray


class Client:
    """One WebSocket on one avatar session.

    Args:
        url: address of the server, e.g. `http://localhost:8080`.
        token: where the server asks for one.
        avatar: which avatar a new session shows.
        session: id of a session to join instead of making one.
        frames: `jpeg`, `rgb` or `none`.
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
        wanted = {"avatar": avatar, "session": session, "frames": frames}
        query = urlencode({key: value for key, value in wanted.items() if value})
        parts = urlsplit(url)
        scheme = {"https": "wss", "wss": "wss"}.get(parts.scheme, "ws")
        self._address = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/v1/ws?{query}"
        self._protocols = ["letstalk.v1", f"bearer.{token}"] if token else ["letstalk.v1"]
        self._socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            RuntimeError: the server refused; the text is its reason.
            OSError: it cannot be reached.
        """
        try:
            self._socket = await connect(
                self._address,
                subprotocols=self._protocols,  # type: ignore[arg-type]
                max_size=2**24,
                compression=None,
            )
        except InvalidStatus as refusal:
            raise RuntimeError(_reason(refusal)) from None
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._open.close()

    @property
    def _open(self) -> ClientConnection:
        assert self._socket is not None, "use `async with Client(...)`"
        return self._socket

    async def send(self, **message: Any) -> None:
        """Send a message, e.g. `send(type="avatar.interrupt")`."""
        await self._open.send(json.dumps(message))

    async def push(self, pcm: np.ndarray) -> None:
        """Send sound: `(n,)` int16, or float32 in [-1, 1]; 16 kHz mono."""
        if pcm.dtype != np.int16:
            pcm = (np.clip(pcm, -1, 1) * 32_767).astype(np.int16)
        await self._open.send(pcm.astype("<i2").tobytes())

    async def say(self, pcm: np.ndarray) -> None:
        """Send a whole utterance and mark its end; waits when the server has enough."""
        for start in range(0, pcm.size, PIECE):
            await self.push(pcm[start : start + PIECE])
        await self.send(type="segment.end")

    async def interrupt(self) -> None:
        """Cut the avatar short."""
        await self.send(type="avatar.interrupt")

    async def __aiter__(self) -> AsyncIterator[Picture | Sound | dict[str, Any]]:
        async for data in self._open:
            yield json.loads(data) if isinstance(data, str) else unpack(data)


def unpack(data: bytes) -> Picture | Sound:
    """Read a binary message of the server."""
    kind, flags, length, segment, number, wide, high, _, _ = _HEADER.unpack_from(data)
    payload = data[length:]
    if kind in (_JPEG, _RGB):
        return Picture(number, segment, (wide, high), payload, bool(flags & 1))
    if kind == _PCM16:
        return Sound(number, segment, np.frombuffer(payload, "<i2").astype(np.int16))
    raise ValueError(f"binary message of kind {kind}; expected 1 to 3")


def _reason(refusal: InvalidStatus) -> str:
    """Read the server's problem document (RFC 9457)."""
    try:
        return str(json.loads(refusal.response.body or b"")["detail"])
    except (ValueError, KeyError, TypeError):
        return str(refusal)
