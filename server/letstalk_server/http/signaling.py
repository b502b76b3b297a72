"""WebRTC signaling: JSON offers of the page, WHEP to watch and WHIP to speak.

WHIP is RFC 9725, WHEP is draft-ietf-wish-whep: raw SDP, one POST, all candidates in the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from letstalk_server.auth import Caller
from letstalk_server.errors import (
    AuthenticationError,
    BadOfferError,
    BadRequestError,
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
    json_response,
    parse_options,
    query_flag,
    read_body,
    read_json,
    text_field,
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
    """Return the routes."""
    path = "/v1/sessions/{name}/connections/{connection}"
    return [
        Route("/v1/offer", offer, methods=["POST"]),
        Route("/v1/whep", whep, methods=["POST"]),
        Route("/v1/whip", whip, methods=["POST"]),
        Route("/v1/whep", describe_methods, methods=["OPTIONS"]),
        Route("/v1/whip", describe_methods, methods=["OPTIONS"]),
        Route(path, trickle, methods=["PATCH"]),
        Route(path, close_connection, methods=["DELETE"]),
    ]


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a connection asks for: an existing session or a new one, and to send its camera."""

    session: str | None
    avatar: str | None = None
    portrait: str | None = None
    options: ServedSessionOptions = ServedSessionOptions()
    has_camera: bool = False


async def offer(request: Request) -> Response:
    """Connect a page: it sends a microphone and receives the avatar, with a data channel."""
    context = AppContext(request)
    caller = context.authorize("speak")
    fields = await read_json(request)
    sdp = fields.get("sdp")
    if fields.get("type") != "offer" or not isinstance(sdp, str):
        raise BadRequestError('The body must have "type": "offer" and the SDP text in "sdp".')
    session_request = SessionRequest(
        text_field(fields, "session") or request.query_params.get("session"),
        text_field(fields, "avatar"),
        text_field(fields, "portrait"),
        parse_options(fields.get("options")),
        has_camera=_camera_field(fields),
    )
    session, connection, answer = await connect(
        context, caller, ConnectionKind.TALK, session_request, sdp
    )
    body = {"type": "answer", "sdp": answer, "session": session.id, "connection": connection.id}
    return json_response(body, 201, {"location": _address(session, connection)})


async def whep(request: Request) -> Response:
    """Connect a player: WHEP."""
    return await _answer_offer(request, ConnectionKind.PLAY, "view")


async def whip(request: Request) -> Response:
    """Connect a microphone: WHIP."""
    return await _answer_offer(request, ConnectionKind.SPEAK, "speak")


async def describe_methods(request: Request) -> Response:
    """Answer `OPTIONS` of WHIP and WHEP; ICE servers need a token."""
    headers = {"allow": "POST, OPTIONS", "accept-post": SDP}
    answer = Response(status_code=204, headers=headers)
    context = AppContext(request)
    try:
        caller = context.authorize("view", "speak")
    except (AuthenticationError, NotAllowedError):
        return answer
    _add_links(answer, context, caller)
    return answer


async def trickle(request: Request) -> Response:
    """Add trickled candidates of a client, or restart ICE."""
    _, _, connection = _find_connection(request)
    if content_type(request) != FRAGMENT:
        raise UnsupportedMediaTypeError(f"The content type must be {FRAGMENT}.")
    condition = request.headers.get("if-match")
    if condition is None:
        raise PreconditionRequiredError("Send the connection's ETag in If-Match.")
    body = _decode_sdp(await read_body(request, MAX_FRAGMENT_BYTES))
    if condition.strip() == "*":
        answer = await connection.restart_ice(body)
        headers = NO_STORE | {"etag": connection.etag}
        return Response(answer, headers=headers, media_type=FRAGMENT)
    if condition.strip() != connection.etag:
        raise PreconditionFailedError("If-Match is not the ETag of this connection.")
    await connection.trickle(body)
    return Response(status_code=204)  # without ETag: the ICE session has not changed


