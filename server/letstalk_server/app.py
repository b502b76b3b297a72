"""The ASGI application: routes, startup and shutdown, errors as problem documents."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from letstalk_rt.errors import PortraitError
from letstalk_rt.speech.voices import list_voices
from letstalk_rt.threads import started_pool
from letstalk_server.auth import Auth
from letstalk_server.cluster.agent_check import LOADING, AgentCheck, agent_state
from letstalk_server.errors import BadRequestError, NotFoundError, ServerError
from letstalk_server.http import pages, queueing, rest, signaling, websocket
from letstalk_server.http.middleware import SecurityMiddleware
from letstalk_server.http.problem_details import (
    InternalError,
    MethodNotAllowedError,
    problem_details,
)
from letstalk_server.memory import return_memory
from letstalk_server.metrics import ServerMetrics
from letstalk_server.session.avatar_service import AvatarService, LoadedModel, load_model
from letstalk_server.session.conversation_parts import ConversationParts
from letstalk_server.session.limits import RateLimiter, UploadPlaces
from letstalk_server.session.recorder import RecordingStore
from letstalk_server.session.registry import SessionRegistry
from letstalk_server.session.text_speech import open_engine
from letstalk_server.settings import Settings
from letstalk_server.webrtc.aiortc_transport import AiortcTransport
from letstalk_server.webrtc.public_address import PublicAddress
from letstalk_server.webrtc.remote_candidates import CandidatePolicy

log = logging.getLogger(__name__)

MAX_UPLOADS = 16
"""Uploads at once, each of at most `max_upload_bytes` in memory."""

MAX_PREPARED = 4
"""Uploads that are prepared at once; others wait with their whole body."""

UPLOADS_PER_S = 0.5
"""Sustained rate at which one subject may upload portraits."""

CONNECTIONS_PER_S = 2.0
"""Sustained rate at which one subject may open connections; more where a session takes more."""

QUEUE_ASKS_PER_S = 2.0
"""Sustained rate at which one subject may ask how it stands in the queue for a place."""

THREADS = 4
"""Threads of the event loop's default executor, which encodes frames for WebSockets."""


def create_app(
    settings: Settings, load: Callable[[Settings], LoadedModel] = load_model
) -> Starlette:
    """Return the ASGI application.

    Args:
        settings: settings of the server.
        load: loads the model; called once, in a thread, before the server is ready.

    Raises:
        LetsTalkError: The speech engine or the public address of the settings cannot be used.
    """

    named = settings.public_address
    public_address = None if named is None else PublicAddress.find(named)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        threads = started_pool(THREADS, "letstalk")
        asyncio.get_running_loop().set_default_executor(threads)
        metrics: ServerMetrics = app.state.metrics
        avatar_service = await AvatarService.open(settings, load, metrics.record_step)
        transport = AiortcTransport(
            settings.ice_servers,
            settings.bitrates,
            prefer=settings.codec,
            public_address=public_address,
            policy=CandidatePolicy.of(settings),
        )
        sessions = SessionRegistry(
            avatar_service,
            transport,
            settings,
            metrics.record_session_end,
            app.state.text_to_speech,
            app.state.recordings,
            app.state.conversations,
        )
        app.state.avatar_service, app.state.sessions = avatar_service, sessions
        app.state.agent_check.state = lambda: agent_state(sessions)
        _register_gauges(metrics, avatar_service, sessions)
        tidying = asyncio.create_task(return_memory(sessions), name="memory")
        try:
            yield
        finally:
            tidying.cancel()
            await sessions.aclose()
            transport.close()
            await avatar_service.aclose()

    app = Starlette(
        lifespan=lifespan,
        routes=_routes(),
        exception_handlers={
            ServerError: _on_error,
            PortraitError: _on_error,
            HTTPException: _on_http_error,
            Exception: _on_unexpected_error,
        },
    )
    app.state.settings = settings
    app.state.text_to_speech = engine = open_engine(settings)
    app.state.voices = [] if engine is None else list_voices(engine)
    app.state.recordings = RecordingStore.open(settings)
    app.state.conversations = ConversationParts.open(settings, engine)
    app.state.auth = Auth(settings)
    app.state.metrics = ServerMetrics()
    app.state.agent_check = AgentCheck(lambda: LOADING)
    app.state.upload_places = UploadPlaces(MAX_UPLOADS)
    app.state.preparing = asyncio.Semaphore(MAX_PREPARED)
    app.state.queue_limiter = RateLimiter(QUEUE_ASKS_PER_S)
    app.state.upload_limiter = RateLimiter(UPLOADS_PER_S)
    app.state.connection_limiter = RateLimiter(
        max(CONNECTIONS_PER_S, settings.max_connections / RateLimiter.BURST_S)
    )
    app.add_middleware(SecurityMiddleware, settings=settings)
    return app


def _routes() -> list[BaseRoute]:
    endpoints = [
        *rest.routes(),
        *queueing.routes(),
        *signaling.routes(),
        *websocket.routes(),
    ]
    return [*endpoints, *_method_not_allowed_routes(endpoints), *pages.routes()]


def _method_not_allowed_routes(routes: list[BaseRoute]) -> list[BaseRoute]:
    """Return a route for each path that refuses all other methods."""
    methods: dict[str, set[str]] = {}
    for route in routes:
        if isinstance(route, Route):
            methods.setdefault(route.path, set()).update(route.methods or ())
    return [
        Route(path, _method_not_allowed(names), methods=_ALL_METHODS)
        for path, names in methods.items()
    ]


_ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"]


def _method_not_allowed(names: set[str]) -> Callable[[Request], Response]:
    allowed = ", ".join(sorted(names))

    async def refuse(request: Request) -> Response:
        return _problem_response(
            request,
            MethodNotAllowedError(f"This address takes {allowed}.", {"allow": allowed}),
        )

    return refuse  # type: ignore[return-value]  # Starlette takes coroutine functions


def _register_gauges(
    metrics: ServerMetrics, avatar_service: AvatarService, sessions: SessionRegistry
) -> None:
    began_s = time.monotonic()
    metrics.register_model(lambda: avatar_service.model_health)
    metrics.register_gauges(
        lambda: sessions,
        {
            "places": ("Sessions that fit", lambda: float(sessions.admission.capacity)),
            "model_up": ("Whether the model runs", lambda: float(avatar_service.is_model_running)),
            "model_busy_ratio": (
                "Share of its time the model works",
                avatar_service.worker.busy_ratio,
            ),
            "model_step_share": (
                "Share of the model's time that one session takes",
                lambda: avatar_service.step_cost.share,
            ),
            "tasks": ("Tasks of the event loop", lambda: float(len(asyncio.all_tasks()))),
            "uptime_seconds": ("Since the start", lambda: time.monotonic() - began_s),
        },
    )


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServerError | PortraitError), type(error)
    return _problem_response(request, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known: dict[int, type[ServerError]] = {404: NotFoundError, 405: MethodNotAllowedError}
    refusal = known.get(error.status_code, BadRequestError)
    return _problem_response(request, refusal("Check the address and the method of the request."))


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    log.error("a request failed (%s)", type(error).__name__)
    return _problem_response(request, InternalError("Try again; the server's log has the cause."))


def _problem_response(request: Request, error: ServerError | PortraitError) -> Response:
    problem = problem_details(error)
    request.app.state.metrics.problems.labels(problem.problem_type.code).inc()
    return problem.response()
