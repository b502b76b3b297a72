"""The HTTP side: routes, limits, and the life of the one model."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from letstalk_rt.errors import AtCapacity
from letstalk_server import problems, rtc
from letstalk_server.problems import Problem
from letstalk_server.sessions import Sessions
from letstalk_server.settings import Settings
from letstalk_server.studio import Cast, Model, Studio, load_model

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_JSON_BYTES = 100_000
BODY_TIMEOUT_S = 60.0
MAX_UPLOADS = 4
"""Portraits received at once; further ones wait in the socket, not in memory."""

ENCODERS = 4
"""Threads of the loop's default executor; aiortc encodes there and nothing else may."""

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
}


def create_app(settings: Settings, load: Callable[[Settings], Model] = load_model) -> Starlette:
    """Make the ASGI application.

    Args:
        settings: see `Settings`.
        load: loads the model; called once, in the model thread, before the server is ready.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        asyncio.get_running_loop().set_default_executor(encoders)
        rtc.set_bitrates()
        studio = await Studio.open(settings, load)
        app.state.studio, app.state.sessions = studio, Sessions(studio, settings)
        try:
            yield
        finally:
            await app.state.sessions.aclose()
            studio.close()

    app = Starlette(
        lifespan=lifespan,
        routes=_routes(),
        exception_handlers={
            Problem: _on_problem,
            AtCapacity: _on_capacity,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )
    app.state.settings = settings
    app.state.uploading = asyncio.Semaphore(MAX_UPLOADS)
    app.add_middleware(_Guard)
    return app


def _routes() -> list[Route | Mount]:
    return [
        Route("/", _page),
        Route("/healthz", _health),
        Route("/v1/avatars", _avatars),
        Route("/v1/avatars/{name}/{picture}", _avatar_picture),
        Route("/v1/portraits", _upload, methods=["POST"]),
        Route("/v1/portraits/{name}/{picture}", _portrait_picture),
        Route("/v1/offer", _offer, methods=["POST"]),
        Route("/v1/sessions/{name}", _hang_up, methods=["DELETE"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]


async def _page(request: Request) -> Response:
    return FileResponse(STATIC / "index.html")


async def _health(request: Request) -> Response:
    places = request.app.state.settings.max_sessions
    return JSONResponse(
        {"status": "ok", "sessions": len(request.app.state.sessions), "max_sessions": places}
    )


async def _avatars(request: Request) -> Response:
    studio: Studio = request.app.state.studio
    avatars = [
        {"name": name, "label": label(name), **_pictures("avatars", name, cast)}
        for name, cast in studio.defaults.items()
    ]
    limit = request.app.state.settings.max_upload_bytes
    return JSONResponse({"avatars": avatars, "max_upload_bytes": limit})


async def _avatar_picture(request: Request) -> Response:
    name = request.path_params["name"]
    return _jpeg(request, request.app.state.studio.find(name, None))


async def _portrait_picture(request: Request) -> Response:
    name = request.path_params["name"]
    return _jpeg(request, request.app.state.studio.find(None, name))


async def _upload(request: Request) -> Response:
    """Take a picture file as the request body, with no form around it."""
    limit = request.app.state.settings.max_upload_bytes
    async with request.app.state.uploading:
        data = await read_body(request, limit)
        if not data:
            raise Problem(
                problems.NOT_AN_IMAGE, "The file is empty. Choose a JPEG, PNG or WebP picture."
            )
        name, cast = await request.app.state.studio.upload(data)
    body = {"portrait": name, "warnings": cast.portrait.warnings}
    return JSONResponse(body | _pictures("portraits", name, cast), status_code=201)


async def _offer(request: Request) -> Response:
    fields = await read_json(request)
    sdp = fields.get("sdp")
    if fields.get("type") != "offer" or not isinstance(sdp, str):
        raise Problem(
            problems.BAD_REQUEST, 'The body must have "type": "offer" and the SDP text in "sdp".'
        )
    names = [fields.get(key) for key in ("avatar", "portrait")]
    if not all(name is None or isinstance(name, str) for name in names):
        raise Problem(problems.BAD_REQUEST, '"avatar" and "portrait" must be text.')
    cast = request.app.state.studio.find(*names)
    session, answer = await request.app.state.sessions.open(cast, sdp)
    return JSONResponse({"session": session, "type": "answer", "sdp": answer}, status_code=201)


async def _hang_up(request: Request) -> Response:
    if not await request.app.state.sessions.close(request.path_params["name"]):
        raise Problem(problems.NOT_FOUND, "There is no such session, or it has ended.")
    return Response(status_code=204)


def label(name: str) -> str:
    """Make a name for people of the name of a default avatar."""
    return name.replace("_", " ").replace("-", " ").title()


async def read_body(request: Request, limit: int) -> bytes:
    """Receive a body of at most `limit` bytes.

    Raises:
        Problem: it is larger, or does not arrive in time.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                data += piece
                if len(data) > limit:
                    raise Problem(problems.TOO_LARGE, _too_large(limit), {"connection": "close"})
    except TimeoutError:
        raise Problem(
            problems.BAD_REQUEST, f"The upload took longer than {BODY_TIMEOUT_S:.0f} s."
        ) from None
    return bytes(data)


