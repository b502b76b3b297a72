"""`letstalk livekit-worker`: shows avatars in rooms of LiveKit, which places them by our load."""

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from livekit.agents import AgentServer
from livekit.plugins.letstalk.job import AVATAR_WORKER
from livekit.plugins.letstalk.log import logger
from livekit.plugins.letstalk.worker import avatar_server

from letstalk_rt import Avatar, ConfigError
from letstalk_rt.avatars import list_avatars

_MEASURED = "measured"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stopped; return the exit status.

    Raises:
        LetsTalkError: an option cannot be used, or the avatar cannot be loaded.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    secret = _secret()
    if not (options.url and options.api_key and secret):
        raise ConfigError(
            "name the server by --url and --api-key, or LIVEKIT_URL and LIVEKIT_API_KEY, and put "
            "its secret into LIVEKIT_API_SECRET, or into a file named by LIVEKIT_API_SECRET_FILE"
        )
    portrait = list_avatars().get(options.portrait, options.portrait)
    with Avatar.load(
        portrait, options.preset, size=options.size, threads=options.threads
    ) as avatar:
        server = avatar_server(
            avatar,
            capacity=_capacity(options.capacity),
            worker=options.name,
            ws_url=options.url,
            api_key=options.api_key,
            api_secret=secret,
            port=options.port,
            drain_timeout=options.drain_s,
        )
        asyncio.run(run_until_stopped(server))
    return 0


async def run_until_stopped(server: AgentServer) -> None:
    """Run a worker until SIGTERM or SIGINT; it then takes no new jobs and finishes those it has.

    The draining is LiveKit's own: jobs that are not finished after the worker's drain timeout are
    ended; a second signal ends them at once.
    """
    loop, stops = asyncio.get_running_loop(), asyncio.Queue[None]()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stops.put_nowait, None)
    server.on("worker_registered", lambda *_: logger.info("registered"))
    running = asyncio.create_task(server.run())
    try:
        await _first(running, asyncio.create_task(stops.get()))
        if not running.done():
            drained = asyncio.create_task(server.drain())
            await _first(drained, asyncio.create_task(stops.get()))
            if drained.done() and isinstance(drained.exception(), TimeoutError):
                logger.warning("jobs are ended: they did not finish in time")
            drained.cancel()
    finally:
        await server.aclose()
        await asyncio.gather(running)


async def _first(*tasks: "asyncio.Task[None]") -> None:
    """Wait for the first of several tasks."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _secret() -> str | None:
    path = os.environ.get("LIVEKIT_API_SECRET_FILE")
    if path is None:
        return os.environ.get("LIVEKIT_API_SECRET")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"LIVEKIT_API_SECRET_FILE cannot be read ({error.strerror})") from None


def _capacity(text: str) -> int | None:
    if text == _MEASURED:
        return None
    if not text.isdecimal():
        raise ConfigError(f"--capacity is {text!r}, expected a number or {_MEASURED}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letstalk livekit-worker",
        description="Show avatars in rooms of LiveKit for agents that start a RemoteAvatarSession. "
        "LiveKit places them by the load that this machine reports. The secret of the API key is "
        "read from LIVEKIT_API_SECRET only, or from the file LIVEKIT_API_SECRET_FILE.",
    )
    environment = os.environ.get
    add = parser.add_argument
    add("--url", default=environment("LIVEKIT_URL"), help="LiveKit server, such as ws://host:7880")
    add("--api-key", default=environment("LIVEKIT_API_KEY"), metavar="KEY")
    add("--name", default=AVATAR_WORKER, help="under which agents ask for it (%(default)s)")
    add("--portrait", default="mira", help="image file or name of an avatar (%(default)s)")
    add("--preset", default="tiny", help="which model (%(default)s)")
    add("--size", type=int, default=512, help="longest side of the video, px (%(default)s)")
    add("--threads", type=int, help="CPU threads of the model")
    add("--capacity", default=_MEASURED, metavar="N", help="avatars at once (%(default)s)")
    add(
        "--drain-s",
        type=int,
        default=1800,
        metavar="S",
        help="how long jobs may go on after SIGTERM",
    )
    add("--port", type=int, default=8081, help="TCP port of the health check (%(default)s)")
    return parser
