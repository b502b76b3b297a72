"""`python -m letstalk_server`: read the settings, serve the page."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from letstalk_rt.errors import LetsTalkError
from letstalk_server.app import create_app
from letstalk_server.settings import IceServer, Settings
from letstalk_server.studio import Model, load_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; give the exit status."""
    try:
        settings = parse(arguments)
        return serve(settings)
    except LetsTalkError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Read the settings: command line first, then `LETSTALK_*` in the environment.

    Raises:
        ConfigError: a value is out of range.
    """
    given = vars(_parser().parse_args(arguments))
    given["ice_servers"] = tuple(_ice_server(text) for text in given.pop("ice_server"))
    return Settings(**given)


def serve(settings: Settings, load: Callable[[Settings], Model] = load_model) -> int:
    """Serve until interrupted. Prints one line, the address, once the page can be opened.

    Raises:
        LetsTalkError: the model could not be loaded.
    """
    failures: list[LetsTalkError] = []

    def load_or_note(settings: Settings) -> Model:
        try:
            return load(settings)
        except LetsTalkError as error:
            failures.append(error)
            raise

    config = uvicorn.Config(
        create_app(settings, load_or_note),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        log_level="warning",
        access_log=False,  # it holds addresses
        server_header=False,
    )
    # The one line of `main` says more than uvicorn's traceback of the same error.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not failures)
    server = _Server(config, settings)
    # Both come when uvicorn has closed everything: after Ctrl-C, and when the start failed.
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        server.run()
    if failures:
        raise failures[0]
    return 0 if server.started else 1


class _Server(uvicorn.Server):
    """Says where the page is, once it is there."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.started:
            return
        port = self.servers[0].sockets[0].getsockname()[1]
        scheme = "https" if self._settings.tls_cert else "http"
        wildcard = self._settings.host in ("0.0.0.0", "::", "127.0.0.1", "::1")
        host = "localhost" if wildcard else self._settings.host
        sys.stdout.write(f"letstalk is ready: {scheme}://{host}:{port}/\n")
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="letstalk serve", description="Serve talking avatars.")
    default = Settings()
    add = parser.add_argument
    add("--host", default=_env("HOST", default.host), help="address to listen on")
    add("--port", type=int, default=_env("PORT", default.port), help="TCP port; 0 takes a free one")
    add(
        "--max-sessions",
        type=int,
        default=_env("MAX_SESSIONS", default.max_sessions),
        help="people connected at once",
    )
    add(
        "--size", type=int, default=_env("SIZE", default.size), help="longest side of the video, px"
    )
    add("--preset", default=_env("PRESET", default.preset), help="which model")
    add("--threads", type=int, default=_env("THREADS", None), help="CPU threads of the model")
    add("--tls-cert", default=_env("TLS_CERT", None), help="certificate file, for HTTPS")
    add("--tls-key", default=_env("TLS_KEY", None), help="private key file")
    add(
        "--ice-server",
        action="append",
        default=(_env("ICE_SERVERS", "") or "").split(),
        metavar="URL[,USER,PASSWORD]",
        help="STUN or TURN server, e.g. turn:example.org:3478,me,secret; may be repeated",
    )
    return parser


def _env(name: str, default: Any) -> Any:
    return os.environ.get(f"LETSTALK_{name}", default)


def _ice_server(text: str) -> IceServer:
    url, _, login = text.partition(",")
    username, _, credential = login.partition(",")
    return IceServer(url, username or None, credential or None)


if __name__ == "__main__":
    sys.exit(main())
