"""LetsTalk avatars for LiveKit Agents: one portrait speaks what the agent says.

    avatar = Avatar.load("portrait.jpg")
    ...
    await letstalk.AvatarSession(avatar).start(agent_session, ctx.room)
    await agent_session.start(agent=agent, room=ctx.room)

`RemoteAvatarSession` and `avatar_server` run the avatar in a process of its own, on another machine
if need be.
"""

from livekit.agents import Plugin
from livekit.plugins.letstalk.avatar import AvatarSession, RemoteAvatarSession
from livekit.plugins.letstalk.errors import AvatarUnavailable, LiveKitError
from livekit.plugins.letstalk.generator import LetsTalkGenerator
from livekit.plugins.letstalk.log import logger
from livekit.plugins.letstalk.version import __version__
from livekit.plugins.letstalk.worker import avatar_server

__all__ = [
    "AvatarSession",
    "AvatarUnavailable",
    "LetsTalkGenerator",
    "LiveKitError",
    "RemoteAvatarSession",
    "__version__",
    "avatar_server",
]


class LetsTalkPlugin(Plugin):
    """Makes the plugin known to LiveKit's command line and telemetry."""

    def __init__(self) -> None:
        super().__init__(__name__, __version__, __name__, logger)


Plugin.register_plugin(LetsTalkPlugin())
