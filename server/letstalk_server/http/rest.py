"""The HTTP endpoints without WebRTC: service, tokens, avatars, sessions."""

import asyncio
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from letstalk_rt.errors import NotAnImageError
from letstalk_rt.performance import GESTURES, LISTENING, MOODS
from letstalk_rt.portrait.watermark import STATEMENT
from letstalk_rt.types import FPS
from letstalk_rt.version import __version__
from letstalk_server import metrics
from letstalk_server.auth import MAX_SUBJECT_CHARS, MAX_TTL_S, SCOPES, Caller
from letstalk_server.errors import (
    BadRequestError,
    ConsentMissingError,
    NotFoundError,
    UnknownAvatarError,
    UnknownSessionError,
)
from letstalk_server.http import openapi
from letstalk_server.http.request_reading import (
    AppContext,
    json_response,
    parse_options,
    query_flag,
    query_point,
    read_body,
    read_json,
    text_field,
)
from letstalk_server.session.avatar_service import MAX_LABEL_CHARS, AvatarEntry, AvatarService
from letstalk_server.session.limits import UploadPlaces
from letstalk_server.session.recorder import RecordingStore
from letstalk_server.session.session import Session
from letstalk_server.settings import Settings
from letstalk_server.webrtc import turn

CONSENT = "This is a photo of me, or the person in it has agreed to be shown as a talking avatar."
IMAGE_TYPES = {"still.jpg": "image/jpeg", "thumbnail.jpg": "image/jpeg", "matte.png": "image/png"}
MIN_TTL_S = 10


def routes() -> list[BaseRoute]:
    """Return the routes."""
    return [
        Route("/healthz", health),
        Route("/readyz", ready),
        Route("/metrics", prometheus),
        Route("/openapi.json", describe),
        Route("/v1/config", config),
        Route("/v1/tokens", create_token, methods=["POST"]),
        Route("/v1/avatars", list_avatars),
        Route("/v1/avatars", upload_avatar, methods=["POST"]),
        Route("/v1/avatars/{name}", show_avatar),
        Route("/v1/avatars/{name}", rename_avatar, methods=["PATCH"]),
        Route("/v1/avatars/{name}", delete_avatar, methods=["DELETE"]),
        Route("/v1/avatars/{name}/{picture}", show_image),
        Route("/v1/sessions", create_session, methods=["POST"]),
        Route("/v1/sessions/{name}", show_session),
        Route("/v1/sessions/{name}", delete_session, methods=["DELETE"]),
    ]


# Service


async def health(request: Request) -> Response:
    """Report that the process is alive."""
    sessions = AppContext(request).sessions
    capacity = sessions.admission.capacity
    running = len(sessions.running)
    return json_response({"status": "ok", "sessions": running, "max_sessions": capacity})


async def ready(request: Request) -> Response:
    """Report whether a session could be opened."""
    AppContext(request).sessions.check_capacity()
    return json_response({"status": "ready"})


async def prometheus(request: Request) -> Response:
    """Return the metrics."""
    context = AppContext(request)
    context.authorize("metrics").require_unbound()
    return Response(context.metrics.text(), headers={"content-type": metrics.CONTENT_TYPE})


async def describe(request: Request) -> Response:
    """Return the OpenAPI document."""
    return JSONResponse(openapi.document())


async def config(request: Request) -> Response:
    """Return what a page needs before it opens a session."""
    settings = AppContext(request).settings
    parts = request.app.state.conversations
    return json_response(
        {
            "version": __version__,
            "auth": settings.auth_required,
            "disclosure": {
                "badge": settings.badge != "off",
                "badge_required": settings.badge == "required",
                "statement": STATEMENT,
                "recorded": settings.record_folder is not None,
                "signed": settings.sign_cert is not None,
            },
            "consent": CONSENT,
            "speech": {
                "available": request.app.state.text_to_speech is not None,
                "max_chars": settings.max_say_chars,
                "voices": request.app.state.voices,
            },
            "performance": _performance(AppContext(request).avatar_service),
            "conversation": {"available": False} if parts is None else parts.as_json(),
            "limits": _limits(settings),
            "video": {"fps": FPS, "size": settings.size},
        }
    )


