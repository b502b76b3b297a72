"""What a connection says to its session: checked, obeyed, and refused in words."""

from typing import TYPE_CHECKING

from letstalk_server.errors import (
    BadMessageError,
    MessageRateError,
    MessageTooLargeError,
    NotAllowedError,
    NotCarriedError,
    ServerError,
)
from letstalk_server.protocol import client_messages, server_messages
from letstalk_server.protocol.audio_payload import make_decoder
from letstalk_server.session.connection import Connection, ConnectionKind, EndReason
from letstalk_server.session.limits import TokenBucket

if TYPE_CHECKING:
    from letstalk_server.session.session import Session

VIEWER_MAY = (client_messages.Ping, client_messages.Configure)
"""What a connection may send that is only allowed to watch."""


class MessageHandler:
    """Takes the messages of one connection.

    Args:
        session: what they are for.
        link: who sends them.
    """

    def __init__(self, session: "Session", link: Connection) -> None:
        self._session, self._link = session, link
        self._rate = TokenBucket(session.settings.max_message_rate)
        self._decode = make_decoder(link.config.audio)

    def take(self, data: str | bytes) -> None:
        """Obey a message; whatever is wrong with it is told to its sender."""
        re: str | None = None
        try:
            if not self._rate.allows():
                raise MessageRateError("Send fewer messages per second.")
            if isinstance(data, bytes):
                self._hear(data)
                return
            message = client_messages.parse(data, self._session.settings.max_message_bytes)
            re = message.event_id
            self._check_rights(message)
            self._obey(message)
        except BadMessageError as error:
            self._refuse(error, error.re or re)
        except ServerError as error:
            self._refuse(error, re)

    def _check_rights(self, message: client_messages.ClientMessage) -> None:
        if not isinstance(message, client_messages.Ping):
            self._session.lifetime.touch()
        if not isinstance(message, VIEWER_MAY):
            self._check_may_speak()

    def _check_may_speak(self) -> None:
        if not self._link.may_speak:
            raise NotAllowedError("This connection may only watch: its token lacks speak.")

    def _obey(self, message: client_messages.ClientMessage) -> None:
        session, link, re = self._session, self._link, message.event_id
        match message:
            case client_messages.Ping():
                session.announcer.send(link, server_messages.Pong(), re)
            case client_messages.Configure():
                self._configure(message)
            case client_messages.Close():
                session.end(EndReason.CLOSED)
            case client_messages.Interrupt():
                session.announcer.send(link, session.interrupt(), re)
            case client_messages.Select(avatar, portrait):
                session.select(avatar, portrait)
            case client_messages.Append(audio):
                self._hear(audio)
            case client_messages.EndSegment():
                session.speech.end_segment(link.id)
            case client_messages.Overlay(overlay):
                session.overlay = overlay
                session.announcer.tell(server_messages.OverlayUpdated(overlay))

    def _configure(self, message: client_messages.Configure) -> None:
        link = self._link
        config = message.apply(link.config)
        if config.frames.format != "none" and link.role is not ConnectionKind.SOCKET:
            raise NotCarriedError("Pictures as messages are sent on WebSockets only.")
        if config.audio != link.config.audio:
            self._decode = make_decoder(config.audio)
        link.config = config
        self._session.announcer.send(
            link, server_messages.Configured(**config.as_json()), message.event_id
        )

    def _hear(self, data: bytes) -> None:
        self._check_may_speak()
        most = self._session.settings.max_message_bytes
        if len(data) > most:
            raise MessageTooLargeError(f"A piece of sound may have {most} bytes.")
        self._session.lifetime.touch()
        pcm = self._decode(data)
        if len(pcm):
            self._session.speech.push(self._link.id, pcm, self._link.config.audio.sample_rate)

    def _refuse(self, error: ServerError, re: str | None) -> None:
        self._session.announcer.send(self._link, server_messages.Fail.of(error), re)
