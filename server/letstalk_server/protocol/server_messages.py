"""What clients are told, on the data channel and the WebSocket: JSON objects told apart by `type`.

`docs/protocol.md` has them all with examples; what they say is in `protocol`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from letstalk_server.errors import ServerError


@dataclass(frozen=True, slots=True)
class Ready:
    """The connection is up; `warnings` are about the portrait."""

    type: ClassVar[str] = "session.ready"
    connection: str
    avatar: str
    resumed: bool
    video: Mapping[str, int]
    heartbeat_s: float
    grace_s: float
    disclosure: Mapping[str, Any]
    overlay: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping."""

    type: ClassVar[str] = "session.pong"


@dataclass(frozen=True, slots=True)
class Configured:
    """What the connection now sends and gets."""

    type: ClassVar[str] = "session.configured"
    audio: Mapping[str, Any]
    frames: Mapping[str, Any]
    stats_s: int


@dataclass(frozen=True, slots=True)
class Warn:
    """The session goes on, but the user should know."""

    type: ClassVar[str] = "session.warning"
    code: str
    detail: str
    ends_in_s: int | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """A message was refused or the connection ends; `fatal` tells which."""

    type: ClassVar[str] = "session.error"
    code: str
    detail: str
    fatal: bool = False

    @classmethod
    def of(cls, error: ServerError, *, fatal: bool = False) -> Self:
        """Return the message that tells of an error."""
        return cls(error.code, error.detail, fatal)


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over."""

    type: ClassVar[str] = "session.ended"
    reason: str


@dataclass(frozen=True, slots=True)
class Stats:
    """How the session does.

    Attributes:
        repeats: frames that were not there in time.
        held_ms: how long the playout has waited for frames that were a little late.
    """

    type: ClassVar[str] = "session.stats"
    fps: float
    frames: int
    repeats: int
    held_ms: int
    stalls: int
    drops: int
    backlog_ms: int
    stages_ms: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Started:
    """The first sound of a segment is shown."""

    type: ClassVar[str] = "segment.started"


@dataclass(frozen=True, slots=True)
class Finished:
    """The last sound of a segment was shown."""

    type: ClassVar[str] = "segment.finished"
    played_ms: int


@dataclass(frozen=True, slots=True)
class SegmentInterrupted:
    """A segment was cut off, in ms."""

    type: ClassVar[str] = "segment.interrupted"
    played_ms: int
    dropped_ms: int


@dataclass(frozen=True, slots=True)
class Speaking:
    """The avatar began to speak."""

    type: ClassVar[str] = "avatar.speaking"


@dataclass(frozen=True, slots=True)
class Idle:
    """The avatar fell silent."""

    type: ClassVar[str] = "avatar.idle"


@dataclass(frozen=True, slots=True)
class Listening:
    """The avatar was interrupted and gives its attention to the other one."""

    type: ClassVar[str] = "avatar.listening"


@dataclass(frozen=True, slots=True)
class WasInterrupted:
    """What an interrupt cut off, in ms; for the one who asked."""

    type: ClassVar[str] = "avatar.interrupted"
    played_ms: int
    dropped_ms: int


@dataclass(frozen=True, slots=True)
class Selected:
    """Another avatar is on its way; `warnings` are about its portrait."""

    type: ClassVar[str] = "avatar.selected"
    avatar: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OverlayUpdated:
    """The looks that pages should take on."""

    type: ClassVar[str] = "overlay.updated"
    overlay: Mapping[str, Any]


ServerMessage = (
    Ready
    | Pong
    | Configured
    | Warn
    | Fail
    | Ended
    | Stats
    | Started
    | Finished
    | SegmentInterrupted
    | Speaking
    | Idle
    | Listening
    | WasInterrupted
    | Selected
    | OverlayUpdated
)


class ServerMessageEncoder:
    """Turns messages of one session into JSON text and numbers them.

    Args:
        session: the session's id.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._count = 0

    def __call__(self, message: ServerMessage, segment_id: int, re: str | None = None) -> str:
        """Give the JSON text of a message; `re` is the `event_id` it answers."""
        self._count += 1
        fields: dict[str, Any] = {
            "type": message.type,
            "event_id": f"e{self._count}",
            "session": self._session,
            "segment_id": segment_id,
        }
        fields |= {key: value for key, value in fields_of(message).items() if value is not None}
        if re is not None:
            fields["re"] = re
        return json.dumps(fields)


def fields_of(message: Any) -> dict[str, Any]:
    """Give the fields of a message, without its type."""
    return {key: getattr(message, key) for key in message.__dataclass_fields__ if key != "type"}
