"""The HTTP interface without WebRTC: service, tokens, avatars, sessions."""

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from letstalk_rt import __version__
from letstalk_rt.errors import NotAnImageError
from letstalk_rt.portrait.watermark import STATEMENT
from letstalk_rt.types import FPS, SAMPLE_RATE
from letstalk_server import metrics
from letstalk_server.auth import MAX_SUBJECT_CHARS, MAX_TTL_S, SCOPES, Caller
from letstalk_server.errors import BadRequestError, ConsentMissingError, NotFoundError
from letstalk_server.http import openapi
from letstalk_server.http.request_reading import (
    AppContext,
    flag_of,
    json_answer,
    options_of,
    read_body,
    read_json,
    text_of,
)
from letstalk_server.session.avatar_service import MAX_LABEL_CHARS, AvatarEntry, AvatarService
from letstalk_server.session.session import Session
from letstalk_server.settings import Settings
from letstalk_server.webrtc import turn

CONSENT = (
    "I show myself in this picture, or the person in it has agreed to be shown as a talking avatar."
)
PICTURES = {"still.jpg": "image/jpeg", "thumbnail.jpg": "image/jpeg", "matte.png": "image/png"}
MIN_TTL_S = 10


def routes() -> list[BaseRoute]:
    """Give the routes."""
    return [
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/metrics", prometheus),
        Route("/openapi.json", describe),
        Route("/v1/config", config),
        Route("/v1/tokens", make_token, methods=["POST"]),
        Route("/v1/avatars", list_avatars),
        Route("/v1/avatars", upload_avatar, methods=["POST"]),
        Route("/v1/avatars/{name}", show_avatar),
        Route("/v1/avatars/{name}", delete_avatar, methods=["DELETE"]),
        Route("/v1/avatars/{name}/{picture}", show_picture),
        Route("/v1/sessions", open_session, methods=["POST"]),
        Route("/v1/sessions/{name}", show_session),
        Route("/v1/sessions/{name}", end_session, methods=["DELETE"]),
    ]


# Service


async def health(request: Request) -> Response:
    """Tell that the process lives."""
    sessions = AppContext(request).sessions
    places = sessions.admission.places
    return json_answer({"status": "ok", "sessions": len(sessions), "max_sessions": places})


async def ready(request: Request) -> Response:
    """Tell whether a session could be opened."""
    AppContext(request).sessions.check_room()
    return json_answer({"status": "ready"})


async def prometheus(request: Request) -> Response:
    """Give the metrics."""
    parts = AppContext(request)
    parts.caller("metrics")
    return Response(parts.metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})


async def describe(request: Request) -> Response:
    """Give the OpenAPI document."""
    return JSONResponse(openapi.document())


async def config(request: Request) -> Response:
    """Tell a page what it needs before anything else."""
    settings = AppContext(request).settings
    return json_answer(
        {
            "version": __version__,
            "auth": settings.auth_required,
            "disclosure": {
                "badge": settings.badge != "off",
                "badge_required": settings.badge == "required",
                "statement": STATEMENT,
            },
            "consent": CONSENT,
            "limits": _limits(settings),
            "video": {"fps": FPS, "size": settings.size},
        }
    )


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "max_upload_bytes": settings.max_upload_bytes,
        "max_upload_pixels": settings.max_upload_pixels,
        "max_session_s": settings.max_session_s,
        "max_idle_s": settings.max_idle_s,
        "grace_s": settings.grace_s,
        "heartbeat_s": settings.heartbeat_timeout_s,
        "max_message_bytes": settings.max_message_bytes,
        "max_speech_s": settings.max_speech_s,
    }


# Tokens


