"""Sessions whose frames carry audio at a higher rate than the model hears."""

import asyncio

import numpy as np
import pytest
from support.fakes import FakePipeline, paint
from support.live_sessions import Screen, live_session
from support.sessions import DELAY, RATE, joined_pcm, offline, record, steady
from support.virtual_time import run

from letstalk_rt.errors import ConfigError
from letstalk_rt.types import SegmentEnd

HIGH_RATES = [24_000, 48_000]


def staircase(frames, rate, seed=0):
    """Return audio whose level changes with each frame, at any sample rate."""
    levels = np.random.default_rng(seed).uniform(-0.9, 0.9, frames).astype(np.float32)
    return np.repeat(levels, rate // 25)


def noise(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)


def check_aligned(frames):
    """Check that the model heard, in each frame, what the frame's audio says.

    The resampler's filter blurs the steps of a staircase, so the levels agree roughly.
    """
    for frame in frames:
        expected = int(paint(frame.pcm)[0, 0, 1])
        assert abs(int(frame.rgb[0, 0, 1]) - expected) <= 6, frame.index


@pytest.mark.parametrize("rate", HIGH_RATES)
def test_audio_at_the_output_rate_leaves_unchanged_and_aligned(rate):
    async def body():
        sound = staircase(20, rate)
        async with offline(output_sample_rate=rate) as session:
            frames = await record(session, sound, chunk=977, rate=rate)
        assert {frame.sample_rate for frame in frames} == {rate}
        assert {frame.pcm.size for frame in frames} == {rate // 25}
        delay = DELAY * rate // RATE
        np.testing.assert_array_equal(joined_pcm(frames)[delay:][: sound.size], sound)
        check_aligned(frames[2:])
        assert sum(frame.spoken for frame in frames) == sound.size

    run(body())


@pytest.mark.parametrize("output_rate", HIGH_RATES)
@pytest.mark.parametrize("rate", [16_000, 22_050, 44_101])
def test_audio_of_another_rate_is_resampled_and_stays_aligned(rate, output_rate):
    async def body():
        sound = np.repeat(np.linspace(-0.9, 0.9, 15, dtype=np.float32), rate // 25)
        async with offline(output_sample_rate=output_rate) as session:
            frames = await record(session, sound, chunk=500, rate=rate)
        check_aligned(frames)
        spoken = sum(frame.spoken for frame in frames)
        assert spoken == pytest.approx(sound.size * output_rate / rate, abs=4)

    run(body())


@pytest.mark.parametrize("rate", HIGH_RATES)
def test_segments_of_odd_length_stay_aligned_and_are_counted_exactly(rate):
    async def body():
        finished = []
        async with offline(output_sample_rate=rate) as session:
            session.on_event(
                lambda event: (
                    finished.append(event.played_ms) if event.type == "segment.finished" else None
                )
            )
            for seed, count in enumerate((7, 3_001, 5 * rate // 25, rate + 7)):
                sound = noise(count, seed)
                frames = await record(session, sound, chunk=331, rate=rate)
                heard = joined_pcm(frames)
                start = int(np.flatnonzero(heard)[0])
                np.testing.assert_array_equal(heard[start:][: count - 2], sound[: count - 2])
                assert start % (rate // 25) == 0, "a segment begins with a frame"
        assert finished == pytest.approx([0, 3001e3 / rate, 200, 1000], abs=1)

    run(body())


@pytest.mark.parametrize("rate", HIGH_RATES)
def test_after_an_interrupt_nothing_old_is_heard_and_new_speech_is_aligned(rate):
    async def body():
        async with offline(output_sample_rate=rate) as session:
            old = staircase(40, rate, seed=1)
            talk = asyncio.create_task(session.push_audio(old, rate))
            for _ in range(5):
                await anext(session)
            cut = session.interrupt()
            assert cut.played_ms == 120
            assert cut.dropped_ms == pytest.approx(1600 - 120, abs=40), "a resampler holds the rest"
            await talk
            sound = staircase(12, rate, seed=2)
            frames = await record(session, sound, chunk=1013, rate=rate)
        delay = DELAY * rate // RATE
        assert not joined_pcm(frames)[:delay].any()
        np.testing.assert_array_equal(joined_pcm(frames)[delay:][: sound.size], sound)
        check_aligned(frames[2:])

    run(body())


def test_the_rate_of_the_source_may_change_within_a_segment():
    async def body():
        async with offline(output_sample_rate=48_000) as session:
            for rate in (48_000, 22_050, 16_000):
                await session.push_audio(np.full(rate // 5, 0.5, np.float32), rate)
            await session.end_segment()
            frames = []
            async for item in session:
                if isinstance(item, SegmentEnd):
                    break
                frames.append(item)
        loud = np.count_nonzero(np.abs(joined_pcm(frames)) > 0.1)
        assert loud == pytest.approx(3 * 48_000 / 5, abs=60)

    run(body())


@pytest.mark.parametrize("rate", HIGH_RATES)
@pytest.mark.parametrize("ppm", [400, -400])
def test_drift_is_corrected_at_both_rates(rate, ppm):
    """A live source that is too fast or slow: levels of picture and sound agree to the end."""

    async def body():
        seconds, chunk = 60, rate // 50
        sound = staircase(seconds * 25, rate)
        async with live_session(step_s=0.03, output_sample_rate=rate) as session:
            screen = Screen(session)
            loop = asyncio.get_running_loop()
            started_s, pace = loop.time(), 1 / (rate * (1 + ppm * 1e-6))
            for start in range(0, sound.size, chunk):
                await asyncio.sleep(started_s + (start + chunk) * pace - loop.time())
                await session.push_audio(sound[start : start + chunk], rate)
            await asyncio.sleep(1)
            await screen.close()
        # Corrections move the steps of the staircase into the frames: compare the means.
        assert session.metrics.corrected > 0.5 * abs(ppm) * 1e-6 * seconds * RATE
        check_aligned(frame for frame in screen.frames if frame.spoken == rate // 25)
        assert session.backlog_ms == 0

    run(body(), limit_s=240)


@pytest.mark.parametrize("rate", [8_000, 44_100, 0, None, "48000"])
def test_other_output_rates_are_refused(rate):
    with pytest.raises(ConfigError, match="output_sample_rate"):
        offline(FakePipeline(), output_sample_rate=rate)


def test_sixteen_khz_is_the_default():
    async def body():
        async with offline() as session:
            assert session.output_sample_rate == RATE
            frames = await record(session, steady(1, 0.5))
        assert {frame.sample_rate for frame in frames} == {RATE}

    run(body())
