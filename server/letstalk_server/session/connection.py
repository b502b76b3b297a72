"""The interface between a session and its connections."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from letstalk_rt.inference.protocol import DEFAULT_MOTION
from letstalk_rt.performance.listening import Listening
from letstalk_rt.performance.moods import Style
from letstalk_rt.types import SAMPLE_RATE, MotionOptions
from letstalk_server.errors import ServerError
from letstalk_server.protocol.client_messages import ConnectionConfig


class ConnectionKind(StrEnum):
    """The kind of a connection; see `docs/protocol.md`."""

    TALK = "talk"
    PLAY = "play"
    SPEAK = "speak"
    SOCKET = "ws"


EXCLUSIVE_KINDS = (ConnectionKind.TALK, ConnectionKind.SPEAK)
"""A session has one connection of these kinds at a time; a newer one takes over."""


class EndReason(StrEnum):
    """Why a session ended."""

    CLOSED = "closed"
    DELETED = "deleted"
    TIME_OVER = "time-over"
    IDLE = "idle"
    LOST = "lost"
    FAILED = "failed"
    MODEL_LOST = "model-lost"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class ServedSessionOptions:
    """Options of a session.

    Attributes:
        badge: show the visible "AI avatar" badge.
        seed: seed of the random numbers.
        motion: options of the motion control.
        sample_rate: sample rate of the audio that leaves, Hz; see `AvatarSession`.
        mood: how the avatar feels at first.
        mood_strength: how much of that is shown.
        listening: how it listens at first.
    """

    badge: bool = True
    seed: int = 0
    motion: MotionOptions = DEFAULT_MOTION
    sample_rate: int = SAMPLE_RATE
    mood: str | Style = "neutral"
    mood_strength: float = 1.0
    listening: Listening = "off"


class Connection(Protocol):
    """A connection of a session.

    Attributes:
        id: identifier, used in URLs.
        kind: kind of the connection.
        may_speak: whether its token has the scope `speak`.
        config: formats of the audio and the frames.
    """

    id: str
    kind: ConnectionKind
    may_speak: bool
    config: ConnectionConfig

    @property
    def video_bitrate(self) -> int:
        """Target bitrate of the video, bit/s; 0 without video."""
        ...

    def send(self, text: str) -> None:
        """Queue a message without waiting; it is dropped if the client does not read."""
        ...

    def is_lost(self, now_s: float) -> bool:
        """Return whether the client has gone without closing the connection."""
        ...

    async def aclose(self, error: ServerError | None = None) -> None:
        """Close the connection; `error` is the reason, if any. Safe to call twice."""
        ...
