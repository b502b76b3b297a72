"""Sessions without idling: their output depends only on their input, not on time."""

import asyncio

import numpy as np
import pytest
from support.fakes import (
    FRAME,
    HOP,
    LOOKAHEAD,
    FakePipeline,
    TimedExecutor,
    TimedWorker,
    portrait,
)
from support.sessions import (
    DELAY,
    RATE,
    check_frames,
    joined_pcm,
    offline,
    record,
    say,
    settle,
    speech,
    steady,
    until_end,
)
from support.virtual_time import run, run_real

from letstalk_rt.audio.resample import Resampler
from letstalk_rt.errors import AudioFormatError, ConfigError, EngineError, SessionClosed
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.session.avatar import AvatarSession
from letstalk_rt.types import SegmentEnd

# Frames and their audio


@pytest.mark.parametrize("chunk", [1, 7 * HOP], ids=lambda chunk: f"by{chunk}")
def test_every_frame_comes_once_with_its_own_sound(chunk):
    async def body():
        pcm = speech(5 * HOP + 700)
        async with offline() as session:
            frames = await record(session, pcm, chunk)
        assert [frame.index for frame in frames] == list(range(LOOKAHEAD + 5 * 4 + 2))
        np.testing.assert_array_equal(joined_pcm(frames)[DELAY:][: pcm.size], pcm)
        assert not joined_pcm(frames)[:DELAY].any()
        assert {(frame.segment_id, frame.epoch) for frame in frames} == {(0, 0)}
        check_frames(frames)

    run(body())


def test_a_thread_gives_the_same_frames():
    async def body():
        pcm = speech(5 * HOP + 700)
        worker = ModelWorker(FakePipeline())
        async with offline(worker=worker) as session:
            frames = await record(session, pcm)
        worker.shutdown()
        np.testing.assert_array_equal(joined_pcm(frames)[DELAY:][: pcm.size], pcm)
        check_frames(frames)

    run_real(body())


