"""Errors as RFC 9457 problem documents: a stable code for programs, clear words for people."""

from dataclasses import dataclass

from starlette.responses import JSONResponse


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its HTTP status, stable code and short title."""

    status: int
    code: str
    title: str


BAD_REQUEST = Kind(400, "bad-request", "The request cannot be understood")
BAD_OFFER = Kind(400, "bad-offer", "The connection offer cannot be used")
FOREIGN_ORIGIN = Kind(403, "foreign-origin", "Requests from other web sites are refused")
NOT_FOUND = Kind(404, "not-found", "There is nothing here")
NO_AVATAR = Kind(404, "unknown-avatar", "There is no such avatar")
NO_PORTRAIT = Kind(404, "unknown-portrait", "There is no such portrait")
WRONG_METHOD = Kind(405, "method-not-allowed", "This address does not take that method")
TOO_LARGE = Kind(413, "too-large", "That file is too large")
NOT_AN_IMAGE = Kind(422, "not-an-image", "That file is not a picture")
IMAGE_DAMAGED = Kind(422, "image-damaged", "That picture is damaged")
BAD_PORTRAIT = Kind(422, "bad-portrait", "That picture cannot be used as a portrait")
NO_FACE = Kind(422, "no-face", "No face was found in that picture")
AT_CAPACITY = Kind(503, "at-capacity", "All places are taken")
INTERNAL = Kind(500, "internal", "Something went wrong on the server")


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
        return JSONResponse(
            body,
            status_code=self.kind.status,
            headers=self.headers,
            media_type="application/problem+json",
        )
