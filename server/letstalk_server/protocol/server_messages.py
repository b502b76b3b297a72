"""Messages of the server on the data channel and the WebSocket: JSON objects with a `type`.

`docs/protocol.md` lists them with examples; the clients' messages are in `client_messages`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from letstalk_server.errors import ServerError


@dataclass(frozen=True, slots=True)
class Ready:
    """The connection is ready; `warnings` are about the portrait."""

    type: ClassVar[str] = "session.ready"
    connection: str
    avatar: str
    images: str
    resumed: bool
    video: Mapping[str, int]
    heartbeat_s: float
    grace_s: float
    disclosure: Mapping[str, Any]
    overlay: Mapping[str, Any]
    performance: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping."""

    type: ClassVar[str] = "session.pong"


@dataclass(frozen=True, slots=True)
class Configured:
    """The new configuration of the connection."""

    type: ClassVar[str] = "session.configured"
    audio: Mapping[str, Any]
    frames: Mapping[str, Any]
    stats_s: int


@dataclass(frozen=True, slots=True)
class Warn:
    """A warning; the session continues."""

    type: ClassVar[str] = "session.warning"
    code: str
    detail: str
    ends_in_s: int | None = None


@dataclass(frozen=True, slots=True)
class CameraSeen:
    """What the camera of the session sees now: `face`, `learning`, `no-face`, `several-faces`."""

    type: ClassVar[str] = "camera.status"
    status: str


@dataclass(frozen=True, slots=True)
class QualityChanged:
    """The session has lowered or raised its quality; level 0 is full quality."""

    type: ClassVar[str] = "session.quality"
    level: int
    fps: int
    detail: str


@dataclass(frozen=True, slots=True)
class Fail:
    """A message was refused or, if `fatal`, the connection ends."""

    type: ClassVar[str] = "session.error"
    code: str
    detail: str
    fatal: bool = False

    @classmethod
    def of(cls, error: ServerError, *, fatal: bool = False) -> Self:
        """Return the message for an error."""
        return cls(error.code, error.detail, fatal)


@dataclass(frozen=True, slots=True)
class Ended:
    """The session has ended."""

    type: ClassVar[str] = "session.ended"
    reason: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of the session.

    Attributes:
        fps: different images per second, since the start.
        repeats: frames that did not come in time.
        held_ms: total time for which playout was held for late frames.
        recoveries: how often the model failed and the session went on.
        quality_level: the present quality level; 0 is full quality.
        quality_changes: how often it has changed.
    """

    type: ClassVar[str] = "session.stats"
    fps: float
    frames: int
    repeats: int
    held_ms: int
    stalls: int
    drops: int
    recoveries: int
    quality_level: int
    quality_changes: int
    backlog_ms: int
    stages_ms: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Started:
    """The first audio of a segment is played."""

    type: ClassVar[str] = "segment.started"


@dataclass(frozen=True, slots=True)
class Finished:
    """The last audio of a segment was played."""

    type: ClassVar[str] = "segment.finished"
    played_ms: int


@dataclass(frozen=True, slots=True)
class SegmentInterrupted:
    """A segment was interrupted."""

    type: ClassVar[str] = "segment.interrupted"
    played_ms: int
    dropped_ms: int


@dataclass(frozen=True, slots=True)
class Speaking:
    """The avatar has begun to speak."""

    type: ClassVar[str] = "avatar.speaking"


@dataclass(frozen=True, slots=True)
class Idle:
    """The avatar has become silent."""

    type: ClassVar[str] = "avatar.idle"


@dataclass(frozen=True, slots=True)
class Listening:
    """The avatar was interrupted and listens."""

    type: ClassVar[str] = "avatar.listening"


@dataclass(frozen=True, slots=True)
class WasInterrupted:
    """The reply to an interrupt: how much was played and dropped."""

    type: ClassVar[str] = "avatar.interrupted"
    played_ms: int
    dropped_ms: int


@dataclass(frozen=True, slots=True)
class Selected:
    """Another avatar was selected; `images` names its images, `warnings` are about its portrait."""

    type: ClassVar[str] = "avatar.selected"
    avatar: str
    images: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OverlayUpdated:
    """The appearance that pages should have."""

    type: ClassVar[str] = "overlay.updated"
    overlay: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PerformanceUpdated:
    """How the avatar feels, either a `mood` or a `style`, and how it listens."""

    type: ClassVar[str] = "performance.updated"
    strength: float
    listening: str
    mood: str | None = None
    style: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class ConversationConfigured:
    """Whether a conversation is on, and with which voice; the empty voice is the default."""

    type: ClassVar[str] = "conversation.configured"
    on: bool
    voice: str


@dataclass(frozen=True, slots=True)
class Captioned:
    """Words of the user or the avatar; those of the user may change until they are final."""

    type: ClassVar[str] = "conversation.caption"
    speaker: str
    text: str
    final: bool


@dataclass(frozen=True, slots=True)
class ConversationState:
    """What the conversation does: `listening`, `hearing`, `thinking` or `speaking`."""

    type: ClassVar[str] = "conversation.state"
    state: str


ServerMessage = (
    Ready
    | Pong
    | Configured
    | Warn
    | CameraSeen
    | QualityChanged
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
    | PerformanceUpdated
    | ConversationConfigured
    | Captioned
    | ConversationState
)


class ServerMessageEncoder:
    """Numbers the messages of one session and encodes them as JSON.

    Args:
        session: id of the session.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._count = 0

    def __call__(self, message: ServerMessage, segment_id: int, re: str | None = None) -> str:
        """Return the JSON text of a message; `re` is the `event_id` of the request."""
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
    """Return the fields of a message, without its type."""
    return {key: getattr(message, key) for key in message.__dataclass_fields__ if key != "type"}
