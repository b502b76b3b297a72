"""Sessions without idling: what comes out is decided by what goes in, not by the time."""

import asyncio
import sys
import threading
import types
import wave

import numpy as np
import pytest
from support.fakes import (
    FRAME,
    HOP,
    LOOKAHEAD,
    FakePipeline,
    InlineWorker,
    TimedExecutor,
    TimedWorker,
    paint,
    portrait,
)
from support.virtual_time import run, run_real

from letstalk_rt.audio.resample import Resampler
from letstalk_rt.errors import AudioFormatError, ConfigError, EngineError, SessionClosed
from letstalk_rt.inference.worker import ModelWorker
from letstalk_rt.session.avatar import Avatar, AvatarSession
from letstalk_rt.types import AVFrame, Interrupted, SegmentEnd

RATE = 16_000
DELAY = LOOKAHEAD * FRAME


def speech(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)


def steady(hops, level):
    return np.full(hops * HOP, level, np.float32)


def offline(pipeline=None, worker=None, **options):
    worker = worker or InlineWorker(pipeline or FakePipeline())
    return AvatarSession(worker, portrait(), idle=False, **options)


async def until_end(session):
    frames = []
    async for item in session:
        if isinstance(item, SegmentEnd):
            return frames
        frames.append(item)
    return frames


async def say(session, pcm, chunk=999, rate=RATE):
    for start in range(0, len(pcm), chunk):
        await session.push_audio(pcm[start : start + chunk], rate)
    await session.end_segment()


async def hear(session, pcm, chunk=999, rate=RATE):
    """The frames of one segment, read while it is pushed."""
    frames, _ = await asyncio.gather(until_end(session), say(session, pcm, chunk, rate))
    return frames


async def settle():
    """Let every task go on until it must wait."""
    await asyncio.sleep(1)


def sound(frames):
    return np.concatenate([frame.pcm for frame in frames])


def check_pictures(frames, face=0):
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb, paint(frame.pcm, face))


# Frames and their sound


@pytest.mark.parametrize("chunk", [1, 7 * HOP], ids=lambda chunk: f"by{chunk}")
def test_every_frame_comes_once_with_its_own_sound(chunk):
    async def body():
        pcm = speech(5 * HOP + 700)
        async with offline() as session:
            frames = await hear(session, pcm, chunk)
        assert [frame.index for frame in frames] == list(range(LOOKAHEAD + 5 * 4 + 2))
        np.testing.assert_array_equal(sound(frames)[DELAY:][: pcm.size], pcm)
        assert not sound(frames)[:DELAY].any()
        assert {(frame.segment_id, frame.epoch) for frame in frames} == {(0, 0)}
        check_pictures(frames)

    run(body())


def test_a_thread_gives_the_same_frames():
    async def body():
        pcm = speech(5 * HOP + 700)
        worker = ModelWorker(FakePipeline())
        async with offline(worker=worker) as session:
            frames = await hear(session, pcm)
        worker.shutdown()
        np.testing.assert_array_equal(sound(frames)[DELAY:][: pcm.size], pcm)
        check_pictures(frames)

    run_real(body())