async def make_token(request: Request) -> Response:
    """Make a token for somebody, or renew the caller's own."""
    parts = AppContext(request)
    caller = parts.caller()
    fields = await read_json(request, may_be_empty=True)
    ttl_s = fields.get("ttl_s")
    if ttl_s is not None and (
        not isinstance(ttl_s, int) or isinstance(ttl_s, bool) or not MIN_TTL_S <= ttl_s <= MAX_TTL_S
    ):
        raise BadRequestError(f'"ttl_s" must be a whole number, {MIN_TTL_S} to {MAX_TTL_S}.')
    if not caller.is_operator:
        token, expires_s = parts.auth.renew(caller, ttl_s)
        return _token(token, expires_s, caller.subject, caller.scopes, caller.session)
    subject = text_of(fields, "subject", MAX_SUBJECT_CHARS) or caller.subject
    session = text_of(fields, "session")
    scopes = _scopes(fields)
    token, expires_s = parts.auth.mint(subject, scopes, ttl_s=ttl_s, session=session)
    return _token(token, expires_s, subject, scopes, session)


def _scopes(fields: dict[str, Any]) -> frozenset[str]:
    scopes = fields.get("scopes", ["sessions", "speak", "view", "avatars"])
    known = ", ".join(SCOPES)
    if not isinstance(scopes, list) or not all(scope in SCOPES for scope in scopes):
        raise BadRequestError(f'"scopes" must be a list of some of: {known}.')
    return frozenset(scopes)


def _token(
    token: str, expires_s: int, subject: str, scopes: frozenset[str], session: str | None
) -> Response:
    body = {
        "token": token,
        "expires_in_s": expires_s,
        "subject": subject,
        "scopes": sorted(scopes),
        "session": session,
    }
    return json_answer(body, 201)


# Avatars


async def list_avatars(request: Request) -> Response:
    """List the default avatars and the caller's own."""
    parts = AppContext(request)
    caller = parts.caller("avatars", "sessions", "view", "speak")
    avatars = [avatar_json(cast) for cast in parts.studio.catalogue(caller.subject)]
    return json_answer({"avatars": avatars, "max_upload_bytes": parts.settings.max_upload_bytes})


async def upload_avatar(request: Request) -> Response:
    """Take a picture file as the request body, with no form around it."""
    parts = AppContext(request)
    caller = parts.caller("avatars")
    if not flag_of(request, "consent", False):
        raise ConsentMissingError(
            f"Whoever uploads a portrait must confirm: {CONSENT} Send consent=true in the query."
        )
    request.app.state.upload_throttle.check(caller)
    label = request.query_params.get("label", "")
    if len(label) > MAX_LABEL_CHARS:
        raise BadRequestError(f"label may have {MAX_LABEL_CHARS} characters.")
    uploading: asyncio.Semaphore = request.app.state.uploading
    async with uploading:
        data = await read_body(request, parts.settings.max_upload_bytes)
        if not data:
            raise NotAnImageError("The file is empty. Choose a JPEG, PNG or WebP picture.")
        cast = await parts.studio.upload(data, caller.subject, label)
    parts.metrics.uploads.inc()
    return json_answer(avatar_json(cast), 201, {"location": f"/v1/avatars/{cast.id}"})


async def show_avatar(request: Request) -> Response:
    """Tell about one avatar."""
    parts = AppContext(request)
    parts.caller("avatars", "sessions", "view", "speak")
    return json_answer(avatar_json(parts.studio.find(request.path_params["name"])))


async def delete_avatar(request: Request) -> Response:
    """Forget an upload."""
    parts = AppContext(request)
    caller = parts.caller("avatars")
    parts.studio.delete(request.path_params["name"], caller.subject)
    return Response(status_code=204)


async def show_picture(request: Request) -> Response:
    """Give a picture of an avatar. No token: the id of an upload cannot be guessed."""
    studio: AvatarService = AppContext(request).studio
    cast = studio.find(request.path_params["name"])
    name = request.path_params["picture"]
    data = {"still.jpg": cast.still, "thumbnail.jpg": cast.thumbnail}.get(name)
    if name == "matte.png":
        data = await studio.matte(cast)
    if data is None:
        raise NotFoundError("There is no such picture.")
    headers = {"cache-control": "private, no-cache"}
    return Response(data, media_type=PICTURES[name], headers=headers)


