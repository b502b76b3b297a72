"""What a connection says to its session: checked, obeyed, and refused in words."""

from typing import TYPE_CHECKING

from letstalk_server import events, protocol
from letstalk_server.contract import End, Link, Role
from letstalk_server.errors import (
    BadMessageError,
    MessageRateError,
    MessageTooLargeError,
    NotAllowedError,
    NotCarriedError,
    ServerError,
)
from letstalk_server.limits import Rate
from letstalk_server.sound import decoder

if TYPE_CHECKING:
    from letstalk_server.session import Session

VIEWER_MAY = (protocol.Ping, protocol.Configure)
"""What a connection may send that is only allowed to watch."""


class Reception:
    """Takes the messages of one connection.

    Args:
        session: what they are for.
        link: who sends them.
    """

    def __init__(self, session: "Session", link: Link) -> None:
        self._session, self._link = session, link
        self._rate = Rate(session.settings.max_message_rate)
        self._decode = decoder(link.wishes.audio)

    def take(self, data: str | bytes) -> None:
        """Obey a message; whatever is wrong with it is told to its sender."""
        re: str | None = None
        try:
            if not self._rate.allows():
                raise MessageRateError("Send fewer messages per second.")
            if isinstance(data, bytes):
                self._hear(data)
                return
            message = protocol.parse(data, self._session.settings.max_message_bytes)
            re = message.event_id
            self._check_rights(message)
            self._obey(message)
        except BadMessageError as error:
            self._refuse(error, error.re or re)
        except ServerError as error:
            self._refuse(error, re)

    def _check_rights(self, message: protocol.ClientMessage) -> None:
        if not isinstance(message, protocol.Ping):
            self._session.lifetime.touch()
        if not isinstance(message, VIEWER_MAY):
            self._check_may_speak()

    def _check_may_speak(self) -> None:
        if not self._link.may_speak:
            raise NotAllowedError("This connection may only watch: its token lacks speak.")

    def _obey(self, message: protocol.ClientMessage) -> None:
        session, link, re = self._session, self._link, message.event_id
        match message:
            case protocol.Ping():
                session.announcer.send(link, events.Pong(), re)
            case protocol.Configure():
                self._configure(message)
            case protocol.Close():
                session.end(End.CLOSED)
            case protocol.Interrupt():
                session.announcer.send(link, session.interrupt(), re)
            case protocol.Select(avatar, portrait):
                session.select(avatar, portrait)
            case protocol.Append(audio):
                self._hear(audio)
            case protocol.EndSegment():
                session.speech.end_segment(link.id)
            case protocol.Overlay(overlay):
                session.overlay = overlay
                session.announcer.tell(events.OverlayUpdated(overlay))

    def _configure(self, message: protocol.Configure) -> None:
        link = self._link
        wishes = message.apply(link.wishes)
        if wishes.frames.format != "none" and link.role is not Role.SOCKET:
            raise NotCarriedError("Pictures as messages are sent on WebSockets only.")
        if wishes.audio != link.wishes.audio:
            self._decode = decoder(wishes.audio)
        link.wishes = wishes
        self._session.announcer.send(link, events.Configured(**wishes.as_json()), message.event_id)

    def _hear(self, data: bytes) -> None:
        self._check_may_speak()
        most = self._session.settings.max_message_bytes
        if len(data) > most:
            raise MessageTooLargeError(f"A piece of sound may have {most} bytes.")
        self._session.lifetime.touch()
        pcm = self._decode(data)
        if len(pcm):
            self._session.speech.push(self._link.id, pcm, self._link.wishes.audio.sample_rate)

    def _refuse(self, error: ServerError, re: str | None) -> None:
        self._session.announcer.send(self._link, events.Fail.of(error), re)