@pytest.mark.parametrize("count", [1, FRAME, 2 * FRAME + 1, HOP + 1])
def test_the_end_of_speech_is_shown_before_the_segment_ends(count):
    async def body():
        async with offline() as session:
            frames = await hear(session, speech(count))
        assert len(frames) == LOOKAHEAD + -(-count // FRAME)
        np.testing.assert_array_equal(sound(frames)[DELAY:][:count], speech(count))

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
            part = sound([frame for frame in shown if frame.segment_id == i])
            start = int(np.flatnonzero(part == pcm[0])[0])
            np.testing.assert_array_equal(part[start : start + pcm.size], pcm)
        check_pictures(shown)

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
            frames = await hear(session, stereo, chunk=961, rate=48_000)
        resampler = Resampler(48_000)
        expected = np.concatenate([resampler.push(stereo), resampler.flush()])
        np.testing.assert_array_equal(sound(frames)[DELAY:][: expected.size], expected)
        assert not sound(frames)[DELAY + expected.size :].any()

    run(body())


def test_the_rate_may_change_while_speaking():
    async def body():
        async with offline() as session:
            reading = asyncio.create_task(until_end(session))
            for rate in (48_000, 24_000, 16_000):
                await session.push_audio(np.full(rate, 0.5, np.float32), rate)
            await session.end_segment()
            frames = await reading
        heard = sound(frames)[DELAY:]
        assert np.count_nonzero(np.abs(heard) > 0.1) == pytest.approx(3 * RATE, abs=20)

    run(body())


def test_two_sessions_of_one_model_do_not_mix():
    async def body():
        worker = TimedWorker(FakePipeline(), 0.06)
        faces = {10: speech(9 * HOP, 1), 20: speech(9 * HOP, 2)}
        sessions = {f: AvatarSession(worker, portrait(f), idle=False) for f in faces}

        async def one(face):
            async with sessions[face] as session:
                return await hear(session, faces[face])

        for face, frames in zip(faces, await asyncio.gather(*map(one, faces)), strict=True):
            np.testing.assert_array_equal(sound(frames)[DELAY:][: 9 * HOP], faces[face])
            check_pictures(frames, face)

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
        np.testing.assert_array_equal(sound(frames)[DELAY:][: expected.size], expected)

    run(body())


# Interrupt


def test_an_interrupt_drops_old_speech_and_keeps_the_count():
    async def body():
        pipeline = FakePipeline()
        async with offline(pipeline) as session:
            talk = asyncio.create_task(session.push_audio(steady(10, 0.25), RATE))
            shown = [await anext(session) for _ in range(5)]
            result = session.interrupt()
            await talk
            assert result == Interrupted(played_ms=3 * 40, dropped_ms=10 * 160 - 3 * 40)
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=0)
            assert session.metrics.drops == 3
            assert session.epoch == 2
            new = await hear(session, steady(1, 0.5))
        assert [frame.index for frame in shown + new] == list(range(5 + LOOKAHEAD + 4))
        assert {(frame.segment_id, frame.epoch) for frame in new} == {(1, 2)}
        assert not sound(new[:LOOKAHEAD]).any(), "old sound after an interrupt"
        np.testing.assert_array_equal(sound(new[LOOKAHEAD:]), steady(1, 0.5))
        check_pictures(new)
        assert pipeline.states[0].interrupts == 1

    run(body())


def test_frames_of_a_step_that_ran_during_an_interrupt_are_dropped():
    async def body():
        pipeline = FakePipeline()
        async with offline(worker=TimedWorker(pipeline, 0.1)) as session:
            await session.push_audio(steady(1, 0.25), RATE)
            await asyncio.sleep(0.15)  # the state is made, the step runs
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=160)
            await asyncio.sleep(1)
            assert pipeline.steps == 1
            assert session.metrics.drops == 4
            new = await hear(session, steady(1, 0.5))
        assert set(sound(new)) == {0, 0.5}
        assert new[0].index == 0

    run(body())


def test_an_interrupt_while_the_model_forgets_is_obeyed_too():
    async def body():
        pipeline = FakePipeline()
        async with offline(worker=TimedWorker(pipeline, 0.1)) as session:
            await asyncio.sleep(0.15)
            session.interrupt()
            await session.push_audio(steady(1, 0.25), RATE)
            await asyncio.sleep(0.05)  # pipeline.interrupt runs
            session.interrupt()
            new = await hear(session, steady(1, 0.5))
        assert set(sound(new)) == {0, 0.5}
        check_pictures(new)

    run(body())


def test_dropped_counts_frames_hops_the_rest_and_callers_that_wait():
    async def body():
        async with offline(max_hops=1) as session:
            callers = [
                asyncio.create_task(session.push_audio(steady(3, 0.25), RATE)),
                asyncio.create_task(session.push_audio(speech(2 * 48_000) * 0.1, 48_000)),
            ]
            await settle()
            held_ms = 13  # what the resampler holds is not counted
            assert session.interrupt().dropped_ms == pytest.approx(3 * 160 + 2000, abs=held_ms)
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=0)
            await asyncio.gather(*callers)
            assert session.backlog_ms == 0
            await session.end_segment()
            assert await anext(session) == SegmentEnd(1, epoch=2)

    run(body())


def test_an_interrupt_forgets_what_the_resampler_holds():
    async def body():
        async with offline() as session:
            await session.push_audio(np.full(480, 0.9, np.float32), 48_000)
            session.interrupt()
            new = await hear(session, np.zeros(4800, np.float32), rate=48_000)
        assert not sound(new).any()

    run(body())


