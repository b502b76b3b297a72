"""Shared by the HTTP handlers: bounded reading of bodies and queries, authorisation, responses."""

import asyncio
import math
from typing import Any, cast

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse

from letstalk_rt.audio.speech_resampler import OUTPUT_RATES_HZ, check_output_rate
from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.protocol import DEFAULT_MOTION
from letstalk_rt.performance.json_fields import read_listening, read_mood
from letstalk_rt.performance.listening import Listening
from letstalk_rt.performance.moods import Style
from letstalk_rt.types import SAMPLE_RATE, MotionOptions
from letstalk_server.auth import Auth, Caller
from letstalk_server.errors import BadMessageError, BadRequestError
from letstalk_server.http.problem_details import BodyTooSlowError, ContentTooLargeError
from letstalk_server.metrics import ServerMetrics
from letstalk_server.protocol.client_messages import motion_of
from letstalk_server.protocol.json_text import load_object
from letstalk_server.session.avatar_service import AvatarService
from letstalk_server.session.connection import ServedSessionOptions
from letstalk_server.session.limits import RateLimiter
from letstalk_server.session.registry import SessionRegistry
from letstalk_server.settings import Settings

MAX_JSON_BYTES = 100_000
BODY_TIMEOUT_S = 60.0
STALL_S = 5.0
MIN_BYTES_PER_S = 10_000
"""Least rate of a body: it may be behind this by `STALL_S`."""

MAX_NAME_CHARS = 128
MAX_SEED = 2**31 - 1
NO_STORE = {"cache-control": "no-store"}


class AppContext:
    """Typed access to the state of the application.

    Args:
        request: a request or a WebSocket.
    """

    def __init__(self, request: HTTPConnection) -> None:
        self._request = request
        self._state = request.app.state

    @property
    def settings(self) -> Settings:
        """The server's settings."""
        return cast(Settings, self._state.settings)

    @property
    def avatar_service(self) -> AvatarService:
        """The loaded model and the portraits."""
        return cast(AvatarService, self._state.avatar_service)

    @property
    def sessions(self) -> SessionRegistry:
        """All sessions."""
        return cast(SessionRegistry, self._state.sessions)

    @property
    def connection_limiter(self) -> RateLimiter:
        """Limits how often one subject opens connections."""
        return cast(RateLimiter, self._state.connection_limiter)

    @property
    def auth(self) -> Auth:
        """Issues and checks tokens."""
        return cast(Auth, self._state.auth)

    @property
    def metrics(self) -> ServerMetrics:
        """The metrics of the server."""
        return cast(ServerMetrics, self._state.metrics)

    def authorize(self, *scopes: str) -> Caller:
        """Return the caller, who must have one of the scopes if any are given.

        Raises:
            AuthenticationError: The token is missing, invalid or expired.
            NotAllowedError: The token has none of the scopes.
        """
        caller = self.auth.authenticate(self._request.headers)
        if scopes:
            caller.require(*scopes)
        return caller


async def read_body(request: Request, limit: int) -> bytes:
    """Receive a body of at most `limit` bytes.

    Raises:
        ContentTooLargeError: The body is larger.
        BadRequestError: The body ends early.
        BodyTooSlowError: The body does not arrive in time, or too slowly.
    """
    data = bytearray()
    began_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(STALL_S) as waiting:
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise ContentTooLargeError(_too_large(limit), {"connection": "close"})
                allowed_s = min(BODY_TIMEOUT_S, STALL_S + len(data) / MIN_BYTES_PER_S)
                waiting.reschedule(began_s + allowed_s)
    except TimeoutError:
        raise BodyTooSlowError(
            f"A body must arrive within {BODY_TIMEOUT_S:.0f} s, at {MIN_BYTES_PER_S} bytes per "
            "second at least. Try a smaller file, or a faster line.",
            {"connection": "close"},
        ) from None
    except ClientDisconnect:
        raise BadRequestError("The body ended early.") from None
    return bytes(data)