async def read_json(request: Request) -> dict[str, Any]:
    """Receive a JSON object.

    Raises:
        Problem: the body is something else.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json":
        raise Problem(problems.BAD_REQUEST, "The content type must be application/json.")
    try:
        fields = json.loads(await read_body(request, MAX_JSON_BYTES))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise Problem(problems.BAD_REQUEST, "The body must be a JSON object.")
    return fields


def _too_large(limit: int) -> str:
    size = f"{limit / 1e6:.0f} MB" if limit >= 1e6 else f"{limit / 1e3:.0f} kB"
    return f"At most {size} are accepted. Send something smaller."


def _pictures(kind: str, name: str, cast: Cast) -> dict[str, Any]:
    height, width = cast.portrait.canvas.shape[:2]
    return {
        "still": f"v1/{kind}/{name}/still.jpg",
        "thumbnail": f"v1/{kind}/{name}/thumbnail.jpg",
        "width": width,
        "height": height,
        "face": [round(value) for value in cast.portrait.box],
    }


def _jpeg(request: Request, cast: Cast) -> Response:
    pictures = {"still.jpg": cast.still, "thumbnail.jpg": cast.thumbnail}
    data = pictures.get(request.path_params["picture"])
    if data is None:
        raise Problem(problems.NOT_FOUND, "There is no such picture.")
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, no-cache"})


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _on_capacity(request: Request, error: Exception) -> Response:
    return Problem(problems.AT_CAPACITY, str(error), {"retry-after": "30"}).response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds = {404: problems.NOT_FOUND, 405: problems.WRONG_METHOD}
    kind = kinds.get(error.status_code, problems.BAD_REQUEST)
    return Problem(kind, "Check the address and the method of the request.").response()


async def _on_bug(request: Request, error: Exception) -> Response:
    return Problem(problems.INTERNAL, "Try again; the server's log has the cause.").response()


class _Guard:
    """Refuses requests that other web sites make, and sends the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        if is_foreign(Request(scope)):
            detail = "Open the page of this server itself."
            refusal = Problem(problems.FOREIGN_ORIGIN, detail).response()
            await refusal(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


_SECURITY = [(key.encode(), value.encode()) for key, value in SECURITY_HEADERS.items()]


def is_foreign(request: Request) -> bool:
    """Tell whether a browser made this request for a page of another site."""
    origin = request.headers.get("origin")
    if origin is None or request.method in ("GET", "HEAD"):
        return False
    return urlsplit(origin).netloc != request.headers.get("host")
