"""Messages of clients on the data channel and the WebSocket: JSON objects with a `type`.

`docs/protocol.md` lists them with examples; the server's messages are in `server_messages`. Clients
are not trusted: `parse` raises `BadMessageError` for anything else.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

from letstalk_rt.errors import ConfigError
from letstalk_rt.performance import json_fields
from letstalk_rt.performance.gestures import Gesture
from letstalk_rt.performance.listening import Listening
from letstalk_rt.performance.moods import Style
from letstalk_rt.types import CameraOptions, CameraRole, LipDrive, MotionOptions
from letstalk_server.errors import BadMessageError
from letstalk_server.protocol.json_text import load_object
from letstalk_server.protocol.server_messages import fields_of

MAX_TEXT_CHARS = 4096
"""Longest text message, except `LONG_MESSAGES`."""

LONG_MESSAGES = ('"audio.append"', '"speech.say"', '"conversation.')

MAX_NAME_CHARS = 128
MAX_ID_CHARS = 64
MAX_PROMPT_CHARS = 4000
MAX_OVERLAY_FIELDS = 32
MAX_OVERLAY_CHARS = 2000
OPUS_RATE = 48_000
_NO_CAMERA_OPTIONS, _DEFAULT_MOTION = CameraOptions(), MotionOptions()
_MOTION_NUMBERS, _MOTION_FLAGS = (
    ("blinks_per_min", "expressiveness"),
    ("gaze_at_camera", "head_motion"),
)


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """The format in which a connection sends audio."""

    format: Literal["pcm16", "opus"] = "pcm16"
    sample_rate: int = 16_000
    channels: int = 1


@dataclass(frozen=True, slots=True)
class FramesFormat:
    """The format in which a connection receives frames and their audio."""

    format: Literal["none", "jpeg", "rgb"] = "none"
    quality: int = 80
    max_fps: int = 25
    sound: Literal["pcm16", "opus", "none"] = "pcm16"


@dataclass(frozen=True, slots=True)
class ConnectionConfig:
    """The configuration of a connection; see `session.configure`."""

    audio: AudioFormat = AudioFormat()
    frames: FramesFormat = FramesFormat()
    stats_s: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the fields of `session.configured`."""
        return {
            "audio": fields_of(self.audio),
            "frames": fields_of(self.frames),
            "stats_s": self.stats_s,
        }


@dataclass(frozen=True, slots=True)
class Ping:
    """The client is alive."""

    type: ClassVar[str] = "session.ping"
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Configure:
    """Change the configuration of the connection; `None` changes nothing.

    The fields are kept as sent, and checked when they are applied to the current configuration.
    """

    type: ClassVar[str] = "session.configure"
    audio: Mapping[str, Any] | None = None
    frames: Mapping[str, Any] | None = None
    stats_s: int | None = None
    event_id: str | None = None

    def apply(self, config: ConnectionConfig) -> ConnectionConfig:
        """Return the changed configuration.

        Raises:
            BadMessageError: A value is out of range.
        """
        if self.audio is not None:
            config = replace(config, audio=_audio(self.audio, config.audio))
        if self.frames is not None:
            config = replace(config, frames=_frames(self.frames, config.frames))
        if self.stats_s is not None:
            config = replace(config, stats_s=self.stats_s)
        return config


