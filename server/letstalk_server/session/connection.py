"""What a session and its connections are to each other."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from letstalk_rt.inference.protocol import DEFAULT_MOTION
from letstalk_rt.types import MotionOptions
from letstalk_server.errors import ServerError
from letstalk_server.protocol.client_messages import ConnectionConfig


class ConnectionKind(StrEnum):
    """What a connection is for; see `docs/protocol.md`."""

    TALK = "talk"
    PLAY = "play"
    SPEAK = "speak"
    SOCKET = "ws"


EXCLUSIVE_KINDS = (ConnectionKind.TALK, ConnectionKind.SPEAK)
"""Of these a session has one; a newer one takes over."""


class EndReason(StrEnum):
    """Why a session ended."""

    CLOSED = "closed"
    DELETED = "deleted"
    TIME_OVER = "time-over"
    IDLE = "idle"
    LOST = "lost"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class ServedSessionOptions:
    """What a session may be asked for.

    Attributes:
        badge: show the visible "AI avatar" badge.
        seed: of everything random in the pictures.
        motion: how the face moves.
    """

    badge: bool = True
    seed: int = 0
    motion: MotionOptions = DEFAULT_MOTION


class Connection(Protocol):
    """One connection on a session.

    Attributes:
        id: its name in addresses.
        kind: what it is for.
        video_bitrate: target of the WebRTC video, bit/s; 0 without one.
        may_speak: whether it may send more than watch.
        wishes: what it sends and wants.
    """

    id: str
    kind: ConnectionKind
    may_speak: bool
    config: ConnectionConfig

    @property
    def video_bitrate(self) -> int: ...

    def send(self, text: str) -> None:
        """Send a message; never waits, and drops it when the client does not read."""
        ...

    def is_lost(self, now_s: float) -> bool:
        """Tell whether the client is gone without a word."""
        ...

    async def aclose(self, error: ServerError | None = None) -> None:
        """Close the connection; safe to call twice. `error` tells why, `None` is in order."""
        ...
