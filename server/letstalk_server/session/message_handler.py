"""Handles the messages of a connection: checks, dispatch, error replies."""

from letstalk_server.errors import (
    BadMessageError,
    BadTextError,
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
from letstalk_server.session.session import Session

TEXTS_PER_S, TEXT_BURST = 1.0, 10.0
"""Sustained rate of texts to be spoken per connection, 1/s, and how many at once."""

VIEWER_MESSAGES = (client_messages.Ping, client_messages.Configure)
"""Messages that do not need the scope `speak`."""


class MessageHandler:
    """Handles the messages of one connection.

    Args:
        session: the session.
        connection: the connection.
    """

    def __init__(self, session: Session, connection: Connection) -> None:
        self._session, self._connection = session, connection
        self._rate = TokenBucket(session.settings.max_message_rate)
        self._text_rate = TokenBucket(TEXTS_PER_S, burst=TEXT_BURST)
        self._decode = make_decoder(connection.config.audio)

    def handle(self, data: str | bytes) -> bool:
        """Handle a message; errors are sent back to the connection.

        Returns:
            Whether it came within the rate of the connection.
        """
        if not self._rate.take():
            self._send_error(MessageRateError("Send fewer messages per second."), None)
            return False
        self._handle(data)
        return True

    def _handle(self, data: str | bytes) -> None:
        re: str | None = None
        try:
            if isinstance(data, bytes):
                self._push_audio(data)
                return
            message = client_messages.parse(data, self._session.settings.max_message_bytes)
            re = message.event_id
            self._check_rights(message)
            self._dispatch(message)
        except BadMessageError as error:
            self._send_error(error, error.re or re)
        except ServerError as error:
            self._send_error(error, re)

    def _check_rights(self, message: client_messages.ClientMessage) -> None:
        if not isinstance(message, client_messages.Ping):
            self._session.lifetime.touch()
        if not isinstance(message, VIEWER_MESSAGES):
            self._check_may_speak()

    def _check_may_speak(self) -> None:
        if not self._connection.may_speak:
            raise NotAllowedError(
                "This needs a token with the scope speak; this connection can only watch."
            )

    def _dispatch(self, message: client_messages.ClientMessage) -> None:
        session, connection, re = self._session, self._connection, message.event_id
        match message:
            case client_messages.Ping():
                session.announcer.send(connection, server_messages.Pong(), re)
            case client_messages.Configure():
                self._configure(message)
            case client_messages.Close():
                session.end(EndReason.CLOSED)
            case client_messages.Interrupt():
                session.announcer.send(connection, session.interrupt(), re)
            case client_messages.Select(avatar, portrait):
                session.select(avatar, portrait)
            case client_messages.Append(audio):
                self._push_audio(audio)
            case client_messages.Say(text, voice):
                self._say(text, voice, re)
            case client_messages.EndSegment():
                session.speech.end_segment(connection.id)
            case client_messages.Camera(camera):
                session.set_camera(camera)
            case client_messages.Move(motion):
                session.set_motion(motion)
            case client_messages.Neutral():
                session.take_neutral()
            case client_messages.ChangeMood(mood, strength):
                session.performance.set_mood(mood, strength)
            case client_messages.MakeGesture(gesture, at_s):
                session.gesture(connection.id, gesture, at_s)
            case client_messages.Listen(mode):
                session.performance.set_listening(mode)
            case client_messages.Converse():
                session.announcer.send(connection, session.talking.configure(message), re)
            case client_messages.Tell(text):
                self._tell(text)
            case client_messages.Overlay(overlay):
                session.overlay = overlay
                session.announcer.broadcast(server_messages.OverlayUpdated(overlay))

    def _configure(self, message: client_messages.Configure) -> None:
        connection = self._connection
        config = message.apply(connection.config)
        if config.frames.format != "none" and connection.kind is not ConnectionKind.SOCKET:
            raise NotCarriedError("Frames as messages are sent on WebSockets only.")
        if config.audio != connection.config.audio:
            self._decode = make_decoder(config.audio)
        connection.config = config
        self._session.announcer.send(
            connection, server_messages.Configured(**config.as_json()), message.event_id
        )

    def _say(self, text: str, voice: str, re: str | None) -> None:
        if not self._text_rate.take():
            raise MessageRateError("Send fewer texts: about one per second.")
        unknown = self._session.text_speech.submit(
            f"{self._connection.id}/text", text, voice, lambda error: self._send_error(error, re)
        )
        if unknown:
            detail = f"These tags are unknown and were left out: {', '.join(unknown)[:200]}."
            notice = server_messages.Warn("unknown-tags", detail)
            self._session.announcer.send(self._connection, notice, re)

    def _tell(self, text: str) -> None:
        limit = self._session.settings.max_say_chars
        if len(text) > limit:
            raise BadTextError(f"The text has {len(text)} characters, at most {limit} are taken.")
        if not self._text_rate.take():
            raise MessageRateError("Send fewer texts: about one per second.")
        self._session.talking.say(text)

    def _push_audio(self, data: bytes) -> None:
        self._check_may_speak()
        max_bytes = self._session.settings.max_message_bytes
        if len(data) > max_bytes:
            raise MessageTooLargeError(
                f"An audio chunk may have {max_bytes} bytes, got {len(data)}."
            )
        self._session.lifetime.touch()
        pcm = self._decode(data)
        if len(pcm):
            self._session.speech.push(
                self._connection.id, pcm, self._connection.config.audio.sample_rate
            )

    def _send_error(self, error: ServerError, re: str | None) -> None:
        self._session.announcer.send(self._connection, server_messages.Fail.of(error), re)
