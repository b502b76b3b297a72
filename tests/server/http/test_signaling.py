"""Real WebRTC peers against the server, in one process: media, messages, capacity, isolation."""

import asyncio
import logging
import time

import numpy as np
import pytest
from support.server_fakes import BACKDROPS, Painter, Peer, Voice, portrait_jpeg, serving, tone
from support.transport_stage import SenderClock

from letstalk_server.auth import LOCAL
from letstalk_server.settings import Settings


@pytest.fixture(autouse=True)
async def no_task_is_left():
    yield
    left = {task for task in asyncio.all_tasks() if task.get_name().startswith("session")}
    if left:
        _, left = await asyncio.wait(left, timeout=1)
    assert not left


def is_like(colour, name):
    return np.abs(colour - BACKDROPS[name]).max() < 25


def loudness(frame):
    return float(np.abs(frame.to_ndarray().astype(np.float32)).mean())


async def free(app):
    """Wait until all sessions have ended by themselves."""
    sessions = app.state.sessions
    async with asyncio.timeout(20):
        await asyncio.gather(*[sessions.wait_ended(session) for session in sessions])
    assert len(app.state.sessions) == 0


async def test_picture_and_sound_arrive_before_anyone_speaks():
    async with serving() as (_, client):
        peer = await Peer().join(client)
        await peer.until(lambda: len(peer.video) > 12 and len(peer.audio) > 25)
        assert is_like(peer.corner(), "amber")
        assert all(frame.width == 512 for frame in peer.video)
        steps = np.diff([frame.pts for frame in peer.video])
        assert (steps > 0).all() and (steps % 3600 == 0).all()
        assert max(loudness(frame) for frame in peer.audio[5:]) < 5
        await peer.close()


async def test_the_voice_comes_back_with_the_moving_mouth():
    voice = np.concatenate([tone(0.6), np.zeros(28_800, np.int16)])
    async with serving() as (_, client):
        peer = await Peer(Voice(voice)).join(client)
        await peer.until(lambda: peer.said("avatar.idle") and len(peer.said("avatar.speaking")) > 1)
        loud = [loudness(frame) for frame in peer.audio]
        assert max(loud) > 3000
        assert max(mouth_openings(peer.video)) > 0.05
        await peer.close()


def mouth_openings(frames):
    """Return the dark share of the mouth region, above the minimum of all frames."""
    dark = [
        float((frame.to_ndarray(format="rgb24")[310:430, 200:312].max(-1) < 110).mean())
        for frame in frames
    ]
    return np.array(dark) - min(dark)


async def test_sound_and_picture_of_one_moment_are_one_moment_for_the_receiver():
    """Measured as browsers do: sender reports map the time of each track to one wall clock."""
    voice = np.concatenate([tone(0.4), np.zeros(38_400, np.int16)])
    async with serving() as (_, client):
        peer = Peer(Voice(voice))
        clocks = {kind: SenderClock(peer.pc, kind) for kind in ("audio", "video")}
        await peer.join(client)
        await peer.until(lambda: len(peer.said("avatar.idle")) > 3 and all(clocks.values()))
        opened = onsets(peer.video, mouth_openings(peer.video) > 0.02)
        heard = onsets(peer.audio, [loudness(frame) > 1000 for frame in peer.audio])
        sights = np.array([clocks["video"].wall_s(frame.pts) for frame in opened])
        sounds = np.array([clocks["audio"].wall_s(frame.pts) for frame in heard])
        skews = [float(sounds[np.abs(sounds - sight).argmin()] - sight) for sight in sights]
        assert len(skews) >= 2 and abs(np.median(skews)) < 0.1, skews
        await peer.close()


def onsets(frames, states):
    """Return the frames at which the state becomes true."""
    states = np.asarray(states)
    return [frames[index + 1] for index in np.flatnonzero(~states[:-1] & states[1:])]


async def test_an_interrupt_is_answered_and_the_session_goes_on():
    async with serving() as (_, client):
        peer = await Peer(Voice(tone(1.0))).join(client)
        await peer.until(lambda: peer.said("avatar.speaking"))
        peer.send({"type": "avatar.interrupt"})
        await peer.until(lambda: peer.said("avatar.interrupted"))
        answer = peer.said("avatar.interrupted")[0]
        assert answer["played_ms"] > 0 and answer["dropped_ms"] >= 0
        count = len(peer.video)
        await peer.until(lambda: len(peer.video) > count + 10)
        await peer.close()


async def test_hostile_messages_are_answered_and_end_nothing():
    async with serving() as (_, client):
        peer = await Peer().join(client)
        hostile = [b"\x00" * 101, "", "{", "[]", '{"type": "rm -rf"}', "x" * 9000]
        hostile += ['{"type": "avatar.select", "avatar": "nobody"}']
        for message in hostile:
            peer.send(message)
        await peer.until(lambda: len(peer.said("session.error")) == len(hostile))
        codes = [message["code"] for message in peer.said("session.error")]
        assert codes == ["bad-audio"] + ["bad-message"] * 5 + ["unknown-avatar"]
        assert not any(message["fatal"] for message in peer.said("session.error"))
        peer.send({"type": "session.ping"})
        count = len(peer.video)
        await peer.until(lambda: peer.said("session.pong") and len(peer.video) > count + 5)
        await peer.close()