def _performance(avatar_service: AvatarService) -> dict[str, Any]:
    return {
        "available": avatar_service.is_directable,
        "moods": list(MOODS),
        "gestures": list(GESTURES),
        "listening": list(LISTENING),
    }


def _limits(settings: Settings) -> dict[str, Any]:
    return {
        "max_upload_bytes": settings.max_upload_bytes,
        "max_upload_pixels": settings.max_upload_pixels,
        "max_session_s": settings.session_limit_s,
        "max_idle_s": settings.idle_limit_s,
        "grace_s": settings.grace_s,
        "heartbeat_s": settings.heartbeat_timeout_s,
        "max_message_bytes": settings.max_message_bytes,
        "max_speech_s": settings.max_speech_s,
    }


# Tokens


async def create_token(request: Request) -> Response:
    """Issue a token to an operator's user, or renew the caller's own."""
    context = AppContext(request)
    caller = context.authorize()
    fields = await read_json(request, may_be_empty=True)
    ttl_s = fields.get("ttl_s")
    if ttl_s is not None and (
        not isinstance(ttl_s, int) or isinstance(ttl_s, bool) or not MIN_TTL_S <= ttl_s <= MAX_TTL_S
    ):
        raise BadRequestError(f'"ttl_s" must be an integer, {MIN_TTL_S} to {MAX_TTL_S}.')
    if not caller.is_operator:
        narrowed = _narrowed(context, caller, fields)
        token, expires_s = context.auth.renew(narrowed, ttl_s)
        return _token(token, expires_s, narrowed.subject, narrowed.scopes, narrowed.session)
    subject = text_field(fields, "subject", MAX_SUBJECT_CHARS) or caller.subject
    session = text_field(fields, "session")
    scopes = _scopes(fields)
    token, expires_s = context.auth.issue(subject, scopes, ttl_s=ttl_s, session=session)
    return _token(token, expires_s, subject, scopes, session)


def _narrowed(context: AppContext, caller: Caller, fields: dict[str, Any]) -> Caller:
    """Return the caller with the scopes and the session that a renewal asks for.

    Raises:
        NotAllowedError: The caller lacks a scope, or may not use the session.
        UnknownSessionError: There is no such session.
    """
    scopes = _scopes(fields) if "scopes" in fields else caller.scopes
    for scope in sorted(scopes):
        caller.require(scope)
    session = text_field(fields, "session")
    if session is not None:  # a token for one session is not asked later who owns that
        context.sessions.find(session, caller)
    return replace(caller, scopes=scopes, session=session or caller.session)


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
    return json_response(body, 201)


# Avatars


async def list_avatars(request: Request) -> Response:
    """List the default avatars and the caller's own."""
    context = AppContext(request)
    caller = context.authorize("avatars", "sessions", "view", "speak")
    avatars = list(_avatars_for(context, caller))
    return json_response(
        {"avatars": avatars, "max_upload_bytes": context.settings.max_upload_bytes}
    )


def _avatars_for(context: AppContext, caller: Caller) -> Iterator[dict[str, Any]]:
    """Yield what a caller may choose; one with a token for one session has no other uploads."""
    if caller.session is None:
        yield from map(avatar_json, context.avatar_service.list_avatars(caller.subject))
        return
    yield from map(avatar_json, context.avatar_service.defaults.values())
    with suppress(UnknownSessionError):
        shown = context.sessions.find(caller.session, caller).avatar_entry
        if shown.owner is not None:
            yield avatar_json(shown, is_hidden=_hides_id(shown, caller))


def _hides_id(entry: AvatarEntry, caller: Caller) -> bool:
    """Return whether a caller only watches, and is told no id of an upload."""
    return not (entry.may_be_used_by(caller) or "speak" in caller.scopes)


