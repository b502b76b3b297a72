"""Every error that a client is told of: a stable code for programs, a text for people.

ServerError
|-- BadRequestError            bad-request: it is not as the protocol describes
|-- BadOfferError              bad-offer: the SDP is not one for an avatar session
|-- IceRestartError            ice-restart-unsupported
|-- ConsentMissingError        consent-missing
|-- AuthenticationError
|   |-- TokenMissingError      token-missing
|   |-- TokenInvalidError      token-invalid
|   `-- TokenExpiredError      token-expired
|-- NotAllowedError            not-allowed: the token does not allow this
|-- NotFoundError              not-found
|   |-- UnknownSessionError    unknown-session
|   |-- UnknownAvatarError     unknown-avatar
|   `-- UnknownPortraitError   unknown-portrait
|-- DefaultAvatarError         default-avatar: it comes with the server and cannot be deleted
|-- RetryLaterError
|   |-- TooManyRequestsError   too-many-requests: of one subject
|   |-- AtCapacityError        at-capacity (also an AtCapacity of the SDK)
|   `-- NotReadyError          not-ready: the server is stopping
|-- MessageError               (a message was refused; the connection stays)
|   |-- BadMessageError        bad-message: it is not as the protocol describes
|   |-- MessageTooLargeError   message-too-large
|   |-- MessageRateError       message-rate
|   |-- NotCarriedError        not-here: this kind of connection does not carry that
|   |-- BadAudioError          bad-audio: it is not in the format that was agreed
|   |-- SpeechOverflowError    speech-overflow: too much speech waits already
|   `-- FloorTakenError        floor-taken: another connection speaks
`-- ConnectionEndedError       (why the server closes a connection)
    |-- TakenOverError         taken-over: a newer connection has its place
    |-- SessionOverError       session-over: its time is over
    `-- EngineFailedError      engine-failed

`docs/protocol.md` lists the codes. `problem_details` knows what they are in HTTP, `sockets` what a
WebSocket is closed with.
"""

from typing import ClassVar

from letstalk_rt.errors import AtCapacity

RETRY_AFTER_S = 10


class ServerError(Exception):
    """Base of all errors that clients are told of.

    Args:
        detail: what was wrong, what was expected and what to do, for the person who asked.

    Attributes:
        code: tells programs which error it is; never changes. Only leaves of the tree have one.
    """

    code: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequestError(ServerError):
    """What was sent is not as the protocol describes."""

    code = "bad-request"


class BadOfferError(ServerError):
    """The SDP is not one for an avatar session."""

    code = "bad-offer"


class IceRestartError(ServerError):
    """ICE cannot be restarted; a new connection is needed."""

    code = "ice-restart-unsupported"


class ConsentMissingError(ServerError):
    """The consent of the person in a portrait was not confirmed."""

    code = "consent-missing"


class AuthenticationError(ServerError):
    """It is not known who asks."""


class TokenMissingError(AuthenticationError):
    """A token is needed."""

    code = "token-missing"


class TokenInvalidError(AuthenticationError):
    """The token was not made by this server, or is damaged."""

    code = "token-invalid"


class TokenExpiredError(AuthenticationError):
    """The token has expired, or cannot be renewed any more."""

    code = "token-expired"


class NotAllowedError(ServerError):
    """The token does not allow this."""

    code = "not-allowed"


class NotFoundError(ServerError):
    """There is nothing of that name."""

    code = "not-found"


class UnknownSessionError(NotFoundError):
    """There is no such session, or it has ended."""

    code = "unknown-session"


class UnknownAvatarError(NotFoundError):
    """There is no such avatar."""

    code = "unknown-avatar"


class UnknownPortraitError(NotFoundError):
    """There is no such portrait, or it was dropped for newer ones."""

    code = "unknown-portrait"


class DefaultAvatarError(ServerError):
    """Avatars that come with the server cannot be deleted."""

    code = "default-avatar"


class RetryLaterError(ServerError):
    """It may work later.

    Args:
        detail: see `ServerError`.
        retry_after_s: when to try again.
    """

    def __init__(self, detail: str, retry_after_s: int = RETRY_AFTER_S) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooManyRequestsError(RetryLaterError):
    """One subject did that too often."""

    code = "too-many-requests"


class AtCapacityError(RetryLaterError, AtCapacity):
    """All places are taken."""

    code = "at-capacity"


class NotReadyError(RetryLaterError):
    """The server is stopping."""

    code = "not-ready"


class MessageError(ServerError):
    """A message was refused; the connection stays."""


class BadMessageError(MessageError):
    """A message is malformed, too long or of no known type.

    Attributes:
        re: the message's `event_id`, when that could be read.
    """

    code = "bad-message"
    re: str | None = None


class MessageTooLargeError(MessageError):
    """A message has more bytes than are taken."""

    code = "message-too-large"


class MessageRateError(MessageError):
    """Messages come too often."""

    code = "message-rate"


class NotCarriedError(MessageError):
    """This kind of connection does not carry that."""

    code = "not-here"


class BadAudioError(MessageError):
    """The audio is not in the format that was agreed."""

    code = "bad-audio"


class SpeechOverflowError(MessageError):
    """Too much speech waits already."""

    code = "speech-overflow"


class FloorTakenError(MessageError):
    """Another connection speaks now."""

    code = "floor-taken"


class ConnectionEndedError(ServerError):
    """Why the server closes a connection."""


class TakenOverError(ConnectionEndedError):
    """A newer connection has taken the place."""

    code = "taken-over"


class SessionOverError(ConnectionEndedError):
    """The time of the session is over."""

    code = "session-over"


class EngineFailedError(ConnectionEndedError):
    """The avatar stopped."""

    code = "engine-failed"
