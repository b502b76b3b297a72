"""The server process: its one line when it is ready, its agent check, and how it stops."""

import asyncio
import gc
import signal
import sys
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from letstalk_rt.errors import ConfigError
from letstalk_server.auth import SCOPES, Auth
from letstalk_server.cluster.draining import drain
from letstalk_server.settings import Settings

PAGE_SCOPES = ("sessions", "speak", "view", "avatars")
assert set(PAGE_SCOPES) <= set(SCOPES)


class Server(uvicorn.Server):
    """A uvicorn server that prints its address when it is ready; a worker drains on SIGTERM."""

    def __init__(self, config: uvicorn.Config, settings: Settings, app: Starlette) -> None:
        super().__init__(config)
        self._settings = settings
        self._app = app
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await self._open_agent_check()
        await super().startup(sockets)
        if not self.started:
            return
        self._app.state.avatar_service.upload_decoder.start_spares()
        # Exclude what is loaded from garbage collection: scanning it would delay all sessions.
        gc.collect()
        gc.freeze()
        port = self.servers[0].sockets[0].getsockname()[1]
        address = page_address(self._settings, port, self._app.state.auth)
        sys.stdout.write(f"letstalk is ready: {address}\n")
        sys.stdout.flush()

    async def shutdown(self, sockets: Any = None) -> None:
        await super().shutdown(sockets)
        await self._app.state.agent_check.aclose()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a worker that is told to stop by SIGTERM drains before, once."""
        if sig == signal.SIGTERM and self._settings.worker_name is not None and self.started:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._start_draining)
        else:
            super().handle_exit(sig, frame)

    def _start_draining(self) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        await drain(self._app.state.sessions, self._settings.drain_s)
        self.should_exit = True

    async def _open_agent_check(self) -> None:
        host, port = self._settings.host, self._settings.agent_port
        if port is None:
            return
        try:
            await self._app.state.agent_check.open(host, port)
        except OSError as error:
            raise ConfigError(
                f"the agent check cannot listen on port {port} ({error.strerror}); "
                "choose another --agent-port"
            ) from error


def page_address(settings: Settings, port: int, auth: Auth) -> str:
    """Return the address of the page; on a terminal, with a token if one is required.

    Other output may be stored, and a token must not be.
    """
    scheme = "https" if settings.tls_cert else "http"
    wildcard = settings.host in ("0.0.0.0", "::", "127.0.0.1", "::1")
    host = "localhost" if wildcard else settings.host
    address = f"{scheme}://{host}:{port}/"
    if not auth.required:
        return address
    if not sys.stdout.isatty():
        if settings.api_key is None:
            return f"{address} (no tokens can be issued: LETSTALK_API_KEY is not set)"
        return f"{address} (a token is required: see POST /v1/tokens in docs/protocol.md)"
    token, _ = auth.issue("operator", PAGE_SCOPES, ttl_s=3600)
    return f"{address}#token={token}"