def avatar_json(cast: AvatarEntry) -> dict[str, Any]:
    """Tell about an avatar."""
    height, width = cast.portrait.canvas.shape[:2]
    address = f"v1/avatars/{cast.id}"
    return {
        "id": cast.id,
        "name": cast.id,
        "portrait": None if cast.owner is None else cast.id,
        "label": cast.label,
        "default": cast.owner is None,
        "still": f"{address}/still.jpg",
        "thumbnail": f"{address}/thumbnail.jpg",
        "matte": f"{address}/matte.png",
        "width": width,
        "height": height,
        "face": [round(value) for value in cast.portrait.box],
        "warnings": list(cast.portrait.warnings),
    }


# Sessions


async def open_session(request: Request) -> Response:
    """Make a session; connections are then made on it."""
    parts = AppContext(request)
    caller = parts.caller("sessions")
    fields = await read_json(request, may_be_empty=True)
    cast = parts.studio.find(text_of(fields, "avatar"), text_of(fields, "portrait"))
    session = parts.sessions.open(cast, caller, options_of(fields.get("options")))
    answer = session_answer(parts, session, 201)
    answer.headers["location"] = f"/v1/sessions/{session.id}"
    return answer


async def show_session(request: Request) -> Response:
    """Tell about a session, with fresh credentials."""
    parts = AppContext(request)
    caller = parts.caller("sessions", "speak", "view")
    session = parts.sessions.find(request.path_params["name"], caller)
    return session_answer(parts, session, caller=caller)


async def end_session(request: Request) -> Response:
    """End a session."""
    parts = AppContext(request)
    caller = parts.caller("sessions", "speak")
    await parts.sessions.close(parts.sessions.find(request.path_params["name"], caller))
    return Response(status_code=204)


def session_answer(
    parts: AppContext, session: Session, status: int = 200, caller: Caller | None = None
) -> JSONResponse:
    """Tell about a session, with tokens and TURN credentials of its own."""
    settings = parts.settings
    servers = turn.ice_servers(settings)
    now = time.monotonic()
    may_speak = caller is None or "speak" in caller.scopes
    body = {
        "session": session.id,
        "avatar": session.cast.id,
        **_tokens(parts, session, may_speak=may_speak),
        "ice_servers": turn.as_json(servers),
        "urls": {kind: f"v1/{kind}?session={session.id}" for kind in _KINDS},
        "video": session.video,
        "audio": {"sample_rate": SAMPLE_RATE},
        "heartbeat_s": settings.heartbeat_timeout_s,
        "grace_s": settings.grace_s,
        "max_session_s": settings.max_session_s,
        "max_idle_s": settings.max_idle_s,
        "disclosure": session.disclosure,
        "warnings": list(session.cast.portrait.warnings),
        "connections": [
            {"id": link.id, "kind": link.role, "age_s": round(now - since_s, 1)}
            for link, since_s in session.connections.with_times()
        ],
        "age_s": round(now - session.lifetime.started_s, 1),
        "ends_in_s": round(session.lifetime.ends_in_s, 1),
    }
    answer = json_answer(body, status)
    for link in turn.as_links(servers):
        answer.headers.append("link", link)
    return answer


_KINDS = ("offer", "whep", "whip", "ws")


def _tokens(parts: AppContext, session: Session, *, may_speak: bool) -> dict[str, Any]:
    if not parts.auth.required:
        return {"token": None, "viewer_token": None, "expires_in_s": None}
    watching, expires_s = parts.auth.mint(session.owner, ["view"], session=session.id)
    speaking = watching
    if may_speak:
        speaking, _ = parts.auth.mint(session.owner, ["speak", "view"], session=session.id)
    return {"token": speaking, "viewer_token": watching, "expires_in_s": expires_s}
