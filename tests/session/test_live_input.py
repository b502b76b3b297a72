"""Live sessions with drifting clocks, after stalls, and with interrupts at any time."""

import asyncio

import numpy as np
import pytest
from support.fakes import FakePipeline, TimedWorker
from support.live_sessions import (
    STEP_S,
    Screen,
    live_session,
    microphone,
    record_all,
    session_of,
    speech_of,
)
from support.sessions import RATE
from support.virtual_time import run

from letstalk_rt.session.playout import Playout
from letstalk_rt.types import Interrupted

# Clocks that drift


@pytest.mark.parametrize(
    "seconds, ppm",
    [
        (300, 400),
        (300, -400),
        pytest.param(3600, 200, marks=pytest.mark.slow),
        pytest.param(3600, -200, marks=pytest.mark.slow),
    ],
)
def test_a_microphone_whose_clock_is_off_neither_creeps_nor_gaps(seconds, ppm):
    chunk = 1600
    sound = speech_of(60, seed=3)

    async def body():
        async with live_session(step_s=0.03) as session:
            loop = asyncio.get_running_loop()
            lates_ms, quiet = [], []
            playout = Playout(
                lambda frame: (
                    lates_ms.append((loop.time() - frame.stamps.audio_in_s) * 1000)
                    if frame.stamps.audio_in_s is not None
                    else quiet.append(loop.time())
                ),
                played=session.notify_played,
                metrics=session.metrics,
                clock=loop.time,
            )
            playing = asyncio.create_task(playout.run(session))
            pace = chunk / (RATE * (1 + ppm * 1e-6))
            for number in range(int(seconds / pace)):
                if number == 600:
                    repeats_before = session.metrics.repeats
                await asyncio.sleep((number + 1) * pace - loop.time())
                start = number * chunk % (len(sound) - chunk)
                await session.push_audio(sound[start : start + chunk], RATE)
            playing.cancel()
            await asyncio.wait([playing])
        metrics = session.metrics
        assert (metrics.stalls, metrics.filled) == (0, 0)
        assert metrics.repeats == repeats_before <= 8, "until the clock gave way a little"
        assert metrics.corrected == pytest.approx(abs(ppm) * 1e-6 * seconds * RATE, rel=0.1)
        assert quiet[-1] < 2, "silence in the midst of speech"
        first, last = lates_ms[100:3000], lates_ms[-3000:]
        assert abs(np.median(last) - np.median(first)) < 20
        assert max(last) < 400

    run(body(), limit_s=2 * seconds)


def test_after_a_stall_pauses_are_shortened_until_speech_is_live_again():
    async def body():
        talk = np.concatenate([speech_of(1.0), np.zeros(RATE, np.float32)])
        worker = TimedWorker(FakePipeline(), STEP_S)
        async with session_of(worker=worker, idle=True, playback="reported") as session:
            screen = Screen(session)
            delays_ms = []
            speaking = asyncio.create_task(microphone(session, np.tile(talk, 20)))
            for second in range(40):
                worker.timed.call_s = 0.9 if second == 5 else STEP_S
                await asyncio.sleep(1)
                delays_ms.append(session.backlog_ms)
            await speaking
            await screen.close()
        assert session.metrics.stalls >= 1
        assert session.metrics.skipped > 0
        assert max(delays_ms[6:9]) > max(delays_ms[2:5]) + 200
        assert max(delays_ms[-10:]) <= max(delays_ms[2:5]) + 100

    run(body())


# Interrupts in every state


@pytest.mark.parametrize("when_s", [0.0, 0.01, 0.07, 0.1, 0.13, 0.19, 0.25, 0.5, 1.01, 1.5])
def test_an_interrupt_at_any_moment_leaves_no_old_sound_and_the_avatar_lives_on(when_s):
    async def body():
        pipeline = FakePipeline()
        async with live_session(pipeline) as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech_of(5), RATE))
            await asyncio.sleep(when_s)
            session.interrupt()
            shown = len(screen.frames)
            await talk
            await asyncio.sleep(1)
            assert not any(frame.pcm.any() for frame in screen.frames[shown:])
            assert len(screen.frames) - shown >= 21
            new = speech_of(1, seed=5)
            await microphone(session, new)
            await asyncio.sleep(1)
            await screen.close()
        sound = np.concatenate([frame.pcm for frame in screen.frames[shown:]])
        start = int(np.flatnonzero(sound)[0])
        np.testing.assert_array_equal(sound[start : start + new.size], new)
        steps = np.diff([frame.index for frame in screen.frames])
        assert set(steps) == {1}

    run(body())


def test_the_model_is_told_how_many_frames_nobody_saw():
    async def body():
        pipeline = FakePipeline()
        async with session_of(pipeline) as session:
            talk = asyncio.create_task(session.push_audio(speech_of(2), RATE))
            for _ in range(6):
                await anext(session)
            made = pipeline.steps * 4
            session.interrupt()
            await talk
            await record_all(session, speech_of(0.1))
        assert pipeline.states[0].unseen == made - 6

    run(body())


def test_interrupts_before_opening_and_after_closing_change_nothing():
    async def body():
        session = session_of()
        assert session.interrupt() == Interrupted(0, 0)
        async with session:
            assert len(await record_all(session, speech_of(0.3))) > 4
        assert session.interrupt() == Interrupted(0, 0)
        assert session.epoch == 1

    run(body())
