"""Errors as RFC 9457 problem documents: a stable code for programs, clear words for people."""

from dataclasses import dataclass

from starlette.responses import JSONResponse

RETRY_AFTER_S = 10


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its HTTP status, stable code and short title."""

    status: int
    code: str
    title: str


BAD_REQUEST = Kind(400, "bad-request", "The request cannot be understood")
BAD_OFFER = Kind(400, "bad-offer", "The connection offer cannot be used")
NO_CONSENT = Kind(400, "consent-missing", "The person's consent was not confirmed")
TOKEN_MISSING = Kind(401, "token-missing", "A token is needed")
TOKEN_INVALID = Kind(401, "token-invalid", "The token is not one of this server")
TOKEN_EXPIRED = Kind(401, "token-expired", "The token has expired")
NOT_ALLOWED = Kind(403, "not-allowed", "The token does not allow this")
FOREIGN_ORIGIN = Kind(403, "foreign-origin", "Requests from other web sites are refused")
NOT_FOUND = Kind(404, "not-found", "There is nothing here")
NO_SESSION = Kind(404, "unknown-session", "There is no such session")
NO_AVATAR = Kind(404, "unknown-avatar", "There is no such avatar")
NO_PORTRAIT = Kind(404, "unknown-portrait", "There is no such portrait")
WRONG_METHOD = Kind(405, "method-not-allowed", "This address does not take that method")
DEFAULT_AVATAR = Kind(409, "default-avatar", "Default avatars stay")
CHANGED = Kind(412, "precondition-failed", "The connection has another state")
TOO_LARGE = Kind(413, "too-large", "That file is too large")
WRONG_TYPE = Kind(415, "unsupported-media-type", "That content type is not understood")
NOT_AN_IMAGE = Kind(422, "not-an-image", "That file is not a picture")
IMAGE_DAMAGED = Kind(422, "image-damaged", "That picture is damaged")
TOO_MANY_PIXELS = Kind(422, "too-many-pixels", "That picture has too many pixels")
BAD_PORTRAIT = Kind(422, "bad-portrait", "That picture cannot be used as a portrait")
NO_FACE = Kind(422, "no-face", "No face was found in that picture")
NO_RESTART = Kind(422, "ice-restart-unsupported", "Connections are not restarted")
NO_CONDITION = Kind(428, "precondition-required", "If-Match is needed")
TOO_MANY = Kind(429, "too-many-requests", "That was too often")
INTERNAL = Kind(500, "internal", "Something went wrong on the server")
AT_CAPACITY = Kind(503, "at-capacity", "All places are taken")
NOT_READY = Kind(503, "not-ready", "The server is not ready")

# Only in messages, where the status closes a WebSocket's handshake or counts for nothing.
BAD_MESSAGE = Kind(400, "bad-message", "The message cannot be understood")
MESSAGE_TOO_LARGE = Kind(413, "message-too-large", "That message is too large")
MESSAGE_RATE = Kind(429, "message-rate", "Too many messages")
SPEECH_OVERFLOW = Kind(429, "speech-overflow", "Too much speech is waiting")
FLOOR_TAKEN = Kind(409, "floor-taken", "Another connection speaks now")
TAKEN_OVER = Kind(409, "taken-over", "Another connection took over")
BAD_AUDIO = Kind(400, "bad-audio", "That sound cannot be used")
NOT_HERE = Kind(400, "not-here", "This connection does not carry that")
ENGINE_FAILED = Kind(500, "engine-failed", "The avatar stopped")
SESSION_OVER = Kind(410, "session-over", "The time of the session is over")

KINDS = tuple(kind for kind in vars().copy().values() if isinstance(kind, Kind))


class Problem(Exception):
    """An answer to a request that cannot be met.

    Args:
        kind: what kind of problem it is.
        detail: what was wrong, what was expected and what to do, for the person who asked.
        headers: further response headers.
    """

    def __init__(self, kind: Kind, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.headers = headers

    def response(self) -> JSONResponse:
        """Give the problem document."""
        body = {
            "type": f"urn:letstalk:problem:{self.kind.code}",
            "title": self.kind.title,
            "status": self.kind.status,
            "code": self.kind.code,
            "detail": self.detail,
        }
        headers = _DEFAULT_HEADERS.get(self.kind.status, {}) | (self.headers or {})
        return JSONResponse(
            body,
            status_code=self.kind.status,
            headers=headers,
            media_type="application/problem+json",
        )


_DEFAULT_HEADERS = {
    401: {"www-authenticate": 'Bearer realm="letstalk"'},
    429: {"retry-after": str(RETRY_AFTER_S)},
    503: {"retry-after": str(RETRY_AFTER_S)},
}