async def upload_avatar(request: Request) -> Response:
    """Upload a portrait: the body is the image file itself, not a form."""
    context = AppContext(request)
    caller = context.authorize("avatars")
    caller.require_unbound()
    if not query_flag(request, "consent", False):
        raise ConsentMissingError(
            f"Uploading a portrait requires consent: {CONSENT} Send consent=true in the query."
        )
    request.app.state.upload_limiter.check(caller)
    label = _checked_label(request.query_params.get("label", ""))
    face_at = query_point(request, "face")
    places: UploadPlaces = request.app.state.upload_places
    preparing: asyncio.Semaphore = request.app.state.preparing
    with places.take(caller):
        data = await read_body(request, context.settings.max_upload_bytes)
        if not data:
            raise NotAnImageError("The file is empty. Choose a JPEG, PNG or WebP image.")
        async with preparing:
            entry = await context.avatar_service.upload(data, caller.subject, label, face_at)
    context.metrics.uploads.inc()
    return json_response(avatar_json(entry), 201, {"location": f"/v1/avatars/{entry.id}"})


async def show_avatar(request: Request) -> Response:
    """Return one avatar."""
    context = AppContext(request)
    caller = context.authorize("avatars", "sessions", "view", "speak")
    name = request.path_params["name"]
    for avatar in _avatars_for(context, caller):
        if name in (avatar["id"], avatar["images"]):
            return json_response(avatar)
    return json_response(avatar_json(context.avatar_service.find(caller, name)))


async def rename_avatar(request: Request) -> Response:
    """Give an upload another name."""
    context = AppContext(request)
    caller = context.authorize("avatars")
    caller.require_unbound()
    label = _checked_label(text_field(await read_json(request), "label", MAX_LABEL_CHARS) or "")
    if not label:
        raise BadRequestError('"label" must be a name, not empty.')
    entry = context.avatar_service.rename(request.path_params["name"], caller, label)
    return json_response(avatar_json(entry))


def _checked_label(label: str) -> str:
    """Return the name of an upload without blanks around it.

    Raises:
        BadRequestError: It is too long, or has control characters, such as a line break.
    """
    if len(label) > MAX_LABEL_CHARS:
        raise BadRequestError(f"label may have {MAX_LABEL_CHARS} characters.")
    if any(unicodedata.category(character) == "Cc" for character in label):
        raise BadRequestError("label must be one line, without control characters.")
    return label.strip()


async def delete_avatar(request: Request) -> Response:
    """Delete an upload, and what was recorded of it."""
    context = AppContext(request)
    caller = context.authorize("avatars")
    caller.require_unbound()
    name = request.path_params["name"]
    recordings: RecordingStore | None = request.app.state.recordings
    try:
        context.avatar_service.delete(name, caller)
    except UnknownAvatarError:  # what was recorded outlives a portrait that the server dropped
        if recordings is None or not await asyncio.to_thread(recordings.may_delete, name, caller):
            raise
    if recordings is not None:
        await asyncio.to_thread(recordings.delete, name)
    return Response(status_code=204)


async def show_image(request: Request) -> Response:
    """Return an image of an avatar. It needs no token: the address of an upload's is a secret."""
    avatar_service: AvatarService = AppContext(request).avatar_service
    entry = avatar_service.find_shown(request.path_params["name"])
    name = request.path_params["picture"]
    data = {"still.jpg": entry.still, "thumbnail.jpg": entry.thumbnail}.get(name)
    if name == "matte.png":
        data = await avatar_service.matte(entry)
    if data is None:
        raise NotFoundError("There is no such image.")
    headers = {"cache-control": "private, no-cache"}
    return Response(data, media_type=IMAGE_TYPES[name], headers=headers)


def avatar_json(entry: AvatarEntry, *, is_hidden: bool = False) -> dict[str, Any]:
    """Return the JSON object of an avatar; a hidden id is replaced by that of the images."""
    height, width = entry.portrait.canvas.shape[:2]
    address = f"v1/avatars/{entry.shown_id}"
    name = entry.shown_id if is_hidden else entry.id
    return {
        "id": name,
        "name": name,
        "images": entry.shown_id,
        "portrait": None if entry.owner is None else name,
        "label": entry.label,
        "default": entry.owner is None,
        "still": f"{address}/still.jpg",
        "thumbnail": f"{address}/thumbnail.jpg",
        "matte": f"{address}/matte.png",
        "width": width,
        "height": height,
        "face": [round(value) for value in entry.portrait.box],
        "faces": [] if is_hidden else [[round(share, 4) for share in one] for one in entry.faces],
        "warnings": list(entry.portrait.warnings),
        "consent_at": None if entry.consent is None else entry.consent.at,
    }


