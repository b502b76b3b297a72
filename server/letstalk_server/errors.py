"""Errors that are sent to clients: a stable code for programs, a text for people.

ServerError
|-- BadRequestError            bad-request: the request does not follow the protocol
|-- BadOfferError              bad-offer: the SDP offer cannot be used
|-- IceRestartError            ice-restart-unsupported
|-- ConsentMissingError        consent-missing
|-- AuthenticationError
|   |-- TokenMissingError      token-missing
|   |-- TokenInvalidError      token-invalid
|   `-- TokenExpiredError      token-expired
|-- NotAllowedError            not-allowed: the token lacks a scope
|-- NotFoundError              not-found
|   |-- UnknownSessionError    unknown-session
|   |-- UnknownAvatarError     unknown-avatar
|   `-- UnknownPortraitError   unknown-portrait
|-- DefaultAvatarError         default-avatar: default avatars cannot be deleted
|-- RetryLaterError
|   |-- TooManyRequestsError   too-many-requests: of one subject
|   |-- AtCapacityError        at-capacity (also an AtCapacity of the SDK)
|   `-- NotReadyError          not-ready: the server is stopping, or its model starts again
|-- MessageError               (a message was refused; the connection stays open)
|   |-- BadMessageError        bad-message: the message does not follow the protocol
|   |-- MessageTooLargeError   message-too-large
|   |-- MessageRateError       message-rate
|   |-- NotCarriedError        not-here: not available on this kind of connection
|   |-- BadAudioError          bad-audio: the audio is not in the configured format
|   |-- SpeechOverflowError    speech-overflow: too much speech is queued
|   |-- BadTextError           bad-text: the text cannot be spoken
|   |-- NoSpeechEngineError    no-speech-engine: the server cannot speak text
|   |-- SpeechFailedError      speech-failed: the speech engine failed
|   |-- NoConversationError    no-conversation: the server has no chat model
|   |-- NotDirectableError     not-directable: the model has no moods, gestures and listening
|   `-- FloorTakenError        floor-taken: another connection has the floor
`-- ConnectionEndedError       (why the server closes a connection)
    |-- TakenOverError         taken-over: a newer connection replaced it
    |-- SessionOverError       session-over: a time limit was reached
    `-- EngineFailedError      engine-failed

`docs/protocol.md` lists the codes. `http.problem_details` maps them to HTTP status codes,
`http.websocket` to close codes.
"""

from typing import ClassVar

from letstalk_rt.errors import AtCapacity

RETRY_AFTER_S = 10

MODEL_RETRY_S = 5
"""When to try again while the model is being started, s."""

MODEL_AWAY = f"The model is being started again. Try again in {MODEL_RETRY_S} seconds."


class ServerError(Exception):
    """Base class of the errors that are sent to clients.

    Args:
        detail: what was wrong, what was expected and what to do, for people.

    Attributes:
        code: stable identifier for programs; only the leaves of the tree have one.
    """

    code: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequestError(ServerError):
    """The request does not follow the protocol."""

    code = "bad-request"


class BadOfferError(ServerError):
    """The SDP offer cannot be used for a session."""

    code = "bad-offer"


class IceRestartError(ServerError):
    """ICE cannot be restarted like this."""

    code = "ice-restart-unsupported"


class ConsentMissingError(ServerError):
    """The consent of the person in a portrait was not confirmed."""

    code = "consent-missing"


class AuthenticationError(ServerError):
    """The caller is not authenticated."""


class TokenMissingError(AuthenticationError):
    """The request has no token."""

    code = "token-missing"


class TokenInvalidError(AuthenticationError):
    """The token was not issued by this server, or is damaged."""

    code = "token-invalid"


class TokenExpiredError(AuthenticationError):
    """The token has expired, or can no longer be renewed."""

    code = "token-expired"


class NotAllowedError(ServerError):
    """The token does not permit this."""

    code = "not-allowed"


class NotFoundError(ServerError):
    """There is no such resource."""

    code = "not-found"


class UnknownSessionError(NotFoundError):
    """There is no such session, or it has ended."""

    code = "unknown-session"


class UnknownAvatarError(NotFoundError):
    """There is no such avatar."""

    code = "unknown-avatar"


class UnknownPortraitError(NotFoundError):
    """There is no such portrait, or newer ones replaced it."""

    code = "unknown-portrait"


class DefaultAvatarError(ServerError):
    """Default avatars cannot be deleted."""

    code = "default-avatar"


class RetryLaterError(ServerError):
    """The request may succeed later.

    Args:
        detail: see `ServerError`.
        retry_after_s: when to try again, s.
    """

    def __init__(self, detail: str, retry_after_s: int = RETRY_AFTER_S) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooManyRequestsError(RetryLaterError):
    """A subject exceeds a rate limit."""

    code = "too-many-requests"


class AtCapacityError(RetryLaterError, AtCapacity):
    """The server or the session is full."""

    code = "at-capacity"


class NotReadyError(RetryLaterError):
    """The server is stopping, or its model is being started again."""

    code = "not-ready"


class MessageError(ServerError):
    """A message was refused; the connection stays open."""


class BadMessageError(MessageError):
    """A message is malformed, too long or of no known type.

    Attributes:
        re: `event_id` of the message, if it could be read.
    """

    code = "bad-message"
    re: str | None = None


class MessageTooLargeError(MessageError):
    """A message exceeds the size limit."""

    code = "message-too-large"


class MessageRateError(MessageError):
    """Messages exceed the rate limit."""

    code = "message-rate"


class NotCarriedError(MessageError):
    """The message is not available on this kind of connection."""

    code = "not-here"


class BadAudioError(MessageError):
    """The audio is not in the configured format."""

    code = "bad-audio"


class SpeechOverflowError(MessageError):
    """Too much speech is queued."""

    code = "speech-overflow"


class BadTextError(MessageError):
    """The text is empty, too long, or has nothing that can be spoken."""

    code = "bad-text"


class NoSpeechEngineError(MessageError):
    """The server has no speech engine."""

    code = "no-speech-engine"


class SpeechFailedError(MessageError):
    """The speech engine failed."""

    code = "speech-failed"


class NoConversationError(MessageError):
    """The server has no chat model, or no conversation is on."""

    code = "no-conversation"


class NotDirectableError(MessageError):
    """The model has no moods, gestures and listening."""

    code = "not-directable"


class FloorTakenError(MessageError):
    """Another connection has the floor."""

    code = "floor-taken"


class ConnectionEndedError(ServerError):
    """Base class of the reasons for which the server closes a connection."""


class TakenOverError(ConnectionEndedError):
    """A newer connection has replaced this one."""

    code = "taken-over"


class SessionOverError(ConnectionEndedError):
    """A time limit of the session was reached."""

    code = "session-over"


class EngineFailedError(ConnectionEndedError):
    """The engine session failed."""

    code = "engine-failed"
