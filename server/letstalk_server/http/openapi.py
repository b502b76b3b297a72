"""The OpenAPI document of the HTTP interface, built from the limits that the handlers check."""

from dataclasses import fields
from functools import lru_cache
from typing import Any

from letstalk_rt.audio.speech_resampler import OUTPUT_RATES_HZ
from letstalk_rt.performance.gestures import GESTURES, MAX_AMOUNT, MIN_AMOUNT
from letstalk_rt.performance.json_fields import MAX_AT_MS
from letstalk_rt.performance.listening import LISTENING
from letstalk_rt.performance.moods import MAX_STYLE, MOODS, Style
from letstalk_rt.version import __version__
from letstalk_server.auth import MAX_SUBJECT_CHARS, MAX_TTL_S, SCOPES
from letstalk_server.http.problem_details import PROBLEM_TYPES
from letstalk_server.http.queueing import MAX_KNOWN
from letstalk_server.http.request_reading import MAX_NAME_CHARS, MAX_SEED
from letstalk_server.session.avatar_service import MAX_LABEL_CHARS

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
WHOLE: Json = {"type": "integer"}
FLAG: Json = {"type": "boolean"}
STRENGTH: Json = {"type": "number", "minimum": 0, "maximum": 1}
NAME: Json = {"type": "string", "maxLength": MAX_NAME_CHARS}


@lru_cache(maxsize=1)
def document() -> Json:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "letstalk_rt",
            "version": __version__,
            "description": "One portrait and live speech in, live video of that person out. "
            "Messages of the WebSocket and the data channel are described in docs/protocol.md; "
            "those of the performance are among the schemas.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": _service() | _avatars() | _sessions() | _webrtc(),
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            },
            "schemas": _schemas(),
            "responses": {
                "Problem": {
                    "description": "What was wrong, as RFC 9457 describes",
                    "content": {"application/problem+json": {"schema": _ref("Problem")}},
                }
            },
        },
    }


def _service() -> Json:
    health = _object(status=TEXT, sessions=WHOLE, max_sessions=WHOLE)
    token = _object(
        subject={"type": "string", "maxLength": MAX_SUBJECT_CHARS},
        scopes={"type": "array", "items": {"enum": list(SCOPES)}},
        ttl_s={"type": "integer", "minimum": 10, "maximum": MAX_TTL_S},
        session=NAME,
        required=(),
    )
    return {
        "/healthz": {"get": _op("The process lives", 200, health, is_open=True)},
        "/readyz": {"get": _op("A session could be opened", 200, _object(status=TEXT), True)},
        "/metrics": {"get": _op("Metrics for Prometheus", 200, TEXT, media="text/plain")},
        "/v1/config": {
            "get": _op("What a page needs before anything else", 200, _ref("Config"), True)
        },
        "/v1/tokens": {
            "post": _op("Make or renew a token", 201, _ref("Token"), body=_json_body(token))
        },
    }


def _avatars() -> Json:
    listing = _object(avatars=_list(_ref("Avatar")), max_upload_bytes=WHOLE)
    consent = _query("consent", {"const": "true"}, required=True)
    label = _query("label", {"type": "string", "maxLength": MAX_LABEL_CHARS})
    face = _query("face", {"type": "string", "pattern": r"^[0-9.]+,[0-9.]+$"})
    name = _object(label={"type": "string", "minLength": 1, "maxLength": MAX_LABEL_CHARS})
    picture = {"type": "string", "enum": ["still.jpg", "thumbnail.jpg", "matte.png"]}
    file = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    shown = _op("A picture of an avatar", 200, None, is_open=True)
    shown["responses"]["200"]["content"] = {
        kind: {"schema": {}} for kind in ("image/jpeg", "image/png")
    }
    return {
        "/v1/avatars": {
            "get": _op("The default avatars and one's own", 200, listing),
            "post": _op(
                "Upload a portrait",
                201,
                _ref("Avatar"),
                body=file,
                parameters=[consent, label, face],
            ),
        },
        "/v1/avatars/{name}": {
            "parameters": [_path("name")],
            "get": _op("One avatar", 200, _ref("Avatar")),
            "patch": _op(
                "Rename an upload", 200, _ref("Avatar"), body=_json_body(name, required=True)
            ),
            "delete": _op("Forget an upload", 204, None),
        },
        "/v1/avatars/{name}/{picture}": {
            "parameters": [_path("name"), _path("picture", picture)],
            "get": shown,
        },
    }


