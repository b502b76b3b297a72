"""The avatar of an agent session: in the agent's process, or in that of an avatar worker."""

import asyncio
from typing import Any, Unpack

import aiohttp
from livekit import api, rtc
from livekit.agents import AgentSession, UserStateChangedEvent, utils
from livekit.agents.voice.avatar import AvatarRunner
from livekit.agents.voice.avatar import AvatarSession as BaseAvatarSession
from livekit.plugins.letstalk.audio_io import LocalAudioOutput, RemoteAudioOutput
from livekit.plugins.letstalk.errors import AvatarUnavailable, LiveKitError
from livekit.plugins.letstalk.generator import LetsTalkGenerator
from livekit.plugins.letstalk.job import AVATAR_WORKER, AvatarJob
from livekit.plugins.letstalk.log import logger
from livekit.plugins.letstalk.performance import RemotePerformance
from livekit.plugins.letstalk.runner import make_runner, open_session

from letstalk_rt import Avatar, ConfigError, SessionClosed
from letstalk_rt import AvatarSession as EngineSession
from letstalk_rt.audio.speech_resampler import check_output_rate
from letstalk_rt.performance import Listening, Style, json_fields
from letstalk_rt.session.options import SessionOptions

PROVIDER = "letstalk"


class AvatarSession(BaseAvatarSession[str]):
    """An avatar in the process of its agent: the agent's own participant publishes video.

    Args:
        avatar: the loaded avatar; any number of sessions may share it, and the caller closes it.
        sample_rate: of the audio that is heard, in Hz: 16000, 24000 or 48000. The agent converts
            its speech to it.
        options: options of the session, see `letstalk_rt.AvatarSession`.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self, avatar: Avatar, *, sample_rate: int = 24_000, **options: Unpack[SessionOptions]
    ) -> None:
        super().__init__()
        self._avatar = avatar
        self._sample_rate = sample_rate
        self._session = open_session(avatar, sample_rate, options)
        self._runner: AvatarRunner | None = None
        self._generator: LetsTalkGenerator | None = None
        self._output: LocalAudioOutput | None = None
        self._watching: asyncio.Task[None] | None = None
        self._shown_in: rtc.Room | None = None

    @property
    def avatar_identity(self) -> str:
        """The identity of the agent, which publishes the avatar itself; empty before the start."""
        return self._shown_in.local_participant.identity if self._shown_in is not None else ""

    @property
    def provider(self) -> str:
        """The provider that LiveKit's metrics name."""
        return PROVIDER

    @property
    def session(self) -> EngineSession:
        """The session of letstalk_rt: its events and state, moods, gestures and listening."""
        return self._session

    async def start(self, agent_session: AgentSession[Any], room: rtc.Room) -> None:
        """Show the avatar in a room and let it speak what the agent says.

        Call it before `agent_session.start`. The room may connect later.

        Raises:
            ConfigError: it was started before.
            SessionClosed: it was closed.
        """
        if self._runner is not None:
            raise ConfigError("this avatar was started before; create another for another agent")
        self._shown_in = room
        await self._session.__aenter__()
        await super().start(agent_session, room)
        self._output = LocalAudioOutput(sample_rate=self._sample_rate)
        self._runner, self._generator = make_runner(
            room, self._avatar, self._session, self._output, self._sample_rate
        )
        await self._runner.start()
        self._watching = asyncio.create_task(self._watch(self._runner, self._output))
        agent_session.on("user_state_changed", self._on_user_state_changed)
        agent_session.output.replace_audio_tail(self._output)

    async def aclose(self) -> None:
        """Stop the avatar; the agent cannot speak through it any more. May be called twice."""
        agent_session, room = self._agent_session, self._room
        if agent_session is not None:
            agent_session.off("user_state_changed", self._on_user_state_changed)
        if room is not None:
            # In a job, the base class removes the avatar's participant: here the agent itself.
            room.off("connection_state_changed", self._on_connection_state_changed)
            self._room = None
        await super().aclose()
        if self._watching is not None:
            await utils.aio.cancel_and_wait(self._watching)
        if self._generator is not None:
            self._generator.set_user_speaking(False)
        if self._runner is not None:
            await self._runner.aclose()
        await self._session.aclose()
        if self._output is not None:
            self._output.report_failure(SessionClosed("it was closed"))

    async def _watch(self, runner: AvatarRunner, output: LocalAudioOutput) -> None:
        """End what the agent waits for if the runner fails, which it only logs."""
        try:
            await runner.wait_for_complete()
        except Exception as error:
            output.report_failure(error)

    def _on_user_state_changed(self, event: UserStateChangedEvent) -> None:
        if self._generator is not None:
            self._generator.set_user_speaking(event.new_state == "speaking")