async def test_another_avatar_is_shown_on_the_same_tracks():
    async with serving() as (_, client):
        peer = await Peer().join(client, avatar="amber")
        await peer.until(lambda: peer.video and is_like(peer.corner(), "amber"))
        peer.send({"type": "avatar.select", "avatar": "blue"})
        await peer.until(lambda: is_like(peer.corner(), "blue"))
        upload = (
            await client.post("/v1/avatars?consent=true", content=portrait_jpeg((20, 140, 40)))
        ).json()
        for name in ("amber", "blue", "amber"):  # of several wishes the last one counts
            peer.send({"type": "avatar.select", "avatar": name})
        peer.send({"type": "avatar.select", "portrait": upload["portrait"]})
        await peer.until(lambda: np.abs(peer.corner() - (20, 140, 40)).max() < 25)
        await peer.close()


async def test_a_peer_that_closes_gives_its_place_back():
    async with serving(Settings(max_sessions=1)) as (app, client):
        for _ in range(3):
            peer = await Peer().join(client)
            assert len(app.state.sessions) == 1
            await peer.close()
            await free(app)


async def test_a_peer_that_falls_silent_gives_its_place_back():
    async with serving(Settings(heartbeat_timeout_s=0.6, grace_s=0.1)) as (app, client):
        peer = await Peer(ping_s=0).join(client)
        await free(app)
        await peer.close()


async def test_a_page_whose_messages_are_late_stays_while_its_packets_arrive():
    async with serving(Settings(heartbeat_timeout_s=1.5, grace_s=0.1)) as (app, client):
        peer = await Peer(Voice(tone(1.0)), ping_s=0).join(client)
        started_s = time.monotonic()
        await free(app)
        assert time.monotonic() - started_s > 2.2, "its packets did not count"
        await peer.close()


async def test_a_peer_that_never_connects_gives_its_place_back():
    async with serving(Settings(connect_timeout_s=0.3, grace_s=0.1)) as (app, client):
        peer = Peer()
        answer = await client.post("/v1/offer", json=await peer.offer())
        assert answer.status_code == 201
        await free(app)
        await peer.close()


async def test_a_session_may_be_ended_from_outside_and_by_message():
    async with serving() as (app, client):
        peer = await Peer().join(client)
        assert (await client.delete(f"/v1/sessions/{peer.session}")).status_code == 204
        assert len(app.state.sessions) == 0
        assert (await client.delete(f"/v1/sessions/{peer.session}")).status_code == 404
        await peer.close()
        other = await Peer().join(client)
        other.send({"type": "session.close"})
        await free(app)
        await other.close()


async def test_a_session_ends_when_its_time_is_over_and_says_so():
    async with serving(Settings(max_session_s=2)) as (app, client):
        peer = await Peer().join(client)
        await peer.until(lambda: peer.said("session.warning"))
        await peer.until(lambda: peer.said("session.error"))
        assert peer.said("session.error")[0]["code"] == "session-over"
        await free(app)
        await peer.close()


async def test_a_full_server_says_so_and_when_to_come_back():
    async with serving(Settings(max_sessions=1)) as (_, client):
        peer, late = await Peer().join(client), Peer()
        answer = await client.post("/v1/offer", json=await late.offer())
        assert answer.status_code == 503 and answer.json()["code"] == "at-capacity"
        assert int(answer.headers["retry-after"]) > 0
        await late.close()
        await peer.close()


async def test_two_sessions_do_not_mix():
    async with serving() as (_, client):
        loud = await Peer(Voice(tone(1.0))).join(client, avatar="amber")
        still = await Peer().join(client, avatar="blue")
        await loud.until(lambda: loud.said("avatar.speaking"))
        count = len(still.video)
        await still.until(lambda: len(still.video) > count + 15)
        assert is_like(loud.corner(), "amber") and is_like(still.corner(), "blue")
        assert not still.said("avatar.speaking")
        assert max(loudness(frame) for frame in still.audio[5:]) < 5
        await asyncio.gather(loud.close(), still.close())


async def test_bad_portraits_of_one_leave_the_other_alone():
    async with serving() as (_, client):
        peer = await Peer().join(client)
        for data in (b"", b"text", portrait_jpeg()[:3000]):
            assert (await client.post("/v1/avatars?consent=true", content=data)).status_code == 422
            count = len(peer.video)
            await peer.until(lambda count=count: len(peer.video) > count + 3)
        await peer.close()


async def test_a_failing_session_ends_alone_and_tells_only_its_own_user(caplog):
    caplog.set_level(logging.DEBUG, logger="letstalk_server")
    pipeline = Painter(broken=(250, 0, 0))
    async with serving(pipeline=pipeline) as (app, client):
        healthy = await Peer().join(client)
        upload = (
            await client.post("/v1/avatars?consent=true", content=portrait_jpeg((250, 0, 0)))
        ).json()
        broken = await Peer().join(client)
        session = app.state.sessions.find(broken.session, LOCAL)
        broken.send({"type": "avatar.select", "portrait": upload["portrait"]})
        await broken.until(lambda: broken.said("session.error"))
        error = broken.said("session.error")[0]
        assert error["fatal"] and "secret" not in error["detail"]
        async with asyncio.timeout(20):
            await app.state.sessions.wait_ended(session)
        count = len(healthy.video)
        await healthy.until(lambda: len(healthy.video) > count + 10)
        assert not healthy.said("session.error")
        await asyncio.gather(healthy.close(), broken.close())
    assert "RuntimeError" in caplog.text and "secret" not in caplog.text


async def test_stopping_the_server_closes_everyone():
    async with serving() as (app, client):
        peers = [await Peer().join(client) for _ in range(2)]
        sessions = app.state.sessions
    assert len(sessions) == 0
    for peer in peers:
        await peer.close()
