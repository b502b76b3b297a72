"""Data-channel messages: JSON objects told apart by `type`, named `domain.action`.

From the page: `session.ping`, `avatar.interrupt`, `avatar.select`, `session.close`.
To the page: `session.ready`, `session.pong`, `session.warning`, `session.error`,
`avatar.speaking`, `avatar.idle`, `avatar.interrupted`, `avatar.selected`.
What the page sends is not trusted: `parse` answers anything else with `BadMessage`.
"""

import json
from dataclasses import asdict, dataclass
from typing import ClassVar

from letstalk_rt.errors import InputError

MAX_MESSAGE_CHARS = 4096
MAX_NAME_CHARS = 128


class BadMessage(InputError):
    """A message is malformed, too long or of no known type."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The page is alive."""

    type: ClassVar[str] = "session.ping"


@dataclass(frozen=True, slots=True)
class Close:
    """The page is done."""

    type: ClassVar[str] = "session.close"


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Forget the speech that was not shown yet."""

    type: ClassVar[str] = "avatar.interrupt"


@dataclass(frozen=True, slots=True)
class Select:
    """Show another avatar: the name of a default one, or the id of an uploaded portrait."""

    type: ClassVar[str] = "avatar.select"
    avatar: str | None = None
    portrait: str | None = None


ClientMessage = Ping | Close | Interrupt | Select
_CLIENT: dict[str, type[ClientMessage]] = {
    kind.type: kind for kind in (Ping, Close, Interrupt, Select)
}


@dataclass(frozen=True, slots=True)
class Ready:
    """The session is connected; `warnings` are about the portrait."""

    type: ClassVar[str] = "session.ready"
    session: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to a ping."""

    type: ClassVar[str] = "session.pong"


@dataclass(frozen=True, slots=True)
class Warn:
    """The session goes on, but the user should know."""

    type: ClassVar[str] = "session.warning"
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Fail:
    """A message was refused or the session ends; `fatal` tells which."""

    type: ClassVar[str] = "session.error"
    code: str
    detail: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Speaking:
    """The avatar began to speak."""

    type: ClassVar[str] = "avatar.speaking"


@dataclass(frozen=True, slots=True)
class Idle:
    """The avatar fell silent."""

    type: ClassVar[str] = "avatar.idle"


@dataclass(frozen=True, slots=True)
class WasInterrupted:
    """What an interrupt cut off, in ms."""

    type: ClassVar[str] = "avatar.interrupted"
    played_ms: int
    dropped_ms: int


@dataclass(frozen=True, slots=True)
class Selected:
    """Another avatar is on its way; `warnings` are about its portrait."""

    type: ClassVar[str] = "avatar.selected"
    warnings: tuple[str, ...] = ()


ServerMessage = Ready | Pong | Warn | Fail | Speaking | Idle | WasInterrupted | Selected


def encode(message: ServerMessage) -> str:
    """Give the JSON text of a message to the page."""
    return json.dumps({"type": message.type, **asdict(message)})


def parse(text: object) -> ClientMessage:
    """Read a message of the page.

    Raises:
        BadMessage: it is not one of ours; the text says why and never repeats the message.
    """
    if not isinstance(text, str):
        raise BadMessage("a message must be JSON text, not binary")
    if len(text) > MAX_MESSAGE_CHARS:
        raise BadMessage(f"a message may have {MAX_MESSAGE_CHARS} characters, got {len(text)}")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadMessage("a message must be JSON") from error
    if not isinstance(fields, dict):
        raise BadMessage("a message must be a JSON object")
    name = fields.pop("type", None)
    if not isinstance(name, str) or name not in _CLIENT:
        raise BadMessage(f"the type of a message must be one of {', '.join(_CLIENT)}")
    return _build(_CLIENT[name], fields)


def _build(kind: type[ClientMessage], fields: dict[str, object]) -> ClientMessage:
    if kind is not Select:
        return kind()
    values = {key: fields.get(key) for key in ("avatar", "portrait")}
    given = [value for value in values.values() if value is not None]
    if len(given) != 1 or not isinstance(given[0], str) or len(given[0]) > MAX_NAME_CHARS:
        raise BadMessage("avatar.select takes either avatar or portrait, a short text")
    return Select(**values)  # type: ignore[arg-type]  # the one given value is a str
