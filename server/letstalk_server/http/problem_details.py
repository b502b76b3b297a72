"""Errors as HTTP responses: problem details (RFC 9457), with status and headers.

Source: https://www.rfc-editor.org/rfc/rfc9457
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.responses import JSONResponse

from letstalk_rt.errors import (
    ImageDamagedError,
    NoFaceError,
    NotAnImageError,
    PortraitError,
    TooManyPixelsError,
)
from letstalk_server.errors import RetryLaterError, ServerError


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A problem type (RFC 9457, section 4).

    Attributes:
        code: see `ServerError`.
        status: HTTP status code.
        title: short summary for people.
    """

    code: str
    status: int
    title: str

    @property
    def uri(self) -> str:
        """The member `type` of the document."""
        return f"urn:letstalk:problem:{self.code}"


PROBLEM_TYPES = {
    code: ProblemType(code, status, title)
    for code, status, title in (
        ("bad-request", 400, "The request cannot be understood"),
        ("bad-offer", 400, "The connection offer cannot be used"),
        ("consent-missing", 400, "The person's consent was not confirmed"),
        ("token-missing", 401, "A token is needed"),
        ("token-invalid", 401, "The token is not one of this server"),
        ("token-expired", 401, "The token has expired"),
        ("not-allowed", 403, "The token does not allow this"),
        ("foreign-origin", 403, "Requests from other web sites are refused"),
        ("not-found", 404, "There is nothing here"),
        ("unknown-session", 404, "There is no such session"),
        ("unknown-avatar", 404, "There is no such avatar"),
        ("unknown-portrait", 404, "There is no such portrait"),
        ("method-not-allowed", 405, "This address does not take that method"),
        ("too-slow", 408, "That took too long to arrive"),
        ("default-avatar", 409, "Default avatars stay"),
        ("precondition-failed", 412, "The connection has another state"),
        ("too-large", 413, "That file is too large"),
        ("unsupported-media-type", 415, "That content type is not understood"),
        ("not-an-image", 422, "That file is not a picture"),
        ("image-damaged", 422, "That picture is damaged"),
        ("too-many-pixels", 422, "That picture has too many pixels"),
        ("bad-portrait", 422, "That picture cannot be used as a portrait"),
        ("no-face", 422, "No face was found in that picture"),
        ("ice-restart-unsupported", 422, "ICE cannot be restarted like this"),
        ("precondition-required", 428, "If-Match is needed"),
        ("too-many-requests", 429, "That was too often"),
        ("internal", 500, "Something went wrong on the server"),
        ("at-capacity", 503, "All places are taken"),
        ("not-ready", 503, "The server is not ready"),
        # Only sent in messages, without the status.
        ("bad-message", 400, "The message cannot be understood"),
        ("message-too-large", 413, "That message is too large"),
        ("message-rate", 429, "Too many messages"),
        ("speech-overflow", 429, "Too much speech is waiting"),
        ("bad-text", 400, "The text cannot be spoken"),
        ("no-speech-engine", 501, "This server cannot speak text"),
        ("speech-failed", 502, "The text could not be spoken"),
        ("no-conversation", 501, "This server cannot converse"),
        ("not-directable", 409, "This model cannot be directed"),
        ("floor-taken", 409, "Another connection speaks now"),
        ("taken-over", 409, "Another connection took over"),
        ("bad-audio", 400, "That sound cannot be used"),
        ("not-here", 400, "This connection does not carry that"),
        ("engine-failed", 500, "The avatar stopped"),
        ("session-over", 410, "The time of the session is over"),
    )
}
"""By code."""

_PORTRAIT_CODES: dict[type[PortraitError], str] = {
    NotAnImageError: "not-an-image",
    ImageDamagedError: "image-damaged",
    TooManyPixelsError: "too-many-pixels",
    NoFaceError: "no-face",
    PortraitError: "bad-portrait",
}
_AUTHENTICATE = {"www-authenticate": 'Bearer realm="letstalk"'}


class HttpError(ServerError):
    """Base class of errors that occur in HTTP only.

    Args:
        detail: see `ServerError`.
        headers: additional headers of the response.
    """

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.headers = dict(headers or {})


class ForeignOriginError(HttpError):
    """The request comes from a page of another site."""

    code = "foreign-origin"


class MethodNotAllowedError(HttpError):
    """The path does not support the method."""

    code = "method-not-allowed"


class PreconditionFailedError(HttpError):
    """`If-Match` is not the current `ETag`."""

    code = "precondition-failed"


class BodyTooSlowError(HttpError):
    """The body does not arrive in time."""

    code = "too-slow"


class ContentTooLargeError(HttpError):
    """The body exceeds the size limit."""

    code = "too-large"


class UnsupportedMediaTypeError(HttpError):
    """The content type of the body is not supported."""

    code = "unsupported-media-type"


class PreconditionRequiredError(HttpError):
    """The request needs `If-Match`."""

    code = "precondition-required"


class InternalError(HttpError):
    """An unexpected error; the server's log has its type."""

    code = "internal"


@dataclass(frozen=True, slots=True)
class ProblemDetails:
    """One problem document.

    Attributes:
        problem_type: the problem type.
        detail: see `ServerError`.
        headers: headers of the response, in addition to the content type.
    """

    problem_type: ProblemType
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        body = {
            "type": self.problem_type.uri,
            "title": self.problem_type.title,
            "status": self.problem_type.status,
            "code": self.problem_type.code,
            "detail": self.detail,
        }
        return JSONResponse(
            body,
            status_code=self.problem_type.status,
            headers=dict(self.headers),
            media_type="application/problem+json",
        )


def problem_details(error: ServerError | PortraitError) -> ProblemDetails:
    """Return the problem document of an error."""
    problem_type = PROBLEM_TYPES[_code_of(error)]
    headers = dict(_AUTHENTICATE) if problem_type.status == 401 else {}
    if isinstance(error, RetryLaterError):
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, HttpError):
        headers |= error.headers
    return ProblemDetails(problem_type, str(error), headers)


def _code_of(error: ServerError | PortraitError) -> str:
    if isinstance(error, ServerError):
        return error.code
    return next(_PORTRAIT_CODES[kind] for kind in type(error).__mro__ if kind in _PORTRAIT_CODES)