# Sessions


async def create_session(request: Request) -> Response:
    """Open a session, to which clients then connect."""
    context = AppContext(request)
    caller = context.authorize("sessions")
    caller.require_unbound()
    fields = await read_json(request, may_be_empty=True)
    entry = context.avatar_service.find(
        caller, text_field(fields, "avatar"), text_field(fields, "portrait")
    )
    session = context.sessions.open(
        entry,
        caller,
        parse_options(fields.get("options")),
        ticket=text_field(fields, "ticket"),
    )
    answer = session_response(context, session, caller, status=201)
    answer.headers["location"] = f"/v1/sessions/{session.id}"
    return answer


async def show_session(request: Request) -> Response:
    """Return a session, with new credentials."""
    context = AppContext(request)
    caller = context.authorize("sessions", "speak", "view")
    session = context.sessions.find(request.path_params["name"], caller)
    return session_response(context, session, caller)


async def delete_session(request: Request) -> Response:
    """End a session."""
    context = AppContext(request)
    caller = context.authorize("sessions", "speak")
    await context.sessions.close(context.sessions.find(request.path_params["name"], caller))
    return Response(status_code=204)


def session_response(
    context: AppContext, session: Session, caller: Caller, *, status: int = 200
) -> JSONResponse:
    """Return the response of a session, with its tokens and TURN credentials."""
    settings = context.settings
    servers = turn.ice_servers(settings, caller)
    now, entry = time.monotonic(), session.avatar_entry
    body = {
        "session": session.id,
        "avatar": entry.shown_id if _hides_id(entry, caller) else entry.id,
        **_tokens(context, session, caller),
        "ice_servers": turn.as_json(servers),
        "urls": {kind: f"v1/{kind}?session={session.id}" for kind in _KINDS},
        "video": session.video,
        "audio": {"sample_rate": session.playout.sample_rate},
        "heartbeat_s": settings.heartbeat_timeout_s,
        "grace_s": settings.grace_s,
        "max_session_s": settings.session_limit_s,
        "max_idle_s": settings.idle_limit_s,
        "motion": asdict(session.motion),
        "performance": session.performance.as_json(),
        "disclosure": session.disclosure,
        "warnings": list(session.avatar_entry.portrait.warnings),
        "connections": [
            {"id": connection.id, "kind": connection.kind, "age_s": round(now - since_s, 1)}
            for connection, since_s in session.connections.with_times()
            if "speak" in caller.scopes or session.owns(caller)
        ],
        "age_s": round(now - session.lifetime.started_s, 1),
        "ends_in_s": _rounded(session.lifetime.ends_in_s),
    }
    answer = json_response(body, status)
    for link in turn.as_links(servers):
        answer.headers.append("link", link)
    return answer


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


_KINDS = ("offer", "whep", "whip", "ws")


def _tokens(context: AppContext, session: Session, caller: Caller) -> dict[str, Any]:
    """Return tokens for the session.

    They have none but the caller's scopes, and last no longer than the caller's can be renewed.
    One that allows what the caller's own token for this session does is a renewal of that.
    """
    if not context.auth.required:
        return {"token": None, "viewer_token": None, "expires_in_s": None}
    login_s = None if caller.is_operator else caller.login_s

    def token(*scopes: str) -> tuple[str | None, int | None]:
        held = caller.scopes.intersection(scopes)
        if not held:
            return None, None
        is_renewal = caller.session is not None and caller.scopes == held
        return context.auth.issue(
            session.owner,
            held,
            session=session.id,
            login_s=login_s,
            token_id=caller.token_id if is_renewal else None,
        )

    viewer, _ = token("view")
    speaker, expires_s = token("speak", "view")
    return {"token": speaker, "viewer_token": viewer, "expires_in_s": expires_s}