@dataclass(frozen=True, slots=True)
class Close:
    """End the session."""

    type: ClassVar[str] = "session.close"
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Drop the speech that was not played yet."""

    type: ClassVar[str] = "avatar.interrupt"
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Select:
    """Show another avatar; `portrait` is an older field for the same id."""

    type: ClassVar[str] = "avatar.select"
    avatar: str | None = None
    portrait: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Append:
    """A chunk of audio in the configured format."""

    type: ClassVar[str] = "audio.append"
    audio: bytes = field(repr=False, default=b"")
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Say:
    """A text to be spoken; the empty voice is that of the server's settings."""

    type: ClassVar[str] = "speech.say"
    text: str = field(repr=False, default="")
    voice: str = ""
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class EndSegment:
    """End the segment."""

    type: ClassVar[str] = "segment.end"
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Overlay:
    """Change the appearance of pages that show the avatar."""

    type: ClassVar[str] = "overlay.update"
    overlay: Mapping[str, Any] = field(default_factory=dict)
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Camera:
    """Change how the camera of a client moves the avatar."""

    type: ClassVar[str] = "camera.configure"
    camera: CameraOptions = _NO_CAMERA_OPTIONS
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Neutral:
    """Take the look of the next frames of the camera as the neutral one."""

    type: ClassVar[str] = "camera.neutral"
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Change how the face moves; what is not named has its default."""

    type: ClassVar[str] = "motion.configure"
    motion: MotionOptions = _DEFAULT_MOTION
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChangeMood:
    """Change how the avatar feels."""

    type: ClassVar[str] = "performance.mood"
    mood: str | Style = "neutral"
    strength: float = 1.0
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class MakeGesture:
    """Make a gesture, at once or at a time of the segment that is being pushed."""

    type: ClassVar[str] = "performance.gesture"
    gesture: Gesture
    at_s: float | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Listen:
    """Change how the avatar shows its attention while the user speaks."""

    type: ClassVar[str] = "performance.listening"
    mode: Listening = "off"
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Converse:
    """Begin, change or end the conversation; `None` changes nothing."""

    type: ClassVar[str] = "conversation.configure"
    on: bool = True
    prompt: str | None = field(repr=False, default=None)
    voice: str | None = None
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """A text that the user says in the conversation."""

    type: ClassVar[str] = "conversation.say"
    text: str = field(repr=False, default="")
    event_id: str | None = None


ClientMessage = (
    Ping
    | Configure
    | Close
    | Interrupt
    | Select
    | Append
    | Say
    | EndSegment
    | Overlay
    | Camera
    | Neutral
    | Move
    | ChangeMood
    | MakeGesture
    | Listen
    | Converse
    | Tell
)


def parse(text: object, max_bytes: int = 262_144) -> ClientMessage:
    """Parse a text message of a client.

    Raises:
        BadMessageError: The message is invalid. The error never repeats its content.
    """
    fields = _load(text, max_bytes)
    event_id = fields.get("event_id")
    if event_id is not None and not _is_string(event_id, MAX_ID_CHARS):
        raise BadMessageError(f"event_id must be a string of at most {MAX_ID_CHARS} characters")
    try:
        return _build(fields, event_id)
    except (BadMessageError, ConfigError) as error:
        refused = BadMessageError(str(error))
        refused.re = event_id
        raise refused from None


def config_from_query(query: Mapping[str, str]) -> ConnectionConfig:
    """Return the configuration in the query of a WebSocket.

    Raises:
        BadMessageError: A value is unknown or out of range.
    """
    audio: dict[str, Any] = {}
    if "audio" in query:
        audio["format"] = query["audio"]
    for key in ("sample_rate", "channels"):
        if key in query:
            audio[key] = _number(query[key], key)
    frames: dict[str, Any] = {}
    for key, name in (("frames", "format"), ("sound", "sound")):
        if key in query:
            frames[name] = query[key]
    for key in ("quality", "max_fps"):
        if key in query:
            frames[key] = _number(query[key], key)
    return Configure(audio=audio, frames=frames).apply(ConnectionConfig())


def _number(text: str, key: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise BadMessageError(f"{key} must be an integer")
    return int(text)


def _load(text: object, max_bytes: int) -> dict[str, Any]:
    if not isinstance(text, str):
        raise BadMessageError("a message must be JSON text, not binary")
    begin = text[:MAX_TEXT_CHARS]
    if len(text) > MAX_TEXT_CHARS and not any(name in begin for name in LONG_MESSAGES):
        raise BadMessageError(f"a message may have {MAX_TEXT_CHARS} characters, got {len(text)}")
    if len(text) > 2 * max_bytes:
        raise BadMessageError(f"a message may have {2 * max_bytes} characters, got {len(text)}")
    try:
        return load_object(text)
    except ValueError:
        raise BadMessageError("a message must be a JSON object") from None


def _build(fields: dict[str, Any], event_id: str | None) -> ClientMessage:
    name = fields.get("type")
    if not isinstance(name, str) or name not in _BUILDERS:
        raise BadMessageError(
            "the type of a message must be one of those in docs/protocol.md, such as session.ping"
        )
    return _BUILDERS[name](fields, event_id)


def _select(fields: dict[str, Any], event_id: str | None) -> Select:
    given = {key: fields[key] for key in ("avatar", "portrait") if fields.get(key) is not None}
    if len(given) != 1 or not all(_is_string(value, MAX_NAME_CHARS) for value in given.values()):
        raise BadMessageError("avatar.select takes either avatar or portrait, a short string")
    return Select(**given, event_id=event_id)


def _append(fields: dict[str, Any], event_id: str | None) -> Append:
    audio = fields.get("audio")
    if not isinstance(audio, str):
        raise BadMessageError("audio.append needs base64 in the field audio")
    try:
        return Append(base64.b64decode(audio, validate=True), event_id)
    except (binascii.Error, ValueError):
        raise BadMessageError("the audio of audio.append must be base64") from None


def _say(fields: dict[str, Any], event_id: str | None) -> Say:
    text = fields.get("text")
    if not isinstance(text, str):
        raise BadMessageError("speech.say needs a string in the field text")
    voice = fields.get("voice", "")
    if not _is_string(voice, MAX_NAME_CHARS):
        raise BadMessageError("voice must be one of the names in /v1/config")
    return Say(text, voice, event_id)


def _tell(fields: dict[str, Any], event_id: str | None) -> Tell:
    text = fields.get("text")
    if not isinstance(text, str) or not text.strip():
        raise BadMessageError("conversation.say needs words in the field text")
    return Tell(text, event_id)


def _converse(fields: dict[str, Any], event_id: str | None) -> Converse:
    on, prompt, voice = fields.get("on", True), fields.get("prompt"), fields.get("voice")
    if not isinstance(on, bool):
        raise BadMessageError("on of conversation.configure must be true or false")
    if prompt is not None and not _is_string(prompt, MAX_PROMPT_CHARS):
        raise BadMessageError(f"prompt must be a string of at most {MAX_PROMPT_CHARS} characters")
    if voice is not None and not _is_string(voice, MAX_NAME_CHARS):
        raise BadMessageError("voice must be one of the names in /v1/config")
    return Converse(on, prompt, voice, event_id)


def _overlay(fields: dict[str, Any], event_id: str | None) -> Overlay:
    overlay = fields.get("overlay")
    if (
        not isinstance(overlay, dict)
        or len(overlay) > MAX_OVERLAY_FIELDS
        or not all(isinstance(value, str | int | float | bool) for value in overlay.values())
        or len(json.dumps(overlay)) > MAX_OVERLAY_CHARS
    ):
        raise BadMessageError(
            f"overlay must be a flat object of at most {MAX_OVERLAY_FIELDS} strings, numbers and "
            f"booleans, {MAX_OVERLAY_CHARS} characters"
        )
    return Overlay(overlay, event_id)


def _camera(fields: dict[str, Any], event_id: str | None) -> Camera:
    absolute = fields.get("absolute", False)
    if not isinstance(absolute, bool):
        raise BadMessageError("absolute of camera.configure must be true or false")
    lips = _one_of(fields.get("lips", "sound"), "lips", get_args(LipDrive))
    role = _one_of(fields.get("role", "drive"), "role", get_args(CameraRole))
    return Camera(CameraOptions(lips, absolute, role), event_id)  # type: ignore[arg-type]  # checked


def _mood(fields: dict[str, Any], event_id: str | None) -> ChangeMood:
    mood, strength = json_fields.read_mood(fields)
    return ChangeMood(mood, strength, event_id)


def _gesture(fields: dict[str, Any], event_id: str | None) -> MakeGesture:
    gesture, at_s = json_fields.read_gesture(fields)
    return MakeGesture(gesture, at_s, event_id)


def _listening(fields: dict[str, Any], event_id: str | None) -> Listen:
    return Listen(json_fields.read_listening(fields, "mode"), event_id)


def _move(fields: dict[str, Any], event_id: str | None) -> Move:
    known = _MOTION_NUMBERS + _MOTION_FLAGS
    return Move(motion_of({key: fields[key] for key in known if key in fields}), event_id)


def motion_of(fields: object) -> MotionOptions:
    """Return options of motion from a JSON value.

    Raises:
        BadMessageError: a field is unknown, of the wrong type or out of range.
    """
    known = _MOTION_NUMBERS + _MOTION_FLAGS
    if not isinstance(fields, dict) or not fields.keys() <= set(known):
        raise BadMessageError(f"motion may have {', '.join(known)}")
    for key, value in fields.items():
        if isinstance(value, bool) != (key in _MOTION_FLAGS) or not isinstance(value, int | float):
            raise BadMessageError(f"{key} of motion is of the wrong type")
    try:
        return MotionOptions(**fields)
    except ConfigError as error:
        raise BadMessageError(f"motion cannot be used: {error}") from None


def _configure(fields: dict[str, Any], event_id: str | None) -> Configure:
    for key in ("audio", "frames"):
        if not isinstance(fields.get(key), dict | None):
            raise BadMessageError(f"{key} of session.configure must be an object")
    stats_s = fields.get("stats_s")
    if stats_s is not None:
        stats_s = _integer(stats_s, "stats_s", 0, 60)
    message = Configure(fields.get("audio"), fields.get("frames"), stats_s, event_id)
    message.apply(ConnectionConfig())
    return message


_BUILDERS: dict[str, Callable[[dict[str, Any], str | None], ClientMessage]] = {
    Ping.type: lambda fields, event_id: Ping(event_id),
    Configure.type: _configure,
    Close.type: lambda fields, event_id: Close(event_id),
    Interrupt.type: lambda fields, event_id: Interrupt(event_id),
    Select.type: _select,
    Append.type: _append,
    Say.type: _say,
    EndSegment.type: lambda fields, event_id: EndSegment(event_id),
    Overlay.type: _overlay,
    Camera.type: _camera,
    Move.type: _move,
    Neutral.type: lambda fields, event_id: Neutral(event_id),
    ChangeMood.type: _mood,
    MakeGesture.type: _gesture,
    Listen.type: _listening,
    Converse.type: _converse,
    Tell.type: _tell,
}


def _audio(fields: Mapping[str, Any], current: AudioFormat) -> AudioFormat:
    kind = _one_of(fields.get("format", current.format), "audio.format", ("pcm16", "opus"))
    default = OPUS_RATE if kind == "opus" else current.sample_rate
    rate = _integer(fields.get("sample_rate", default), "audio.sample_rate", 8000, 192_000)
    if kind == "opus" and rate != OPUS_RATE:
        raise BadMessageError(f"audio.sample_rate of opus is {OPUS_RATE}")
    channels = _integer(fields.get("channels", current.channels), "audio.channels", 1, 2)
    return AudioFormat(kind, rate, channels)  # type: ignore[arg-type]  # checked above


def _frames(fields: Mapping[str, Any], current: FramesFormat) -> FramesFormat:
    kind = _one_of(fields.get("format", current.format), "frames.format", ("none", "jpeg", "rgb"))
    sound = _one_of(fields.get("sound", current.sound), "frames.sound", ("pcm16", "opus", "none"))
    return FramesFormat(
        kind,  # type: ignore[arg-type]  # checked above
        _integer(fields.get("quality", current.quality), "frames.quality", 1, 95),
        _integer(fields.get("max_fps", current.max_fps), "frames.max_fps", 1, 25),
        sound,  # type: ignore[arg-type]
    )


def _one_of(value: object, key: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise BadMessageError(f"{key} must be one of {', '.join(known)}")
    return value


def _integer(value: object, key: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise BadMessageError(f"{key} must be an integer from {low} to {high}")
    return value


def _is_string(value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit
