"""Moods, gestures and listening: in the agent's process, and by RPC to a worker."""

import json

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import UserStateChangedEvent
from livekit.plugins import letstalk
from livekit.plugins.letstalk.generator import LetsTalkGenerator
from livekit.plugins.letstalk.performance import METHOD
from support.stage import local_stage, remote_stage
from support.waiting import until
from support.workers import avatar_worker

from letstalk_rt import Avatar, ConfigError
from letstalk_rt.performance import Style
from letstalk_rt.performance.direction import channel


def most(avatar: Avatar, name: str) -> float:
    """Return the largest value that was added to a channel so far."""
    windows = avatar.pipeline.directed
    return max((float(each.added[:, channel(name)].max()) for each in windows), default=0.0)


def is_looked_at(avatar: Avatar) -> bool:
    """Return whether the avatar has looked at whoever speaks."""
    gaze = channel("gaze_x")
    return any(np.min(each.kept[:, gaze]) < 0.5 for each in avatar.pipeline.directed)


def user_state(state: str) -> UserStateChangedEvent:
    return UserStateChangedEvent(old_state="listening", new_state=state)


async def test_the_agent_directs_the_avatar_in_its_process(house, avatar):
    async with local_stage(house, avatar, mood="warm", listening="attentive") as stage:
        await until(lambda: most(avatar, "smile") > 0.15)
        stage.avatar.session.gesture("nod")
        await until(lambda: most(avatar, "pitch") > 0.1)
        assert not is_looked_at(avatar)
        stage.agent.emit("user_state_changed", user_state("speaking"))
        await until(lambda: is_looked_at(avatar))


async def test_a_generator_is_directed(avatar):
    async with avatar.session(playback="reported") as session:
        generator = LetsTalkGenerator(session)
        generator.set_mood(Style(smile=3))
        generator.gesture("shake", 0.5)
        generator.set_listening("calm")
        with pytest.raises(ConfigError, match="nod"):
            generator.gesture("somersault")
        async for _ in generator:
            if most(avatar, "yaw") > 0.04 and most(avatar, "smile") > 0.25:
                break


async def test_the_agent_directs_an_avatar_in_a_worker(house, avatar):
    async with avatar_worker(house.server, avatar) as worker, remote_stage(house, worker) as stage:
        await stage.avatar.set_mood("cheerful", 0.9)
        await stage.avatar.gesture("nod")
        await stage.avatar.set_listening("attentive")
        await until(lambda: most(avatar, "smile") > 0.25 and most(avatar, "pitch") > 0.1)
        with pytest.raises(ConfigError, match="cheerful"):
            await stage.avatar.set_mood("furious")
        with pytest.raises(ConfigError, match="from 0.1 to 2"):
            await stage.avatar.gesture("nod", 9)
        assert not is_looked_at(avatar)
        stage.agent.emit("user_state_changed", user_state("speaking"))
        await until(lambda: is_looked_at(avatar))


async def test_nobody_but_its_agent_directs_an_avatar_in_a_worker(house, avatar):
    async with avatar_worker(house.server, avatar) as worker, remote_stage(house, worker):
        stranger = await house.join("stranger")
        payload = json.dumps({"type": "performance.mood", "mood": "cheerful"})
        with pytest.raises(rtc.RpcError, match="only its agent"):
            await stranger.local_participant.perform_rpc(
                destination_identity="agent-avatar", method=METHOD, payload=payload
            )
        assert most(avatar, "smile") == 0.0


async def test_an_avatar_that_was_not_started_cannot_be_directed(house):
    with pytest.raises(ConfigError, match="start the avatar"):
        await letstalk.RemoteAvatarSession(**house.server.key).set_mood("warm")
