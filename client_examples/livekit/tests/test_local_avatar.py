"""The avatar in the agent's process, as a user in the room hears and sees it."""

import asyncio
import statistics
import time

import pytest
from support.agents import tone
from support.fake_avatar import SIZE
from support.stage import local_stage
from support.waiting import until

_POSITION_S = 0.04
"""How exact a playback position is: one video frame."""


async def test_the_avatar_joins_in_the_size_of_its_portrait(house, avatar):
    async with local_stage(house, avatar) as stage:
        await stage.user.until_seen(10)
        assert {(sight.width, sight.height) for sight in stage.user.sights} == {(SIZE, SIZE)}
        assert stage.avatar.avatar_identity == "agent"


async def test_an_idle_avatar_is_seen_and_not_heard(house, avatar):
    async with local_stage(house, avatar) as stage:
        await stage.user.until_seen(50)
        assert stage.user.loud_s == []
        assert stage.playback.started_s == stage.playback.finished == []
        assert not any(sight.is_bright for sight in stage.user.sights)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
async def test_a_segment_finishes_at_its_length(house, avatar, rate):
    async with local_stage(house, avatar, sample_rate=rate) as stage:
        for seconds in (1.0, 0.3):
            await stage.agent.say("", audio=tone(seconds, rate)).wait_for_playout()
            event, finished_s = stage.playback.finished[-1]
            assert event.playback_position == pytest.approx(seconds, abs=_POSITION_S)
            assert not event.interrupted
            took_s = finished_s - stage.playback.started_s[-1]
            assert took_s == pytest.approx(seconds, abs=_POSITION_S)
        assert len(stage.playback.started_s) == len(stage.playback.finished) == 2
        await until(lambda: stage.user.loud_since(0) > 1.2)
        await stage.user.until_quiet()
        assert stage.user.loud_since(0) == pytest.approx(1.3, abs=0.1)


async def test_speech_of_another_rate_than_the_output_is_heard(house, avatar):
    async with local_stage(house, avatar, sample_rate=16_000) as stage:
        await stage.agent.say("", audio=tone(0.5, 22_050)).wait_for_playout()
        event, _ = stage.playback.finished[-1]
        assert event.playback_position == pytest.approx(0.5, abs=_POSITION_S)


async def test_an_interrupted_segment_tells_how_much_was_heard(house, avatar):
    async with local_stage(house, avatar) as stage:
        off_s = []
        for _ in range(5):
            before = len(stage.user.loud_s)
            speech = stage.agent.say("", audio=tone(5.0))
            await stage.user.until_loud(0.4)
            await speech.interrupt(force=True)
            await speech.wait_for_playout()
            await stage.user.until_quiet()
            event, _ = stage.playback.finished[-1]
            assert event.interrupted
            heard_s = (len(stage.user.loud_s) - before) * 0.01
            off_s.append(abs(event.playback_position - heard_s))
        assert statistics.median(off_s) <= _POSITION_S


async def test_an_interrupt_is_heard_within_150_ms(house, avatar):
    async with local_stage(house, avatar) as stage:
        after_s = []
        for _ in range(5):
            speech = stage.agent.say("", audio=tone(5.0))
            await stage.user.until_loud(0.5)
            interrupted_s = time.monotonic()
            await speech.interrupt(force=True)
            await stage.user.until_quiet()
            after_s.append(stage.user.loud_since(interrupted_s))
        assert statistics.median(after_s) <= 0.15


async def test_after_an_interrupt_the_avatar_speaks_again(house, avatar):
    async with local_stage(house, avatar) as stage:
        first = stage.agent.say("", audio=tone(5.0))
        await stage.user.until_loud(0.2)
        await first.interrupt(force=True)
        await stage.agent.say("", audio=tone(0.6)).wait_for_playout()
        (cut, _), (whole, _) = stage.playback.finished
        assert cut.interrupted and not whole.interrupted
        assert whole.playback_position == pytest.approx(0.6, abs=_POSITION_S)


async def test_lips_and_voice_begin_together(house, avatar):
    async with local_stage(house, avatar) as stage:
        late_s = []
        for _ in range(5):
            since_s = time.monotonic()
            speech = stage.agent.say("", audio=tone(1.0))
            await stage.user.until_loud(0.2)
            seen_s = min(s.at_s for s in stage.user.sights if s.is_bright and s.at_s > since_s)
            heard_s = min(s for s in stage.user.loud_s if s > since_s)
            late_s.append(heard_s - seen_s)
            await speech.wait_for_playout()
            await stage.user.until_quiet()
        # Beyond what the client's jitter buffers add, until they have settled.
        assert min(late_s, key=abs) == pytest.approx(0.0, abs=0.08)


async def test_the_avatar_listens_while_the_user_speaks(house, avatar):
    async with local_stage(house, avatar) as stage:
        assert stage.avatar.session.state == "idle"
        speech = stage.agent.say("", audio=tone(5.0))
        await stage.user.until_loud()
        assert stage.avatar.session.state == "speaking"
        await speech.interrupt(force=True)
        await asyncio.sleep(0)
        assert stage.avatar.session.state == "listening"
