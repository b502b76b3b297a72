"""Directing an avatar in another process: one method of LiveKit's RPC."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from livekit import rtc
from livekit.plugins.letstalk.generator import LetsTalkGenerator
from livekit.plugins.letstalk.log import logger

from letstalk_rt import ConfigError, LetsTalkError
from letstalk_rt.performance import json_fields

METHOD = "letstalk.performance"
"""The RPC method; its payload is a message of the protocol as JSON, such as
`{"type": "performance.mood", "mood": "warm"}`."""

USER = "performance.user"
"""The message by which an agent tells the avatar whether the user speaks."""

_BAD_REQUEST, _NOT_ALLOWED = 1400, 1403
MAX_CHARS = 2000


def serve_performance(room: rtc.Room, generator: LetsTalkGenerator, agent: str) -> None:
    """Let one participant direct an avatar.

    Args:
        room: the room, connected.
        generator: makes the avatar's frames.
        agent: identity of the participant; others are refused.
    """

    async def direct(call: rtc.RpcInvocationData) -> str:
        if call.caller_identity != agent:
            raise rtc.RpcError(_NOT_ALLOWED, "only its agent directs this avatar")
        try:
            _perform(generator, _read(call.payload))
        except LetsTalkError as error:
            raise rtc.RpcError(_BAD_REQUEST, str(error)) from error
        return "done"

    room.local_participant.register_rpc_method(METHOD, direct)


def _read(payload: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(payload) if len(payload) <= MAX_CHARS else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(f"the payload must be a JSON object of {MAX_CHARS} characters at most")
    return fields


def _perform(generator: LetsTalkGenerator, fields: Mapping[str, Any]) -> None:
    if fields.get("type") == USER:
        generator.set_user_speaking(fields.get("speaking") is True)
    else:
        json_fields.perform(generator, fields)


class RemotePerformance:
    """Directs the avatar of another participant.

    Args:
        room: the room of the agent.
        identity: identity of the avatar.
    """

    def __init__(self, room: rtc.Room, identity: str) -> None:
        self._room, self._identity = room, identity
        self._telling: asyncio.Task[None] | None = None
        self._is_speaking = False

    async def send(self, **fields: Any) -> None:
        """Send a message of the protocol.

        Raises:
            ConfigError: the avatar has refused it; the message says why.
            rtc.RpcError: the avatar cannot be reached.
        """
        try:
            await self._room.local_participant.perform_rpc(
                destination_identity=self._identity, method=METHOD, payload=json.dumps(fields)
            )
        except rtc.RpcError as error:
            if error.code == _BAD_REQUEST:
                raise ConfigError(error.message) from error
            raise

    def tell_user_speaks(self, speaking: bool) -> None:
        """Tell the avatar, without waiting, whether the user speaks; the newest state counts."""
        self._is_speaking = speaking
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell(), name="letstalk-user-voice")

    async def aclose(self) -> None:
        """Stop telling."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])

    async def _tell(self) -> None:
        told: bool | None = None
        while told is not self._is_speaking:
            told = self._is_speaking
            try:
                await self.send(type=USER, speaking=told)
            except (rtc.RpcError, ConfigError) as error:
                logger.warning("the avatar does not know that the user speaks: %s", error)