def test_an_interrupt_while_the_rate_changes_leaves_no_old_sound():
    async def body():
        async with offline(max_hops=1) as session:
            await session.push_audio(np.ones(24_000, np.float32), 48_000)
            await settle()
            change = asyncio.create_task(session.push_audio(np.ones(24_000, np.float32), 24_000))
            await settle()
            assert not change.done()
            session.interrupt()
            await change
            new = await hear(session, np.zeros(2400, np.float32), rate=24_000)
        assert not sound(new).any()

    run(body())


def test_played_begins_anew_with_each_segment():
    async def body():
        async with offline() as session:
            await hear(session, steady(1, 0.5))
            assert session.interrupt() == Interrupted(played_ms=0, dropped_ms=0)
            await session.push_audio(steady(1, 0.5), RATE)
            for _ in range(3):
                await anext(session)
            assert session.interrupt() == Interrupted(played_ms=40, dropped_ms=120)

    run(body())


def test_an_end_that_waited_through_an_interrupt_is_dropped():
    async def body():
        async with offline(max_hops=1) as session:
            talk = asyncio.create_task(session.push_audio(steady(20, 0.25), RATE))
            await settle()
            end = asyncio.create_task(session.end_segment())
            await settle()
            session.interrupt()
            await asyncio.gather(talk, end)
            await session.end_segment()
            assert await anext(session) == SegmentEnd(1, epoch=1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(session)

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
                await hear(bad, steady(1, 0.5))
            assert len(await hear(good, steady(1, 0.5))) == LOOKAHEAD + 4

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
        (np.zeros(8, np.float32), 22_050),
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
            frames = await hear(session, steady(1, 0.5))
        np.testing.assert_array_equal(
            sound(frames)[DELAY:], np.concatenate([steady(1, 0.25), steady(1, 0.5)])
        )

    run(body())


def test_a_queue_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="max_hops"):
        offline(max_hops=0)


def test_stages_are_measured():
    async def body():
        async with offline(worker=TimedWorker(FakePipeline(), 0.06)) as session:
            await hear(session, steady(5, 0.5))
        stages = session.metrics.stages_ms()
        assert set(stages) == {"queue", "step", "wait", "hop", "engine"}
        assert stages["step"].p50 == pytest.approx(60)

    run(body())


# Avatar


@pytest.fixture
def avatar():
    with Avatar.from_pipeline(FakePipeline(), portrait(30)) as avatar:
        yield avatar


def test_the_sound_of_a_rendering_is_the_audio(avatar):
    pcm = speech(3 * HOP + 100)
    frames = list(avatar.render(pcm))
    assert [frame.index for frame in frames] == list(range(13))
    np.testing.assert_array_equal(sound(frames)[: pcm.size], pcm)
    assert not sound(frames)[pcm.size :].any()
    check_pictures(frames, face=30)


@pytest.mark.parametrize("count", [1, HOP, HOP + 1])
def test_a_rendering_has_as_many_frames_as_the_audio(avatar, count):
    assert len(list(avatar.render(speech(count)))) == -(-count // FRAME)


def test_rendering_in_pieces_equals_the_whole(avatar):
    pcm = speech(48_000)
    resampler = Resampler(48_000)
    expected = np.concatenate([resampler.push(pcm), resampler.flush()])
    whole = list(avatar.render(pcm, 48_000))
    np.testing.assert_array_equal(sound(whole)[: expected.size], expected)
    pieces = list(avatar.render((pcm[i : i + 777] for i in range(0, pcm.size, 777)), 48_000))
    np.testing.assert_array_equal(sound(pieces), sound(whole))
    for one, other in zip(pieces, whole, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)


def test_a_rendering_equals_a_session(avatar):
    async def body():
        async with avatar.session(idle=False) as session:
            return await hear(session, pcm)

    pcm = speech(4 * HOP + 9)
    live = asyncio.run(body())[LOOKAHEAD:]
    rendered = list(avatar.render(pcm))
    np.testing.assert_array_equal(sound(live), sound(rendered))
    np.testing.assert_array_equal([f.rgb for f in live], [f.rgb for f in rendered])


@pytest.mark.parametrize("channels", [1, 6])
def test_files_of_any_rate_are_rendered(avatar, tmp_path, channels):
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes(np.full((22_050, channels), 8192, np.int16).tobytes())
    for source in (path, str(path)):
        frames = list(avatar.render(source))
        assert len(frames) == 25
        assert sound(frames)[8000] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros(0, np.float32), "empty"),
        ([], "empty"),
        (np.array([np.nan], np.float32), "NaN"),
        ([np.zeros(9000, np.float32), np.array([np.inf], np.float32)], "NaN"),
        (np.zeros(9), "float64"),
    ],
)
def test_bad_audio_is_not_rendered(avatar, audio, message):
    with pytest.raises(AudioFormatError, match=message):
        list(avatar.render(audio))
    assert len(list(avatar.render(speech(HOP)))) == 4, "the avatar goes on"