def _sessions() -> Json:
    request = _object(avatar=NAME, portrait=NAME, options=_ref("Options"), ticket=NAME, required=())
    waiting = _object(ticket=NAME, sessions=_list(NAME) | {"maxItems": MAX_KNOWN}, required=())
    return {
        "/v1/queue": {
            "post": _op(
                "Wait for a place: answered when there is news",
                200,
                _standing(),
                body=_json_body(waiting),
            )
        },
        "/v1/sessions": {
            "post": _op("Make a session", 201, _ref("Session"), body=_json_body(request))
        },
        "/v1/sessions/{name}": {
            "parameters": [_path("name")],
            "get": _op("A session, with fresh credentials", 200, _ref("Session")),
            "delete": _op("End a session", 204, None),
        },
        "/v1/sessions/{name}/connections/{connection}": {
            "parameters": [_path("name"), _path("connection")],
            "patch": _op(
                "Trickle ICE candidates, or restart ICE (200)",
                204,
                None,
                parameters=[_header("If-Match")],
                body={
                    "required": True,
                    "content": {"application/trickle-ice-sdpfrag": {"schema": TEXT}},
                },
            ),
            "delete": _op("Close a connection", 200, None),
        },
    }


def _webrtc() -> Json:
    offer = _object(
        type={"const": "offer"},
        sdp=TEXT,
        session=NAME,
        avatar=NAME,
        portrait=NAME,
        options=_ref("Options"),
        camera=FLAG,
        required=("type", "sdp"),
    )
    answer = _object(type={"const": "answer"}, sdp=TEXT, session=TEXT, connection=TEXT)
    sdp = {"required": True, "content": {"application/sdp": {"schema": TEXT}}}
    query = [_query("session", NAME), _query("avatar", NAME), _query("badge", {"enum": [
        "true", "false"]})]  # fmt: skip

    camera = _query("camera", {"enum": ["true", "false"]})

    def exchange(words: str, *more: Json) -> Json:
        given = [*query, *more]
        return {
            "post": _op(words, 201, TEXT, media="application/sdp", body=sdp, parameters=given),
            "options": _op("What clients may do", 204, None, is_open=True),
        }

    return {
        "/v1/offer": {
            "post": _op("Connect a browser", 201, answer, body=_json_body(offer, required=True))
        },
        "/v1/whep": exchange("Watch: WHEP"),
        "/v1/whip": exchange("Speak: WHIP", camera),
    }


def _schemas() -> Json:
    return {
        "Problem": _object(
            type=TEXT,
            title=TEXT,
            status=WHOLE,
            code={"enum": sorted(PROBLEM_TYPES)},
            detail=TEXT,
        ),
        "Config": _object(
            version=TEXT,
            auth=FLAG,
            disclosure=_object(
                badge=FLAG, badge_required=FLAG, statement=TEXT, recorded=FLAG, signed=FLAG
            ),
            consent=TEXT,
            speech=_object(available=FLAG, max_chars=WHOLE, voices=_list(TEXT)),
            performance=_object(
                available=FLAG, moods=_list(TEXT), gestures=_list(TEXT), listening=_list(TEXT)
            ),
            conversation={"type": "object", "properties": {"available": FLAG}},
            limits={"type": "object", "additionalProperties": NUMBER},
            video=_object(fps=WHOLE, size=WHOLE),
        ),
        "Token": _object(
            token=TEXT,
            expires_in_s=WHOLE,
            subject=TEXT,
            scopes=_list(TEXT),
            session=_or_null(TEXT),
        ),
        "Avatar": _object(
            id=TEXT,
            name=TEXT,
            images=TEXT,
            portrait=_or_null(TEXT),
            label=TEXT,
            default=FLAG,
            still=TEXT,
            thumbnail=TEXT,
            matte=TEXT,
            width=WHOLE,
            height=WHOLE,
            face=_list(NUMBER),
            faces=_list(_list(NUMBER)),
            warnings=_list(TEXT),
            consent_at=_or_null(TEXT),
        ),
        "Options": _object(
            badge=FLAG,
            seed={"type": "integer", "minimum": 0, "maximum": MAX_SEED},
            motion=_motion() | {"required": []},
            sample_rate={"enum": list(OUTPUT_RATES_HZ)},
            mood={"enum": list(MOODS)},
            style=_style(),
            mood_strength=STRENGTH,
            listening={"enum": list(LISTENING)},
            required=(),
        ),
        **_messages(),
        "Session": _session(),
    }


