"""The WebSocket endpoint: messages and audio in; messages, frames and audio out."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, MutableMapping
from functools import partial
from typing import Any

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from letstalk_rt.types import FPS
from letstalk_server import auth
from letstalk_server.errors import (
    AtCapacityError,
    BadMessageError,
    BadRequestError,
    EngineFailedError,
    MessageTooLargeError,
    NotReadyError,
    ServerError,
    SessionOverError,
    TakenOverError,
)
from letstalk_server.http import middleware
from letstalk_server.http.binary_frames import FramePacker
from letstalk_server.http.problem_details import problem_details
from letstalk_server.http.request_reading import AppContext
from letstalk_server.http.signaling import session_for, session_request_of
from letstalk_server.protocol.client_messages import ConnectionConfig, config_from_query
from letstalk_server.session.connection import ConnectionKind, EndReason
from letstalk_server.session.message_handler import MessageHandler
from letstalk_server.session.playout import SLOT_S
from letstalk_server.session.session import Session

log = logging.getLogger(__name__)

MAX_TEXTS_WAITING = 256
MAX_AUDIO_WAITING = 2 * FPS
"""Audio messages queued for a slow client: one second of Opus."""

CLOSE_TIMEOUT_S = 2.0
REFUSED_PAUSE_S = 0.05
"""Pause after each message beyond the rate."""

MAX_CAUGHT_UP = 12
"""Slots whose audio is sent after a delay; the playout's history is not longer."""


class CloseCode:
    """Close codes; see `docs/protocol.md`."""

    NORMAL, REFUSED, TOO_LARGE, FAILED, STOPPING, BUSY = 1000, 1008, 1009, 1011, 1012, 1013
    TAKEN_OVER = 4000


_CODES = {
    MessageTooLargeError.code: CloseCode.TOO_LARGE,
    EngineFailedError.code: CloseCode.FAILED,
    NotReadyError.code: CloseCode.STOPPING,
    AtCapacityError.code: CloseCode.BUSY,
    TakenOverError.code: CloseCode.TAKEN_OVER,
    SessionOverError.code: CloseCode.NORMAL,
}
"""Close codes by error code; all others are `REFUSED`."""

_NO_CODE = 1005
_BROKEN = (1006, 1011)
"""Close codes of a WebSocket that was lost or did not answer pings."""


def routes() -> list[BaseRoute]:
    """Return the route."""
    return [WebSocketRoute("/v1/ws", serve_websocket)]


async def serve_websocket(websocket: WebSocket) -> None:
    """Serve one WebSocket from its handshake to its end."""
    try:
        connection, session, is_new = _open(websocket)
    except ServerError as error:
        await _reject(websocket, error)
        return
    try:
        await websocket.accept(auth.subprotocol(websocket.headers))
    except Exception:  # the client has gone already
        if is_new:
            session.end(EndReason.CLOSED)
        return
    AppContext(websocket).metrics.connections.labels(ConnectionKind.SOCKET).inc()
    await connection.serve()


def _open(websocket: WebSocket) -> tuple["WebSocketConnection", Session, bool]:
    context = AppContext(websocket)
    refusal = middleware.refusal_of(websocket, context.settings)
    if refusal is not None:
        raise refusal
    caller = context.authorize("view", "speak")
    try:
        config = config_from_query(websocket.query_params)
    except BadMessageError as error:
        raise BadRequestError(f"The query cannot be used: {error}.") from None
    session, is_new = session_for(context, caller, session_request_of(websocket))
    may_speak = "speak" in caller.scopes
    return WebSocketConnection(websocket, session, config, may_speak=may_speak), session, is_new


async def _reject(websocket: WebSocket, error: ServerError) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        if "websocket.http.response" in websocket.scope.get("extensions", {}):
            await websocket.send_denial_response(problem_details(error).response())
        else:
            await websocket.close(_CODES.get(error.code, CloseCode.REFUSED), error.code)