def test_a_bad_rate_or_file_is_refused_before_the_first_frame(avatar, tmp_path):
    with pytest.raises(AudioFormatError, match="8000 to 192000"):
        avatar.render(speech(9), 100)
    with pytest.raises(AudioFormatError):
        avatar.render(tmp_path / "missing.wav")


@pytest.mark.parametrize("fail_at, frames_before", [(-1, 0), (1, 2)])
def test_a_failed_step_ends_a_rendering(fail_at, frames_before):
    with Avatar.from_pipeline(FakePipeline(fail_at), portrait()) as avatar:
        frames = []
        with pytest.raises(EngineError) as caught:
            for frame in avatar.render(steady(9, 0.5)):
                frames.append(frame)
        assert len(frames) == frames_before
        assert "on fire" in str(caught.value.__cause__)


def test_the_next_window_is_made_while_the_caller_uses_the_last():
    pipeline = FakePipeline()
    frames = Avatar(InlineWorker(pipeline), portrait()).render(steady(100, 0.5))
    next(frames)
    assert pipeline.steps == 2
    for _ in range(2):
        next(frames)
    assert pipeline.steps == 3
    frames.close()


def test_all_work_is_done_in_one_thread_of_the_avatar():
    async def body(avatar):
        async with avatar.session(idle=False) as one, avatar.session(idle=False) as other:
            await asyncio.gather(hear(one, speech(9000)), hear(other, speech(9000)))
            one.interrupt()
            await hear(one, speech(9000))

    pipeline = FakePipeline()
    with Avatar.from_pipeline(pipeline, portrait()) as avatar:
        run_real(body(avatar))
        list(avatar.render(speech(9000)))
        list(avatar.with_portrait(portrait(9)).render(speech(9000)))
    assert len(pipeline.threads) == 1
    assert pipeline.threads.pop().name.startswith("letstalk-model")
    assert not [t for t in threading.enumerate() if t.name.startswith("letstalk-model")]


def test_another_face_on_the_same_model():
    with Avatar.from_pipeline(FakePipeline(), portrait(1)) as avatar:
        other = avatar.with_portrait(portrait(2))
        other.close()  # the thread is not its own
        check_pictures(list(avatar.render(speech(HOP))), face=1)
        check_pictures(list(other.render(speech(HOP))), face=2)


def test_a_worker_that_was_lent_is_not_ended():
    pipeline = FakePipeline()
    worker = ModelWorker(pipeline)
    avatar = Avatar.from_pipeline(pipeline, portrait(), worker=worker)
    avatar.close()
    assert len(list(avatar.render(speech(HOP)))) == 4
    assert pipeline.threads == {worker.submit(threading.current_thread).result(20)}
    worker.shutdown()


def test_an_avatar_is_closed_twice(avatar):
    avatar.close()
    avatar.close()


def test_loading_brings_model_and_portrait_together(monkeypatch):
    pipeline = FakePipeline()
    pipeline.finder = object()
    calls = []

    class AvatarPipeline:
        @classmethod
        def load(cls, **options):
            calls.append(options)
            return pipeline

    def prepare_portrait(source, finder, *, size):
        calls.append((source, finder, size))
        return portrait(77)

    fakes = {
        "letstalk_rt.inference.pipeline": {"AvatarPipeline": AvatarPipeline},
        "letstalk_rt.portrait.image": {"prepare_portrait": prepare_portrait},
    }
    for name, content in fakes.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    with Avatar.load("me.jpg", "tiny", "cpu", size=64) as avatar:
        options = {"preset": "tiny", "device": "cpu", "steps": None, "threads": None}
        assert calls == [options, ("me.jpg", pipeline.finder, 64)]
        frame = next(iter(avatar.render(speech(HOP))))
    assert isinstance(frame, AVFrame)
    assert frame.rgb[0, 0, 0] == 77