class RemoteAvatarSession(BaseAvatarSession[str]):
    """An avatar in another process, which joins the room on behalf of the agent.

    Run a worker there, see `avatar_server`. The agent sends it speech over a data stream.

    Args:
        worker: the name of the avatar workers.
        sample_rate: of the speech that is sent, in Hz.
        join_timeout_s: how long a worker may take to join, in seconds.
        url, api_key, api_secret: of the LiveKit server; None for the environment variables
            `LIVEKIT_URL`, `LIVEKIT_API_KEY` and `LIVEKIT_API_SECRET`.
    """

    def __init__(
        self,
        *,
        worker: str = AVATAR_WORKER,
        sample_rate: int = 24_000,
        join_timeout_s: float = 10.0,
        url: str | None = None,
        api_key: str | None = None,
        api_secret: str | None = None,
    ) -> None:
        super().__init__()
        self._worker = worker
        check_output_rate(sample_rate)
        self._sample_rate = sample_rate
        self._join_timeout_s = join_timeout_s
        self._server = (url, api_key, api_secret)
        self._dispatch: api.AgentDispatch | None = None
        self._output: RemoteAudioOutput | None = None
        self._performance: RemotePerformance | None = None
        self._identity = ""

    @property
    def avatar_identity(self) -> str:
        """The identity of the participant that joins for the agent."""
        return self._identity

    @property
    def provider(self) -> str:
        """The provider that LiveKit's metrics name."""
        return PROVIDER

    async def start(self, agent_session: AgentSession[Any], room: rtc.Room) -> None:
        """Ask for an avatar worker, and let it speak what the agent says once it has joined.

        Raises:
            AvatarUnavailable: no worker has joined in time.
            LiveKitError: the server cannot be reached or refuses the API key.
            ConfigError: the room is not connected.
        """
        if not room.isconnected():
            raise ConfigError("connect the room before a remote avatar is started")
        agent = room.local_participant.identity
        self._identity = f"{agent}-avatar"
        await self._request_worker(AvatarJob(agent, self._identity, self._sample_rate), room.name)
        await super().start(agent_session, room)
        try:
            await self.wait_for_join(timeout=self._join_timeout_s)
        except TimeoutError as error:
            await self.aclose()
            raise AvatarUnavailable(
                f"no avatar worker {self._worker!r} has joined within {self._join_timeout_s:g} s; "
                "start one, or more of them if all are full"
            ) from error
        self._output = RemoteAudioOutput(
            room, identity=self._identity, sample_rate=self._sample_rate
        )
        self._performance = RemotePerformance(room, self._identity)
        room.on("participant_disconnected", self._on_participant_disconnected)
        agent_session.on("user_state_changed", self._on_user_state_changed)
        agent_session.output.replace_audio_tail(self._output)

    async def set_mood(self, mood: str | Style, strength: float = 1.0) -> None:
        """Change how the avatar feels; see `letstalk_rt.AvatarSession.set_mood`.

        Raises:
            ConfigError: there is no such mood, a number is out of range, the model of the worker
                cannot be directed, or the avatar was not started.
        """
        given = json_fields.as_json(mood)
        await self._directing.send(type="performance.mood", **given, strength=strength)

    async def gesture(self, name: str, amount: float = 1.0, *, at: float | None = None) -> None:
        """Make a gesture; see `letstalk_rt.AvatarSession.gesture`.

        Raises:
            ConfigError: see `set_mood`.
        """
        timed = {} if at is None else {"at_ms": 1000 * at}
        await self._directing.send(type="performance.gesture", gesture=name, amount=amount, **timed)

    async def set_listening(self, mode: Listening) -> None:
        """Change how the avatar listens; see `letstalk_rt.AvatarSession.set_listening`.

        Raises:
            ConfigError: see `set_mood`.
        """
        await self._directing.send(type="performance.listening", mode=mode)

    @property
    def _directing(self) -> RemotePerformance:
        if self._performance is None:
            raise ConfigError("start the avatar before it is directed")
        return self._performance

    def _on_user_state_changed(self, event: UserStateChangedEvent) -> None:
        self._directing.tell_user_speaks(event.new_state == "speaking")

    async def aclose(self) -> None:
        """Let the avatar go; the agent cannot speak through it any more. May be called twice."""
        if self._room is not None:
            self._room.off("participant_disconnected", self._on_participant_disconnected)
        if self._performance is not None:
            if self._agent_session is not None:
                self._agent_session.off("user_state_changed", self._on_user_state_changed)
            await self._performance.aclose()
        await super().aclose()
        self._end(SessionClosed("it was closed"))
        await self._release_worker()

    def _on_participant_disconnected(self, participant: rtc.RemoteParticipant) -> None:
        if participant.identity == self._identity:
            logger.error("the avatar has left the room")
            self._end(SessionClosed("it has left the room"))

    def _end(self, reason: Exception) -> None:
        """End what the agent waits for."""
        if self._output is not None:
            self._output.report_failure(reason)

    async def _request_worker(self, job: AvatarJob, room: str) -> None:
        request = api.CreateAgentDispatchRequest(
            agent_name=self._worker, room=room, metadata=job.to_json()
        )
        try:
            async with api.LiveKitAPI(*self._server) as server:
                self._dispatch = await server.agent_dispatch.create_dispatch(request)
        except (api.TwirpError, aiohttp.ClientError, ValueError) as error:
            raise LiveKitError(
                f"LiveKit did not take the request for an avatar worker ({error}); check "
                "LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
            ) from error

    async def _release_worker(self) -> None:
        """End the worker's job, which may also begin only after `start` has given up."""
        dispatch, self._dispatch = self._dispatch, None
        if dispatch is None:
            return
        try:
            async with api.LiveKitAPI(*self._server) as server:
                await server.agent_dispatch.delete_dispatch(dispatch.id, dispatch.room)
        except (api.TwirpError, aiohttp.ClientError) as error:  # gone with its room, most likely
            logger.debug("the avatar's job was not deleted: %s", error)
