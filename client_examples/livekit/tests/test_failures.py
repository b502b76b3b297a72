"""What goes wrong around an avatar: the agent is told, and nothing hangs."""

import asyncio

import numpy as np
import pytest
from livekit import rtc
from livekit.agents import AgentSession
from livekit.plugins import letstalk
from support.agents import tone
from support.listener import Listener
from support.stage import House, local_stage, remote_stage
from support.waiting import until_only
from support.workers import avatar_worker

from letstalk_rt import AudioFormatError, ConfigError, SessionClosed


async def test_a_model_that_fails_ends_the_speech(house, avatar):
    async with local_stage(house, avatar) as stage, asyncio.timeout(30):
        speech = stage.agent.say("", audio=tone(30.0))
        await stage.user.until_loud(0.2)
        avatar.pipeline.is_broken = True
        await speech.wait_for_playout()
        event, _ = stage.playback.finished[-1]
        assert event.interrupted and 0.1 < event.playback_position < 29
        with pytest.raises(SessionClosed, match="the avatar cannot speak"):
            await stage.agent.output.audio.capture_frame(await anext(tone(0.1)))


async def test_a_remote_model_that_fails_leaves_the_room(house, avatar):
    async with avatar_worker(house.server, avatar) as worker, asyncio.timeout(60):
        async with remote_stage(house, worker) as stage:
            speech = stage.agent.say("", audio=tone(30.0))
            await stage.user.until_loud(0.2)
            avatar.pipeline.is_broken = True
            await speech.wait_for_playout()
            assert stage.playback.finished[-1][0].interrupted


async def test_a_room_that_is_closed_leaves_nothing_hanging(house, avatar):
    before = asyncio.all_tasks()
    async with local_stage(house, avatar) as stage:
        speech = stage.agent.say("", audio=tone(30.0))
        await stage.user.until_loud()
        await house.server.close_room(house.name)
        await speech.interrupt(force=True)
        async with asyncio.timeout(10):
            await speech.wait_for_playout()
    async with house:
        pass
    await until_only(before)


async def test_a_refused_token_is_named(house):
    room = rtc.Room()
    token = house.server.token("agent", house.name, secret="another-secret-of-32-characters-")
    with pytest.raises(rtc.ConnectError):
        await room.connect(house.server.url, token)


async def test_an_avatar_may_start_before_its_room_connects(house, avatar):
    room, session = rtc.Room(), AgentSession()
    shown = letstalk.AvatarSession(avatar, sample_rate=16_000)
    await shown.start(session, room)
    async with Listener(await house.join("user"), "agent") as user:
        await room.connect(house.server.url, house.server.token("agent", house.name))
        await user.until_seen(5)
    await shown.aclose()
    await room.disconnect()


async def test_speech_of_a_bad_rate_is_refused_and_the_next_is_heard(house, avatar):
    async with local_stage(house, avatar) as stage:
        silence = np.zeros(100, np.int16).tobytes()
        with pytest.raises(AudioFormatError, match="8000 to 192000"):
            await stage.agent.output.audio.capture_frame(rtc.AudioFrame(silence, 4_000, 1, 100))
        await stage.agent.say("", audio=tone(0.3)).wait_for_playout()
        assert not stage.playback.finished[-1][0].interrupted


async def test_an_avatar_starts_once_and_closes_twice(house, avatar):
    async with local_stage(house, avatar) as stage:
        room = await house.join("other")
        with pytest.raises(ConfigError, match="started before"):
            await stage.avatar.start(AgentSession(), room)
        await stage.avatar.aclose()
        await stage.avatar.aclose()
        with pytest.raises(SessionClosed, match="cannot speak"):
            await stage.agent.output.audio.capture_frame(await anext(tone(0.1)))


@pytest.mark.parametrize(
    "option, message",
    [
        ({"sample_rate": 44_100}, "output_sample_rate must be one of"),
        ({"playback": "on_read"}, "playback is set by the plugin"),
        ({"idle": False}, "idle is set by the plugin"),
        ({"max_hops": 0}, "max_hops"),
    ],
)
async def test_bad_options_are_refused_at_once(avatar, option, message):
    with pytest.raises(ConfigError, match=message):
        letstalk.AvatarSession(avatar, **option)


async def test_twenty_sessions_leave_no_task(server, avatar):
    async def speak(number: int) -> float:
        async with House(server, f"twenty-{number}-{id(avatar)}") as house:
            async with local_stage(house, avatar) as stage:
                await stage.agent.say("", audio=tone(0.2)).wait_for_playout()
                return stage.playback.finished[-1][0].playback_position

    before = asyncio.all_tasks()
    for batch in range(5):
        positions = await asyncio.gather(*(speak(4 * batch + n) for n in range(4)))
        assert positions == pytest.approx([0.2] * 4, abs=0.04)
    await until_only(before)