def _messages() -> Json:
    """Return the messages of clients that direct the performance."""
    return {
        "PerformanceMood": _object(
            type={"const": "performance.mood"},
            mood={"enum": list(MOODS)},
            style=_style(),
            strength=STRENGTH,
            required=("type",),
        )
        | {"oneOf": [{"required": ["mood"]}, {"required": ["style"]}]},
        "PerformanceGesture": _object(
            type={"const": "performance.gesture"},
            gesture={"enum": list(GESTURES)},
            amount={"type": "number", "minimum": MIN_AMOUNT, "maximum": MAX_AMOUNT},
            at_ms={"type": "number", "minimum": 0, "maximum": MAX_AT_MS},
            required=("type", "gesture"),
        ),
        "PerformanceListening": _object(
            type={"const": "performance.listening"}, mode={"enum": list(LISTENING)}
        ),
    }


def _style() -> Json:
    number = {"type": "number", "minimum": -MAX_STYLE, "maximum": MAX_STYLE}
    return _object(required=(), **{field.name: number for field in fields(Style)}) | {
        "additionalProperties": False
    }


def _performance() -> Json:
    """Return the settings of a session: a mood or a style, its strength, and listening."""
    return _object(
        mood=TEXT, style=_style(), strength=STRENGTH, listening=TEXT,
        required=("strength", "listening"),
    )  # fmt: skip


def _motion() -> Json:
    return _object(
        expressiveness={"type": "number", "minimum": 0, "maximum": 2},
        head_motion=FLAG,
        blinks_per_min={"type": "number", "minimum": 0, "maximum": 60},
        gaze_at_camera=FLAG,
    )


def _standing() -> Json:
    return _object(
        ticket=_or_null(TEXT),
        position=_or_null(WHOLE),
        ready=FLAG,
        places=WHOLE,
        taken=WHOLE,
        own=_list(_object(session=TEXT, avatar=TEXT, kinds=_list(TEXT))),
    )


def _session() -> Json:
    return _object(
        session=TEXT,
        avatar=TEXT,
        token=_or_null(TEXT),
        viewer_token=_or_null(TEXT),
        expires_in_s=_or_null(WHOLE),
        ice_servers=_list(
            _object(urls=_list(TEXT), username=TEXT, credential=TEXT, required=("urls",))
        ),
        urls={"type": "object", "additionalProperties": TEXT},
        video=_object(width=WHOLE, height=WHOLE, fps=WHOLE),
        audio=_object(sample_rate=WHOLE),
        heartbeat_s=NUMBER,
        grace_s=NUMBER,
        max_session_s=NUMBER,
        max_idle_s=NUMBER,
        motion=_motion(),
        performance=_performance(),
        disclosure=_object(badge=FLAG, statement=TEXT, recorded=FLAG, signed=FLAG),
        warnings=_list(TEXT),
        connections=_list(_object(id=TEXT, kind=TEXT, age_s=NUMBER)),
        age_s=NUMBER,
        ends_in_s=_or_null(NUMBER),
    )


def _op(
    summary: str,
    status: int,
    schema: Json | None,
    is_open: bool = False,
    *,
    media: str = "application/json",
    body: Json | None = None,
    parameters: list[Json] | None = None,
) -> Json:
    done: Json = {"description": summary}
    if schema is not None:
        done["content"] = {media: {"schema": schema}}
    operation: Json = {
        "summary": summary,
        "responses": {str(status): done, "default": {"$ref": "#/components/responses/Problem"}},
    }
    if body is not None:
        operation["requestBody"] = body
    if parameters:
        operation["parameters"] = parameters
    if is_open:
        operation["security"] = []
    return operation


def _object(*, required: tuple[str, ...] | None = None, **properties: Json) -> Json:
    names = list(properties if required is None else required)
    made: Json = {"type": "object", "properties": properties}
    return made | ({"required": names} if names else {})


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json_body(schema: Json, *, required: bool = False) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _path(name: str, schema: Json | None = None) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema or NAME}


def _query(name: str, schema: Json, *, required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _header(name: str) -> Json:
    return {"name": name, "in": "header", "required": True, "schema": TEXT}
