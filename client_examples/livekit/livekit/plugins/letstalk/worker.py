"""The avatar worker: a process that joins rooms as the avatar of agents elsewhere."""

import asyncio
from collections.abc import Callable
from typing import Any

from livekit import rtc
from livekit.agents import (
    AgentServer,
    AutoSubscribe,
    JobContext,
    JobExecutorType,
    JobRequest,
    utils,
)
from livekit.agents.voice.avatar import AvatarRunner
from livekit.plugins.letstalk.audio_io import RemoteAudioReceiver
from livekit.plugins.letstalk.job import AVATAR_WORKER, AvatarJob
from livekit.plugins.letstalk.log import logger
from livekit.plugins.letstalk.performance import serve_performance
from livekit.plugins.letstalk.runner import make_runner, open_session

from letstalk_rt import Avatar, AvatarSession, ConfigError
from letstalk_rt.session.options import SessionOptions

_FULL = 0.999
"""The load at which a worker reports `WS_FULL`; LiveKit wants it below 1."""

_MAX_MEASURED = 100
"""Idle threads for so many jobs at most, however fast the model is."""

_ON_BEHALF = "lk.publish_on_behalf"


def avatar_server(
    avatar: Avatar,
    *,
    capacity: int | None = 1,
    worker: str = AVATAR_WORKER,
    session_options: SessionOptions | None = None,
    **server_options: Any,
) -> AgentServer:
    """Create a worker for `RemoteAvatarSession`.

    All jobs share the avatar's model, so they run in threads of one process. While `capacity` jobs
    run, the worker reports `WS_FULL` and refuses more.

    Args:
        avatar: the loaded avatar; the caller closes it after the server.
        capacity: how many avatars the machine can show at once, from 1 to 100; None measures it,
            which takes some seconds, and reports `WS_FULL` also while the model is too busy.
        worker: the name under which agents ask for it.
        session_options: options of the sessions, see `letstalk_rt.AvatarSession`.
        server_options: further arguments of `AgentServer`, such as `ws_url`, `api_key`,
            `api_secret` and `port`.

    Returns:
        The server, for `livekit.agents.cli.run_app` or `run`.

    Raises:
        ConfigError: an option is out of range.
    """
    if capacity is not None and capacity not in range(1, 101):
        raise ConfigError(f"capacity must be from 1 to 100, got {capacity!r}")
    options = session_options or {}
    open_session(avatar, 24_000, options)  # refuses bad options now, not in a job
    places, load = _measured(avatar) if capacity is None else _fixed(capacity)
    server = AgentServer(
        job_executor_type=JobExecutorType.THREAD,
        load_fnc=lambda server: load(len(server.active_jobs)),
        load_threshold=_FULL,
        num_idle_processes=places,
        **server_options,
    )

    async def serve(context: JobContext) -> None:
        await _serve(context, avatar, options)

    server.rtc_session(serve, agent_name=worker, on_request=_accept)
    return server


def _fixed(capacity: int) -> tuple[int, Callable[[int], float]]:
    return capacity, lambda jobs: jobs / capacity


def _measured(avatar: Avatar) -> tuple[int, Callable[[int], float]]:
    """Return the places of this machine, and the load by the number of jobs."""
    measured = avatar.measure_load()
    places = min(measured.cost.places, _MAX_MEASURED)
    logger.info("the machine has places for %d avatars", places)
    return places, lambda jobs: max(measured.of(jobs), jobs / places)


async def _accept(request: JobRequest) -> None:
    """Join as the avatar that the job asks for; LiveKit asks only while there is capacity."""
    try:
        job = AvatarJob.from_json(request.job.metadata)
    except ConfigError as error:
        logger.error("a job was refused: %s", error)
        await request.reject()
        return
    await request.accept(identity=job.identity, attributes={_ON_BEHALF: job.agent})


async def _serve(context: JobContext, avatar: Avatar, options: SessionOptions) -> None:
    """Be the avatar of one agent until it leaves, or the worker is shut down."""
    job = AvatarJob.from_json(context.job.metadata)
    await context.connect(auto_subscribe=AutoSubscribe.SUBSCRIBE_NONE)
    session = open_session(avatar, job.sample_rate, options)
    receiver = RemoteAudioReceiver(context.room, sender_identity=job.agent)
    runner, generator = make_runner(context.room, avatar, session, receiver, job.sample_rate)
    serve_performance(context.room, generator, job.agent)
    playing = asyncio.create_task(_play(context, session, runner))

    def leave(participant: rtc.RemoteParticipant) -> None:
        if participant.identity == job.agent:
            context.shutdown("the agent has left")

    async def close() -> None:
        context.room.off("participant_disconnected", leave)
        await utils.aio.cancel_and_wait(playing)
        generator.set_user_speaking(False)
        await runner.aclose()
        await session.aclose()

    context.room.on("participant_disconnected", leave)
    context.add_shutdown_callback(close)


async def _play(context: JobContext, session: AvatarSession, runner: AvatarRunner) -> None:
    """Play the session; leave the room if it fails, which the agent sees."""
    try:
        await session.__aenter__()
        await runner.start()  # waits for the agent
        await runner.wait_for_complete()
    except Exception:
        logger.exception("the avatar has failed")
    context.shutdown("the avatar has ended")