class WebSocketConnection:
    """A WebSocket connection of a session.

    Args:
        websocket: the WebSocket, accepted before `serve`.
        session: the session that it belongs to.
        config: configuration from the query.
        may_speak: whether its token has the scope `speak`.
    """

    def __init__(
        self, websocket: WebSocket, session: Session, config: ConnectionConfig, *, may_speak: bool
    ) -> None:
        self.id = "c" + secrets.token_urlsafe(12)
        self.kind = ConnectionKind.SOCKET
        self.video_bitrate = 0
        self.may_speak = may_speak
        self.config = config
        self._websocket = websocket
        self._session = session
        self._texts: deque[str] = deque()
        self._audio_messages: deque[bytes] = deque(maxlen=MAX_AUDIO_WAITING)
        self._frame: bytes | None = None
        self._changed = asyncio.Event()
        self._closing: asyncio.Future[ServerError | None] = (
            asyncio.get_running_loop().create_future()
        )
        self._closed = asyncio.Event()
        self._was_closed = False
        self._sending_since_s: float | None = None

    async def serve(self) -> None:
        """Exchange messages until the client or the session ends."""
        session = self._session
        resumed = session.is_resumed
        try:
            await session.attach(self, MessageHandler(session, self).handle)
        except ServerError as error:
            await self._close_socket(error)
            return
        session.send_ready(self, resumed)
        tasks = [
            asyncio.create_task(work, name=f"session-socket-{name}")
            for name, work in (
                ("receive", self._receive()),
                ("write", self._write()),
                ("frames", self._send_frames()),
            )
        ]
        waiting: set[asyncio.Future[Any]] = {*tasks, self._closing}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._close_socket(self._closing.result() if self._closing.done() else None)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._closed.set()
            _log_failures(tasks)
            await session.detach(self, is_lost=self._is_broken)

    def send(self, text: str) -> None:
        """Queue a message; the oldest are dropped if the client does not read."""
        if len(self._texts) >= MAX_TEXTS_WAITING:
            self._texts.popleft()
        self._texts.append(text)
        self._changed.set()

    def is_lost(self, now_s: float) -> bool:
        """Return whether the client has not taken a message for too long.

        Of a client that is sent little, uvicorn's pings tell that it has gone. Of one that is sent
        frames they do not: uvicorn then waits until its buffer is sent, which may never be.
        """
        since_s, limit_s = self._sending_since_s, self._session.settings.heartbeat_timeout_s
        return since_s is not None and now_s - since_s > limit_s

    async def aclose(self, error: ServerError | None = None) -> None:
        """Close the WebSocket. Safe to call twice."""
        if not self._closing.done():
            self._closing.set_result(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._closed.wait()

    @property
    def _is_broken(self) -> bool:
        """Whether the connection was lost instead of closed."""
        return not self._closing.done() and not self._was_closed

    async def _receive(self) -> None:
        """Handle messages; it must not wait, or pongs and interrupts would wait behind audio.

        Only a client that sends too many waits, by TCP in the end: refusing a message costs time,
        and while there are more, reading them would never let anything else run.
        """
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                self._was_closed = not _is_loss(message)
                return
            data = message.get("text")
            if not self._session.connections.receive(
                self, message.get("bytes") or b"" if data is None else data
            ):
                await asyncio.sleep(REFUSED_PAUSE_S)

    async def _write(self) -> None:
        """Send what is queued: messages first, then the newest frame, then audio."""
        while True:
            while self._texts:
                await self._timed(self._websocket.send_text(self._texts.popleft()))
            if self._frame is not None:
                frame, self._frame = self._frame, None
                await self._timed(self._websocket.send_bytes(frame))
            elif self._audio_messages:
                await self._timed(self._websocket.send_bytes(self._audio_messages.popleft()))
            else:
                self._changed.clear()
                await self._changed.wait()

    async def _timed(self, sending: Awaitable[None]) -> None:
        """Wait until a message is sent; `is_lost` looks at how long it takes."""
        self._sending_since_s = time.monotonic()
        await sending
        self._sending_since_s = None

    async def _send_frames(self) -> None:
        """Pack each slot when it is due, if frames are configured."""
        playout = self._session.playout
        number, packer = int(playout.now() / SLOT_S), None
        while True:
            await playout.wait_until(number * SLOT_S)
            frames = self.config.frames
            if frames.format == "none":
                packer = None
                number = int(playout.now() / SLOT_S) + 1
                continue
            if packer is None or packer.frames_format != frames:
                packer = FramePacker(
                    frames,
                    has_badge=self._session.has_badge,
                    sample_rate=playout.sample_rate,
                )
            await self._pack(packer, number)
            current = int(playout.now() / SLOT_S)
            number = max(number + 1, current - MAX_CAUGHT_UP)

    async def _pack(self, packer: FramePacker, number: int) -> None:
        slot = self._session.playout.read_slot(number)
        is_due = (number * packer.frames_format.max_fps) % FPS < packer.frames_format.max_fps
        if is_due:
            call = partial(packer.frame, slot)
            self._frame = await asyncio.get_running_loop().run_in_executor(None, call)
        self._audio_messages.extend(packer.audio_messages(slot))
        self._changed.set()

    async def _close_socket(self, error: ServerError | None) -> None:
        if self._websocket.client_state is not WebSocketState.CONNECTED:
            return
        with contextlib.suppress(Exception):  # the client may disconnect meanwhile
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._texts:
                    await self._websocket.send_text(self._texts.popleft())
                if error is None:
                    await self._websocket.close(CloseCode.NORMAL)
                else:
                    await self._websocket.close(
                        _CODES.get(error.code, CloseCode.REFUSED), error.code
                    )


def _is_loss(message: MutableMapping[str, Any]) -> bool:
    """Return whether a WebSocket ended without being closed.

    uvicorn reports a lost one as 1005, which is also the code of a close frame without a code; but
    only what a close frame said has a reason, if only an empty one.
    """
    code = message.get("code", _NO_CODE)
    return code in _BROKEN or (code == _NO_CODE and "reason" not in message)


def _log_failures(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, WebSocketDisconnect | OSError):
            log.warning("a WebSocket connection failed (%s)", type(error).__name__)
