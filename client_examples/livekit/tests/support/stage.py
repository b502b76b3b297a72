"""Rooms with an agent, its avatar, and a user who watches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from livekit import rtc
from livekit.agents import AgentSession
from livekit.plugins import letstalk

from letstalk_rt import Avatar
from support.agents import Playback, start_agent
from support.listener import Listener
from support.servers import Server


class House:
    """A room and those who have joined it; use it with `async with`.

    Attributes:
        server: its server.
        name: its name.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name
        self._rooms: list[rtc.Room] = []

    async def __aenter__(self) -> "House":
        return self

    async def __aexit__(self, *exc: object) -> None:
        for room in self._rooms:
            await room.disconnect()

    async def join(self, identity: str) -> rtc.Room:
        """Join the room under an identity."""
        room = rtc.Room()
        await room.connect(self.server.url, self.server.token(identity, self.name))
        self._rooms.append(room)
        return room


@dataclass(frozen=True, slots=True)
class Stage:
    """An agent with its avatar, and a user.

    Attributes:
        agent: the agent's session.
        avatar: its avatar.
        user: the user.
        playback: what the agent is told.
    """

    agent: AgentSession
    avatar: letstalk.AvatarSession | letstalk.RemoteAvatarSession
    user: Listener
    playback: Playback


@asynccontextmanager
async def local_stage(house: House, avatar: Avatar, **options: object) -> AsyncIterator[Stage]:
    """An agent whose avatar runs beside it."""
    async with _stage(house, letstalk.AvatarSession(avatar, **options), "agent") as stage:
        yield stage


@asynccontextmanager
async def remote_stage(house: House, worker: str) -> AsyncIterator[Stage]:
    """An agent whose avatar joins from a worker."""
    remote = letstalk.RemoteAvatarSession(worker=worker, **house.server.key)
    async with _stage(house, remote, "agent-avatar") as stage:
        yield stage


@asynccontextmanager
async def _stage(
    house: House,
    avatar: letstalk.AvatarSession | letstalk.RemoteAvatarSession,
    shown_by: str,
) -> AsyncIterator[Stage]:
    user_room, agent_room = await house.join("user"), await house.join("agent")
    agent = AgentSession()
    async with Listener(user_room, shown_by) as user:
        try:
            await avatar.start(agent, agent_room)
            await start_agent(agent, agent_room)
            await avatar.wait_for_join()
            await user.until_seen()
            yield Stage(agent, avatar, user, Playback().watch(agent))
        finally:
            await agent.aclose()
            await avatar.aclose()