async def read_json(request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Receive a JSON object.

    Raises:
        BadRequestError: The body is not a JSON object.
    """
    data = await read_body(request, MAX_JSON_BYTES)
    if may_be_empty and not data:
        return {}
    if content_type(request) != "application/json":
        raise BadRequestError("The content type must be application/json.")
    try:
        return load_object(data)
    except ValueError:
        raise BadRequestError("The body must be a JSON object.") from None


def content_type(request: Request) -> str:
    """Return the media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def text_field(fields: dict[str, Any], key: str, limit: int = MAX_NAME_CHARS) -> str | None:
    """Return an optional string of a JSON object.

    Raises:
        BadRequestError: The value is no string, or too long.
    """
    value = fields.get(key)
    if value is not None and (not isinstance(value, str) or len(value) > limit):
        raise BadRequestError(f'"{key}" must be a string of at most {limit} characters.')
    return value


def parse_options(fields: object) -> ServedSessionOptions:
    """Return the options of a session from a JSON value.

    Raises:
        BadRequestError: An option has the wrong type or is out of range.
    """
    if fields is None:
        return ServedSessionOptions()
    if not isinstance(fields, dict):
        raise BadRequestError('"options" must be an object.')
    badge, seed = fields.get("badge", True), fields.get("seed", 0)
    if not isinstance(badge, bool):
        raise BadRequestError('"badge" must be true or false.')
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise BadRequestError(f'"seed" must be an integer, 0 to {MAX_SEED}.')
    rate = fields.get("sample_rate", SAMPLE_RATE)
    try:
        check_output_rate(rate)
    except ConfigError:
        known = ", ".join(map(str, OUTPUT_RATES_HZ))
        raise BadRequestError(f'"sample_rate" must be one of {known}.') from None
    mood, strength, listening = _performance_of(fields)
    motion = _motion_of(fields.get("motion"))
    return ServedSessionOptions(badge, seed, motion, rate, mood, strength, listening)


def _performance_of(fields: dict[str, Any]) -> tuple[str | Style, float, Listening]:
    """Return mood, strength and listening of the options; a style takes the place of a mood."""
    default = {} if "style" in fields else {"mood": "neutral"}
    try:
        mood, strength = read_mood(default | fields, "mood_strength")
        return mood, strength, read_listening(fields, "listening")
    except ConfigError as error:
        raise BadRequestError(f"The options are wrong: {error}.") from None


def _motion_of(fields: object) -> MotionOptions:
    try:
        return DEFAULT_MOTION if fields is None else motion_of(fields)
    except BadMessageError as error:
        raise BadRequestError(f"In the options, {error.detail}.") from None


def query_flag(request: HTTPConnection, key: str, default: bool) -> bool:
    """Return a boolean of the query.

    Raises:
        BadRequestError: The value is neither `true` nor `false`.
    """
    known = {"true": True, "false": False}
    text = request.query_params.get(key, str(default).lower())
    if text not in known:
        raise BadRequestError(f"{key} in the query must be true or false.")
    return known[text]


def query_point(request: HTTPConnection, key: str) -> tuple[float, float] | None:
    """Return a point of the query, as `0.7,0.4`: shares of width and height; None without it.

    Raises:
        BadRequestError: It is not two numbers from 0 to 1.
    """
    text = request.query_params.get(key)
    if text is None:
        return None
    try:
        x, y = (float(share) for share in text.split(","))
    except ValueError:
        x = y = math.nan
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise BadRequestError(f"{key} in the query must be two shares from 0 to 1, such as 0.7,0.4")
    return x, y


def json_response(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return a JSON response that must not be cached."""
    return JSONResponse(body, status_code=status, headers=NO_STORE | (headers or {}))


def _too_large(limit: int) -> str:
    size = f"{limit / 1e6:.0f} MB" if limit >= 1e6 else f"{limit / 1e3:.0f} kB"
    return f"At most {size} are accepted."