@pytest.mark.parametrize("count", [1, FRAME, 2 * FRAME + 1, HOP + 1])
def test_the_end_of_speech_is_shown_before_the_segment_ends(count):
    async def body():
        async with offline() as session:
            frames = await record(session, speech(count))
        assert len(frames) == LOOKAHEAD + -(-count // FRAME)
        np.testing.assert_array_equal(joined_pcm(frames)[DELAY:][:count], speech(count))

    run(body())


def test_segments_follow_each_other():
    async def body():
        texts = [speech(HOP + 5, seed) for seed in (1, 2, 3)]

        async def talk(session):
            for pcm in texts:
                await say(session, pcm)

        async with offline() as session:
            talking = asyncio.create_task(talk(session))
            shown, ends = [], []
            while len(ends) < 3:
                item = await anext(session)
                if isinstance(item, SegmentEnd):
                    ends.append(item)
                    assert item.segment_id == shown[-1].segment_id
                else:
                    assert item.segment_id == len(ends)
                    shown.append(item)
            await talking
        assert ends == [SegmentEnd(i, epoch=0) for i in range(3)]
        assert [frame.index for frame in shown] == list(range(len(shown)))
        for i, pcm in enumerate(texts):
            part = joined_pcm([frame for frame in shown if frame.segment_id == i])
            start = int(np.flatnonzero(part == pcm[0])[0])
            np.testing.assert_array_equal(part[start : start + pcm.size], pcm)
        check_frames(shown)

    run(body())


def test_a_segment_without_speech_ends_at_once():
    async def body():
        pipeline = FakePipeline()
        async with offline(pipeline) as session:
            await session.push_audio(np.zeros(0, np.float32), RATE)
            await session.end_segment()
            assert await anext(session) == SegmentEnd(0, epoch=0)
        assert pipeline.steps == 0

    run(body())


def test_speech_of_other_rates_is_resampled_in_one_piece():
    async def body():
        pcm = (speech(48_000) * 32767).astype(np.int16)
        stereo = np.stack([pcm, pcm // 2], axis=1)
        async with offline() as session:
            frames = await record(session, stereo, chunk=961, rate=48_000)
        resampler = Resampler(48_000)
        expected = np.concatenate([resampler.push(stereo), resampler.flush()])
        np.testing.assert_array_equal(joined_pcm(frames)[DELAY:][: expected.size], expected)
        assert not joined_pcm(frames)[DELAY + expected.size :].any()

    run(body())


def test_the_rate_may_change_while_speaking():
    async def body():
        async with offline() as session:
            reading = asyncio.create_task(until_end(session))
            for rate in (48_000, 22_050, 44_101, 16_000):
                await session.push_audio(np.full(rate, 0.5, np.float32), rate)
            await session.end_segment()
            frames = await reading
        heard = joined_pcm(frames)[DELAY:]
        assert np.count_nonzero(np.abs(heard) > 0.1) == pytest.approx(4 * RATE, abs=30)

    run(body())


def test_two_sessions_of_one_model_do_not_mix():
    async def body():
        worker = TimedWorker(FakePipeline(), 0.06)
        faces = {10: speech(9 * HOP, 1), 20: speech(9 * HOP, 2)}
        sessions = {f: AvatarSession(worker, portrait(f), idle=False) for f in faces}

        async def one(face):
            async with sessions[face] as session:
                return await record(session, faces[face])

        for face, frames in zip(faces, await asyncio.gather(*map(one, faces)), strict=True):
            np.testing.assert_array_equal(joined_pcm(frames)[DELAY:][: 9 * HOP], faces[face])
            check_frames(frames, face)

    run(body())


def test_the_seed_reaches_the_model():
    async def body():
        pipeline = FakePipeline()
        async with offline(pipeline, seed=7):
            await settle()
        assert pipeline.states[0].options.seed == 7

    run(body())


# Back-pressure


def test_full_queues_make_the_speaker_wait():
    async def body():
        pipeline = FakePipeline()
        async with offline(pipeline, max_hops=2) as session:
            talk = asyncio.create_task(session.push_audio(steady(100, 0.5), RATE))
            await settle()
            assert not talk.done()
            assert pipeline.steps == 2, "a window that waits, and one beyond"
            for _ in range(5):
                await anext(session)
            await settle()
            assert pipeline.steps == 3
            assert not talk.done()
            talk.cancel()
            await asyncio.wait([talk])

    run(body())


def test_a_speaker_that_gives_up_leaves_no_debt():
    async def body():
        async with offline(max_hops=1) as session:
            talk = asyncio.create_task(session.push_audio(steady(100, 0.5), RATE))
            await settle()
            assert session.backlog_ms == 100 * 160
            talk.cancel()
            await asyncio.wait([talk])
            taken_ms = session.backlog_ms
            assert taken_ms <= 4 * 160
            await asyncio.gather(until_end(session), session.end_segment())
            assert session.backlog_ms == 0

    run(body())


def test_speech_of_two_callers_is_taken_in_turn():
    async def body():
        async with offline(max_hops=1) as session:
            first = asyncio.create_task(session.push_audio(steady(9, 0.25), RATE))
            await settle()
            second = asyncio.create_task(say(session, steady(9, 0.5), chunk=9 * HOP))
            frames = await until_end(session)
            await asyncio.gather(first, second)
        levels = [frame.pcm[0] for frame in frames[LOOKAHEAD:]]
        assert levels == [0.25] * 36 + [0.5] * 36

    run(body())


def test_callers_of_different_rates_do_not_cut_each_other():
    async def body():
        given = [(speech(48_000, 1), 48_000), (speech(24_000, 2), 24_000)]
        async with offline(max_hops=1) as session:
            talks = [asyncio.create_task(session.push_audio(*one)) for one in given]
            await settle()
            end = asyncio.create_task(session.end_segment())
            frames = await until_end(session)
            await asyncio.gather(*talks, end)
        expected = []
        for pcm, rate in given:
            resampler = Resampler(rate)
            expected += [resampler.push(pcm), resampler.flush()]
        expected = np.concatenate(expected)
        np.testing.assert_array_equal(joined_pcm(frames)[DELAY:][: expected.size], expected)

    run(body())


# Failure and closing


@pytest.mark.parametrize("fail_at, frames_before", [(-1, 0), (0, 0), (2, 8)])
def test_a_failed_step_reaches_reader_and_speaker(fail_at, frames_before):
    async def body():
        async with offline(FakePipeline(fail_at), max_hops=1) as session:
            talk = asyncio.create_task(session.push_audio(steady(100, 0.5), RATE))
            frames = []
            with pytest.raises(EngineError) as caught:
                async for item in session:
                    frames.append(item)
            assert len(frames) == frames_before
            assert "on fire" in str(caught.value.__cause__)
            with pytest.raises(SessionClosed, match="failed"):
                await talk
            with pytest.raises(SessionClosed, match="failed"):
                await session.end_segment()
            with pytest.raises(EngineError):
                await anext(session)
            assert session.closed

    run(body())


def test_a_failure_nobody_reads_is_quiet_when_closed():
    async def body():
        async with offline(FakePipeline(fail_at=0)) as session:
            await session.push_audio(steady(1, 0.5), RATE)
            await settle()

    run(body())


def test_one_session_fails_and_the_other_goes_on():
    async def body():
        executor = TimedExecutor(0.06)
        workers = [TimedWorker(FakePipeline(at), 0.06, executor) for at in (0, None)]
        async with offline(worker=workers[0]) as bad, offline(worker=workers[1]) as good:
            with pytest.raises(EngineError):
                await record(bad, steady(1, 0.5))
            assert len(await record(good, steady(1, 0.5))) == LOOKAHEAD + 4

    run(body())


def test_close_twice_and_before_opening():
    async def body():
        session = offline()
        await session.aclose()
        await session.aclose()
        with pytest.raises(SessionClosed):
            await session.__aenter__()
        async with offline() as session:
            await session.aclose()
            assert session.closed

    run(body())


def test_closing_wakes_reader_and_speaker():
    async def body():
        async with offline(max_hops=1) as session:
            reading = asyncio.create_task(until_end(session))
            await settle()
            await session.aclose()
            assert await reading == []
        async with offline(max_hops=1) as session:
            talk = asyncio.create_task(session.push_audio(steady(100, 0.5), RATE))
            await settle()
            await session.aclose()
            with pytest.raises(SessionClosed):
                await talk
            assert await until_end(session) == [], "what waited is dropped"

    run(body())


def test_closing_while_the_model_works_does_not_wait_for_it():
    async def body():
        loop = asyncio.get_running_loop()
        async with offline(worker=TimedWorker(FakePipeline(), 30)):
            await asyncio.sleep(1)
            started_s = loop.time()
        assert loop.time() - started_s < 1

    run(body())


def test_a_session_that_is_not_open_says_how_to_open_it():
    async def body():
        session = offline()
        empty = np.zeros(0, np.float32)
        for call in (session.push_audio(empty, RATE), session.end_segment()):
            with pytest.raises(SessionClosed, match="async with"):
                await call
        with pytest.raises(SessionClosed, match="async with"):
            await anext(session)

    run(body())


@pytest.mark.parametrize(
    "pcm, rate",
    [
        (np.zeros(8), RATE),
        (np.array([0, np.nan], np.float32), RATE),
        (np.append(np.zeros(RATE, np.float32), np.float32(np.inf)), RATE),
        (np.zeros((2, 9), np.float32), RATE),
        (b"\0\0", RATE),
        (np.zeros(8, np.float32), 7_999),
        (np.zeros(8, np.float32), 22_050.5),
        (np.zeros(8, np.float32), None),
    ],
)
def test_bad_audio_is_refused_at_the_door_and_the_session_goes_on(pcm, rate):
    async def body():
        async with offline() as session:
            await session.push_audio(steady(1, 0.25), RATE)
            with pytest.raises(AudioFormatError):
                await session.push_audio(pcm, rate)
            assert session.backlog_ms == 160
            frames = await record(session, steady(1, 0.5))
        np.testing.assert_array_equal(
            joined_pcm(frames)[DELAY:], np.concatenate([steady(1, 0.25), steady(1, 0.5)])
        )

    run(body())


def test_a_queue_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="max_hops"):
        offline(max_hops=0)


def test_stages_are_measured():
    async def body():
        async with offline(worker=TimedWorker(FakePipeline(), 0.06)) as session:
            await record(session, steady(5, 0.5))
        stages = session.metrics.stages_ms()
        assert set(stages) == {"queue", "step", "wait", "hop", "engine"}
        assert stages["step"].p50 == pytest.approx(60)

    run(body())
