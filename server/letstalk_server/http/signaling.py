"""Offers and answers: the combined way of browsers, WHEP to watch and WHIP to speak.

WHIP is RFC 9725, WHEP draft-ietf-wish-whep: raw SDP, one POST, all our candidates in the answer.
"""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from letstalk_server.auth import Caller
from letstalk_server.errors import (
    AuthenticationError,
    BadOfferError,
    BadRequestError,
    IceRestartError,
    NotAllowedError,
    NotFoundError,
)
from letstalk_server.http.problem_details import (
    PreconditionFailedError,
    PreconditionRequiredError,
    UnsupportedMediaTypeError,
)
from letstalk_server.http.request_reading import (
    NO_STORE,
    AppContext,
    content_type,
    flag_of,
    json_answer,
    options_of,
    read_body,
    read_json,
    text_of,
)
from letstalk_server.session.connection import ConnectionKind, ServedSessionOptions
from letstalk_server.session.session import Session
from letstalk_server.webrtc import turn
from letstalk_server.webrtc.webrtc_connection import WebRTCConnection

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
MAX_SDP_BYTES = 64_000
MAX_FRAGMENT_BYTES = 16_000


def routes() -> list[BaseRoute]:
    """Give the routes."""
    connection = "/v1/sessions/{name}/connections/{connection}"
    return [
        Route("/v1/offer", offer, methods=["POST"]),
        Route("/v1/whep", watch, methods=["POST"]),
        Route("/v1/whip", speak, methods=["POST"]),
        Route("/v1/whep", say_how, methods=["OPTIONS"]),
        Route("/v1/whip", say_how, methods=["OPTIONS"]),
        Route(connection, trickle, methods=["PATCH"]),
        Route(connection, hang_up, methods=["DELETE"]),
    ]


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Which session a connection is for: one that is there, or else a new one."""

    session: str | None
    avatar: str | None = None
    portrait: str | None = None
    options: ServedSessionOptions = ServedSessionOptions()


async def offer(request: Request) -> Response:
    """Connect a browser: microphone up, avatar and data channel down."""
    parts = AppContext(request)
    caller = parts.caller("speak")
    fields = await read_json(request)
    sdp = fields.get("sdp")
    if fields.get("type") != "offer" or not isinstance(sdp, str):
        raise BadRequestError('The body must have "type": "offer" and the SDP text in "sdp".')
    wanted = SessionRequest(
        text_of(fields, "session") or request.query_params.get("session"),
        text_of(fields, "avatar"),
        text_of(fields, "portrait"),
        options_of(fields.get("options")),
    )
    session, link, answer = await connect(parts, caller, ConnectionKind.TALK, wanted, sdp)
    body = {"type": "answer", "sdp": answer, "session": session.id, "connection": link.id}
    return json_answer(body, 201, {"location": _address(session, link)})


async def watch(request: Request) -> Response:
    """Connect a player: WHEP."""
    return await _exchange(request, ConnectionKind.PLAY, "view")


async def speak(request: Request) -> Response:
    """Connect a microphone: WHIP."""
    return await _exchange(request, ConnectionKind.SPEAK, "speak")


async def say_how(request: Request) -> Response:
    """Tell what WHIP and WHEP clients may do; ICE servers are for those with a token."""
    headers = {"allow": "POST, OPTIONS", "accept-post": SDP}
    answer = Response(status_code=204, headers=headers)
    parts = AppContext(request)
    try:
        parts.caller("view", "speak")
    except (AuthenticationError, NotAllowedError):
        return answer
    _add_links(answer, parts)
    return answer


async def trickle(request: Request) -> Response:
    """Take further candidates of a client."""
    parts, session, link, caller = _found(request)
    caller.require("speak" if link.role is not ConnectionKind.PLAY else "view", "speak")
    if content_type(request) != FRAGMENT:
        raise UnsupportedMediaTypeError(f"The content type must be {FRAGMENT}.")
    condition = request.headers.get("if-match")
    if condition is None:
        raise PreconditionRequiredError("Send the connection's ETag in If-Match.")
    if condition.strip() == "*":
        raise IceRestartError(
            "ICE is not restarted. Open a new connection on the same session instead."
        )
    if condition.strip() != _etag(link):
        raise PreconditionFailedError("If-Match is not the ETag of this connection.")
    body = await read_body(request, MAX_FRAGMENT_BYTES)
    await link.trickle(_text(body))
    return Response(status_code=204)  # without an ETag: the ICE session is the same


async def hang_up(request: Request) -> Response:
    """Close a connection; the session goes on, within its grace time."""
    parts, session, link, caller = _found(request)
    caller.require("speak" if link.role is not ConnectionKind.PLAY else "view", "speak")
    await session.detach(link)
    return Response(status_code=200)


async def connect(
    parts: AppContext, caller: Caller, role: ConnectionKind, wanted: SessionRequest, sdp: str
) -> tuple[Session, WebRTCConnection, str]:
    """Put a peer connection on a session, which is made if none is named.

    Raises:
        ServerError: the session, the avatar or the offer is not what it should be, or a new
            session is one too many.
    """
    session, is_new = session_for(parts, caller, wanted)
    link = WebRTCConnection(session, role, may_speak="speak" in caller.scopes)
    try:
        answer = await link.open(sdp)
    except BaseException:
        if is_new:
            await parts.sessions.close(session)
        raise
    parts.metrics.connections.labels(role).inc()
    return session, link, answer


def session_for(parts: AppContext, caller: Caller, wanted: SessionRequest) -> tuple[Session, bool]:
    """Find or make the session; tells whether it is new.

    Raises:
        ServerError: it is not there, or not the caller's, or may not be made.
    """
    name = wanted.session or caller.session
    if name is not None:
        return parts.sessions.find(name, caller), False
    caller.require("sessions")
    cast = parts.studio.find(wanted.avatar, wanted.portrait)
    return parts.sessions.open(cast, caller, wanted.options, is_lasting=False), True


async def _exchange(request: Request, role: ConnectionKind, scope: str) -> Response:
    parts = AppContext(request)
    caller = parts.caller(scope)
    if content_type(request) != SDP:
        raise UnsupportedMediaTypeError(f"The content type must be {SDP}.", {"accept-post": SDP})
    sdp = _text(await read_body(request, MAX_SDP_BYTES))
    session, link, answer = await connect(parts, caller, role, wanted_of(request), sdp)
    headers = NO_STORE | {
        "location": _address(session, link),
        "etag": _etag(link),
        "accept-patch": FRAGMENT,
    }
    response = Response(answer, status_code=201, headers=headers, media_type=None)
    response.headers["content-type"] = SDP
    _add_links(response, parts)
    return response


def wanted_of(connection: Any) -> SessionRequest:
    """Read from the query which session is meant."""
    query = connection.query_params
    badge = flag_of(connection, "badge", True)
    return SessionRequest(
        query.get("session"), query.get("avatar"), None, ServedSessionOptions(badge=badge)
    )


def _found(request: Request) -> tuple[AppContext, Session, WebRTCConnection, Caller]:
    parts = AppContext(request)
    caller = parts.caller()
    session = parts.sessions.find(request.path_params["name"], caller)
    link = session.connections.find(request.path_params["connection"])
    if not isinstance(link, WebRTCConnection):
        raise NotFoundError("That connection is a WebSocket: close it as such.")
    return parts, session, link, caller


def _add_links(response: Response, parts: AppContext) -> None:
    for value in turn.as_links(turn.ice_servers(parts.settings)):
        response.headers.append("link", value)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise BadOfferError("The body must be SDP, which is UTF-8 text.") from None


def _address(session: Session, link: WebRTCConnection) -> str:
    return f"/v1/sessions/{session.id}/connections/{link.id}"


def _etag(link: WebRTCConnection) -> str:
    return f'"{link.id}"'
