"""Options of a session, what can be changed while it runs, its failures and its metrics."""

import asyncio
import gc
import sys
import weakref

import numpy as np
import pytest
from support.fakes import FRAME, HOP, LOOKAHEAD, FakePipeline, portrait
from support.live_sessions import (
    STEP_S,
    Screen,
    live_session,
    microphone,
    record_all,
    session_of,
    speech_of,
)
from support.sessions import RATE, until_end
from support.virtual_time import run

from letstalk_rt.errors import (
    AudioFormatError,
    ConfigError,
    DependencyError,
    EngineError,
    PortraitError,
    SessionClosed,
)
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.types import MotionOptions

# Options


def test_options_reach_the_model():
    async def body():
        pipeline, motion = FakePipeline(), MotionOptions(expressiveness=0.5)
        async with session_of(pipeline, seed=3), session_of(pipeline, steps=2, motion=motion):
            await asyncio.sleep(1)
        plain, wished = pipeline.states
        assert plain.options == StateOptions(3, lookahead_frames=LOOKAHEAD)
        assert wished.options == StateOptions(0, 2, LOOKAHEAD, motion)

    run(body())


@pytest.mark.parametrize("lookahead_ms", [0, 40, 80])
def test_less_look_ahead_shows_speech_sooner(lookahead_ms):
    async def body():
        async with session_of(lookahead_ms=lookahead_ms) as session:
            frames = await record_all(session, speech_of(0.5))
        frames_ahead = lookahead_ms // 40
        sound = np.concatenate([frame.pcm for frame in frames])
        assert np.flatnonzero(sound)[0] == frames_ahead * FRAME
        np.testing.assert_array_equal(sound[frames_ahead * FRAME :][: RATE // 2], speech_of(0.5))

    run(body())


@pytest.mark.parametrize(
    "options",
    [
        {"lookahead_ms": 20},
        {"lookahead_ms": 120},
        {"lookahead_ms": -40},
        {"steps": 0},
        {"steps": 51},
        {"seed": -1},
        {"seed": 2**63},
        {"voice_activity": "loud"},
        {"playback": "later"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="must be"):
        session_of(**options)


@pytest.mark.parametrize("error", [PortraitError("not prepared"), ConfigError("too many")])
def test_a_mistake_that_the_model_finds_is_raised_as_it_is(error):
    class Refusing(FakePipeline):
        def init_state(self, portrait, options):
            raise error

    async def body():
        async with session_of(Refusing()) as session:
            with pytest.raises(type(error), match=str(error)):
                await anext(session)
            with pytest.raises(SessionClosed, match=str(error)):
                await session.push_audio(speech_of(1), RATE)
            assert session.metrics.recoveries == 0

    run(body())


def test_a_package_that_an_option_needs_is_named(monkeypatch):
    async def body():
        async with session_of(voice_activity="silero") as session:
            with pytest.raises(DependencyError, match=r"pip install '\.\[vad\]'"):
                await anext(session)

    monkeypatch.setitem(sys.modules, "silero_vad", None)
    run(body())


# Voice and noise


def test_noise_of_the_room_does_not_reach_the_model_and_is_still_heard():
    noise = np.random.default_rng(0).normal(0, 0.001, 4 * RATE).astype(np.float32)

    class Listening(FakePipeline):
        def __init__(self):
            super().__init__()
            self.heard = []

        def step(self, pcm, states, deliver=None):
            self.heard.append(bool(pcm.any()))
            return super().step(pcm, states, deliver)

    async def heard(gate, sound):
        pipeline = Listening()
        async with live_session(pipeline, voice_activity=gate) as session:
            screen = Screen(session)
            await microphone(session, sound)
            await screen.close()
        assert np.concatenate([frame.pcm for frame in screen.frames]).any()
        return pipeline.heard

    async def both():
        assert not any(await heard("energy", noise))
        assert any(await heard("off", noise))
        assert any(await heard("energy", noise * 100))

    run(both())


# Faces


def test_a_face_is_changed_without_a_gap():
    async def body():
        pcm = speech_of(4)
        async with live_session() as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            talk = asyncio.create_task(microphone(session, pcm))
            await asyncio.sleep(2)
            repeats_before = session.metrics.repeats
            await session.change_portrait(portrait(9))
            await talk
            await asyncio.sleep(1)
            await screen.close()
        faces = [int(frame.rgb[0, 0, 0]) for frame in screen.frames]
        assert faces == sorted(faces) and set(faces) == {0, 9}
        assert session.metrics.stalls == 0
        assert session.metrics.repeats <= repeats_before + 1
        assert [frame.index for frame in screen.frames] == list(range(len(faces)))
        sound = np.concatenate([frame.pcm for frame in screen.frames])
        start = int(np.flatnonzero(sound)[0])
        np.testing.assert_array_equal(sound[start : start + pcm.size], pcm)

    run(body())


def test_a_face_that_is_not_prepared_leaves_the_old_one():
    async def body():
        async with live_session() as session:
            bad = portrait()
            object.__setattr__(bad, "canvas", np.zeros((2, 2, 4), np.uint8))
            with pytest.raises(PortraitError):
                await session.change_portrait(bad)
            assert (await anext(session)).rgb[0, 0, 0] == 0
        with pytest.raises(SessionClosed):
            await session.change_portrait(portrait())

    run(body())


def test_who_waits_for_a_face_hears_of_the_end():
    async def body():
        async with live_session(step_s=0.5) as session:
            await asyncio.sleep(0.6)
            changes = [asyncio.create_task(session.change_portrait(portrait(n))) for n in range(3)]
            changes[1].cancel()
            await asyncio.sleep(0.1)
        results = await asyncio.gather(*changes, return_exceptions=True)
        assert isinstance(results[0], SessionClosed)
        assert isinstance(results[1], asyncio.CancelledError)
        assert isinstance(results[2], SessionClosed)

    run(body())


def test_a_model_with_one_face_says_so():
    class OneFace(FakePipeline):
        def change_portrait(self, state, portrait):
            raise ConfigError("this model cannot change faces")

    async def body():
        async with live_session(OneFace()) as session:
            with pytest.raises(ConfigError, match="cannot change"):
                await session.change_portrait(portrait())

    run(body())


# Failures and ends


def test_a_model_that_fails_in_mid_session_ends_it_for_all():
    async def body():
        events = []
        async with live_session(FakePipeline(fail_at=9)) as session:
            session.on_event(events.append)
            reading = asyncio.create_task(anext_forever(session))
            talk = asyncio.create_task(microphone(session, speech_of(5)))
            with pytest.raises(EngineError, match="open another"):
                await reading
            with pytest.raises(SessionClosed, match="failed"):
                await talk
            with pytest.raises(SessionClosed, match="failed"):
                await session.change_portrait(portrait())
            assert session.closed
            assert [event async for event in session.events()] == []
            await session.aclose()
            await session.aclose()

    run(body())


async def anext_forever(session):
    while True:
        await anext(session)


@pytest.mark.parametrize("when_s", [0.0, 0.03, 0.1, 1.0, 1.05])
def test_a_session_that_is_cancelled_from_outside_leaves_nothing_behind(when_s):
    async def talk_and_show():
        async with live_session() as session, asyncio.TaskGroup() as group:
            group.create_task(microphone(session, speech_of(60)))
            group.create_task(anext_forever(session))
            group.create_task(session.change_portrait(portrait(3)))

    async def body():
        whole = asyncio.create_task(talk_and_show())
        await asyncio.sleep(when_s)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole

    run(body())


def test_the_sessions_own_task_may_be_cancelled():
    async def body():
        async with live_session() as session:
            await anext(session)
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "avatar-session"]
            task.cancel()
            await asyncio.sleep(1)
            with pytest.raises(SessionClosed):
                await session.push_audio(speech_of(0.1), RATE)
            assert len(await until_end(session)) <= 8

    run(body())


# Bad input


def test_a_huge_chunk_is_taken_and_held_back_to_real_time():
    async def body():
        async with live_session(step_s=0.01) as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech_of(600), RATE))
            await asyncio.sleep(10)
            assert not talk.done()
            assert session.backlog_ms == pytest.approx(590_000, abs=1000)
            session.interrupt()
            await talk
            await screen.close()

    run(body())


def test_a_huge_chunk_with_nan_at_its_end_is_refused_whole():
    async def body():
        async with session_of() as session:
            pcm = np.zeros(1_200_000, np.float32)
            pcm[-1] = np.nan
            with pytest.raises(AudioFormatError, match="NaN"):
                await session.push_audio(pcm, RATE)
            assert session.backlog_ms == 0

    run(body())


@pytest.mark.parametrize("pcm", [None, 3, [0.0], np.float32(1), np.zeros((2, 2, 2), np.float32)])
def test_what_is_no_sound_is_refused(pcm):
    async def body():
        async with session_of() as session:
            with pytest.raises(AudioFormatError):
                await session.push_audio(pcm, RATE)

    run(body())


def test_loud_sound_is_clipped_and_the_session_goes_on():
    async def body():
        async with session_of() as session:
            frames = await record_all(session, np.full(HOP, 7.0, np.float32))
        assert {float(x) for frame in frames for x in frame.pcm} == {0.0, 1.0}

    run(body())


def test_speech_after_the_end_of_a_segment_is_the_next_segment():
    async def body():
        async with session_of() as session:
            await record_all(session, speech_of(0.3))
            frames = await record_all(session, speech_of(0.3, seed=1))
        assert {frame.segment_id for frame in frames} == {1}

    run(body())


# Measures


def test_every_frame_says_when_it_passed_each_stage():
    async def body():
        async with live_session() as session:
            screen = Screen(session)
            await microphone(session, speech_of(3))
            await asyncio.sleep(0.5)
            await screen.close()
        for frame, shown_s in zip(screen.frames, screen.times_s, strict=True):
            stamps = frame.stamps
            times = [stamps.hop_complete_s, stamps.model_start_s, stamps.model_end_s]
            times += [stamps.released_s, shown_s]
            assert times == sorted(times)
            if stamps.audio_in_s is not None:
                assert stamps.audio_in_s <= stamps.hop_complete_s
                assert shown_s - stamps.audio_in_s < 0.4
        spoken = [f for f in screen.frames if f.stamps.audio_in_s is not None]
        assert len(spoken) == pytest.approx(75, abs=2)
        metrics = session.metrics
        assert {"hop", "queue", "step", "wait", "engine", "playout", "live"} <= set(
            metrics.stages_ms()
        )
        assert metrics.real_time_factor == pytest.approx(0.16 / STEP_S, rel=0.01)
        assert metrics.counts()["frames"] >= len(screen.frames)
        assert metrics.missed == 0

    run(body())


def test_windows_that_take_longer_than_they_last_are_counted():
    async def body():
        async with live_session(step_s=0.2) as session:
            screen = Screen(session)
            await asyncio.sleep(5)
            await screen.close()
        assert session.metrics.missed == session.metrics.steps > 10

    run(body())


def test_the_first_frames_are_silent_and_counted_by_the_look_ahead():
    async def body():
        async with session_of() as session:
            frames = await record_all(session, speech_of(0.16))
        assert len(frames) == LOOKAHEAD + 4

    run(body())


@pytest.mark.parametrize("seconds", [0.0, 0.03, 1.0])
def test_the_state_of_the_model_is_free_when_the_session_is_closed(seconds):
    """It holds megabytes, and the collector of cycles may come much later."""

    class Forgetful(FakePipeline):
        def init_state(self, portrait, options):
            state = super().init_state(portrait, options)
            self.states.clear()
            states.append(weakref.ref(state))
            return state

    async def body():
        session = session_of(Forgetful(), idle=True)
        async with session:
            await session.push_audio(speech_of(0.1), RATE)
            await asyncio.sleep(seconds)
        await asyncio.sleep(1)
        assert all(state() is None for state in states)

    states = []
    gc.disable()
    try:
        run(body())
    finally:
        gc.enable()