async def close_connection(request: Request) -> Response:
    """Close a connection; the session continues for its grace period."""
    _, session, connection = _find_connection(request)
    await session.detach(connection)
    return Response(status_code=200)


async def connect(
    context: AppContext,
    caller: Caller,
    kind: ConnectionKind,
    session_request: SessionRequest,
    sdp: str,
) -> tuple[Session, WebRTCConnection, str]:
    """Open a WebRTC connection on the requested session, or on a new one.

    Raises:
        ServerError: The session, the avatar or the offer cannot be used, or the server is full.
    """
    session, is_new = session_for(context, caller, session_request)
    connection = WebRTCConnection(session, kind, caller, has_camera=session_request.has_camera)
    try:
        answer = await connection.open(sdp)
    except BaseException:
        if is_new:
            await context.sessions.close(session)
        raise
    context.metrics.connections.labels(kind).inc()
    return session, connection, answer


def session_for(
    context: AppContext, caller: Caller, session_request: SessionRequest
) -> tuple[Session, bool]:
    """Return the requested session, and whether it was opened for this request.

    Raises:
        ServerError: The session does not exist, is not the caller's, or cannot be opened; or the
            caller opens connections too often.
    """
    context.connection_limiter.check(caller)
    name = session_request.session or caller.session
    if name is not None:
        return context.sessions.find(name, caller), False
    caller.require("sessions")
    entry = context.avatar_service.find(caller, session_request.avatar, session_request.portrait)
    return context.sessions.open(entry, caller, session_request.options, is_lasting=False), True


async def _answer_offer(request: Request, kind: ConnectionKind, scope: str) -> Response:
    context = AppContext(request)
    caller = context.authorize(scope)
    if content_type(request) != SDP:
        raise UnsupportedMediaTypeError(f"The content type must be {SDP}.", {"accept-post": SDP})
    sdp = _decode_sdp(await read_body(request, MAX_SDP_BYTES))
    session, connection, answer = await connect(
        context, caller, kind, session_request_of(request), sdp
    )
    headers = NO_STORE | {
        "location": _address(session, connection),
        "etag": connection.etag,
        "accept-patch": FRAGMENT,
    }
    response = Response(answer, status_code=201, headers=headers, media_type=None)
    response.headers["content-type"] = SDP
    _add_links(response, context, caller)
    return response


def session_request_of(request: HTTPConnection) -> SessionRequest:
    """Return the session that the query asks for."""
    query = request.query_params
    badge = query_flag(request, "badge", True)
    return SessionRequest(
        query.get("session"),
        query.get("avatar"),
        None,
        ServedSessionOptions(badge=badge),
        has_camera=query_flag(request, "camera", False),
    )


def _camera_field(fields: Mapping[str, Any]) -> bool:
    value = fields.get("camera", False)
    if not isinstance(value, bool):
        raise BadRequestError("The field camera must be true or false.")
    return value


def _find_connection(request: Request) -> tuple[AppContext, Session, WebRTCConnection]:
    """Return the connection of the path, which the caller may change.

    Raises:
        ServerError: There is none, or another token opened it.
    """
    context = AppContext(request)
    caller = context.authorize()
    session = context.sessions.find(request.path_params["name"], caller)
    connection = session.connections.find(request.path_params["connection"])
    if not isinstance(connection, WebRTCConnection):
        raise NotFoundError("That connection is a WebSocket: close it on the WebSocket itself.")
    caller.require("speak" if connection.kind is not ConnectionKind.PLAY else "view", "speak")
    if not connection.may_be_changed_by(caller):
        raise NotAllowedError("Another token opened this connection. Use that, or its renewal.")
    return context, session, connection


def _add_links(response: Response, context: AppContext, caller: Caller) -> None:
    for value in turn.as_links(turn.ice_servers(context.settings, caller)):
        response.headers.append("link", value)


def _decode_sdp(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise BadOfferError("The body must be SDP in UTF-8.") from None


def _address(session: Session, connection: WebRTCConnection) -> str:
    return f"/v1/sessions/{session.id}/connections/{connection.id}"
