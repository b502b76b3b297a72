"""The avatar in a worker's process: `AgentServer`, data streams and admission."""

import asyncio
import statistics
import time

import pytest
from livekit import rtc
from livekit.agents import AgentSession
from livekit.plugins import letstalk
from support.agents import tone
from support.fake_avatar import SIZE, fake_avatar
from support.stage import House, remote_stage
from support.waiting import until
from support.workers import avatar_worker, until_reported

from letstalk_rt import ConfigError


async def test_the_avatar_joins_on_behalf_of_the_agent(house, avatar):
    async with avatar_worker(house.server, avatar) as worker, remote_stage(house, worker) as stage:
        await stage.user.until_seen(10)
        assert {(sight.width, sight.height) for sight in stage.user.sights} == {(SIZE, SIZE)}
        room = await house.join("another-user")
        joined = room.remote_participants["agent-avatar"]
        assert joined.attributes["lk.publish_on_behalf"] == "agent"
        assert joined.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT


async def test_a_remote_segment_finishes_at_its_length(house, avatar):
    async with avatar_worker(house.server, avatar) as worker, remote_stage(house, worker) as stage:
        for seconds in (1.0, 0.3):
            await stage.agent.say("", audio=tone(seconds)).wait_for_playout()
            event, finished_s = stage.playback.finished[-1]
            assert event.playback_position == pytest.approx(seconds, abs=0.04)
            assert not event.interrupted
            took_s = finished_s - stage.playback.started_s[-1]
            assert took_s == pytest.approx(seconds, abs=0.1), "two messages lie between"


async def test_a_remote_interrupt_is_heard_within_150_ms(house, avatar):
    async with avatar_worker(house.server, avatar) as worker, remote_stage(house, worker) as stage:
        after_s = []
        for _ in range(5):
            speech = stage.agent.say("", audio=tone(5.0))
            await stage.user.until_loud(0.5)
            interrupted_s = time.monotonic()
            await speech.interrupt(force=True)
            await speech.wait_for_playout()
            assert time.monotonic() - interrupted_s < 2.0, "answered, not timed out"
            await stage.user.until_quiet()
            after_s.append(stage.user.loud_since(interrupted_s))
            assert stage.playback.finished[-1][0].interrupted
        assert statistics.median(after_s) <= 0.15
        await stage.agent.say("", audio=tone(0.5)).wait_for_playout()
        assert stage.playback.finished[-1][0].playback_position == pytest.approx(0.5, abs=0.04)


async def test_a_full_worker_reports_it_and_refuses(server, house, avatar):
    async with avatar_worker(server, avatar) as worker, remote_stage(house, worker):
        other = House(server, f"{house.name}-other")
        async with other:
            room = await other.join("agent")
            session = letstalk.RemoteAvatarSession(worker=worker, join_timeout_s=3, **server.key)
            with pytest.raises(letstalk.AvatarUnavailable, match="has joined within 3 s"):
                await session.start(AgentSession(), room)
        if server.is_stub:
            assert await until_reported(server, worker, "WS_FULL") >= 1


async def test_a_worker_is_free_again_when_the_agent_has_left(server, house, avatar):
    async with avatar_worker(server, avatar) as worker, remote_stage(house, worker) as stage:
        await stage.user.until_seen(5)
        if server.is_stub:
            await until_reported(server, worker, "WS_FULL")
        async with house:  # everybody leaves
            pass
        if server.is_stub:
            await until_reported(server, worker, "WS_AVAILABLE")
        else:
            await asyncio.sleep(10)
        async with House(server, f"{house.name}-next") as following:
            async with remote_stage(following, worker) as stage:
                await stage.user.until_seen(5)


async def test_a_closed_avatar_leaves_while_its_agent_stays(house, avatar):
    async with avatar_worker(house.server, avatar) as worker:
        room = await house.join("agent")
        session = letstalk.RemoteAvatarSession(worker=worker, **house.server.key)
        user = await house.join("user")
        await session.start(AgentSession(), room)
        assert "agent-avatar" in user.remote_participants
        await session.aclose()
        await until(lambda: "agent-avatar" not in user.remote_participants, limit_s=20)
        assert "agent" in user.remote_participants


async def test_without_a_worker_the_agent_is_told(house):
    room = await house.join("agent")
    session = letstalk.RemoteAvatarSession(worker="nobody", join_timeout_s=0.5, **house.server.key)
    with pytest.raises(letstalk.AvatarUnavailable, match="no avatar worker 'nobody'"):
        await session.start(AgentSession(), room)


@pytest.mark.parametrize(
    "wrong", [{"url": "ws://127.0.0.1:1"}, {"api_secret": "another-secret-of-32-characters-"}]
)
async def test_a_dead_server_and_a_refused_key_are_named(house, wrong):
    room = await house.join("agent")
    session = letstalk.RemoteAvatarSession(**(house.server.key | wrong))
    with pytest.raises(letstalk.LiveKitError, match="LIVEKIT_API_SECRET"):
        await session.start(AgentSession(), room)


async def test_a_remote_avatar_needs_a_connected_room(house):
    session = letstalk.RemoteAvatarSession(**house.server.key)
    with pytest.raises(ConfigError, match="connect the room"):
        await session.start(AgentSession(), rtc.Room())


@pytest.mark.parametrize("capacity", [0, 101, 1.5])
def test_a_capacity_out_of_range_is_refused(avatar, capacity):
    with pytest.raises(ConfigError, match="capacity must be from 1 to 100"):
        letstalk.avatar_server(avatar, capacity=capacity)


def test_bad_session_options_are_refused_before_a_job_comes():
    with fake_avatar() as avatar, pytest.raises(ConfigError, match="max_hops"):
        letstalk.avatar_server(avatar, session_options={"max_hops": 0})
