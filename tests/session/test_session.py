"""What a session tells, what can be asked of it while it runs, and what it survives."""

import asyncio

import numpy as np
import pytest
from support.fakes import FRAME, HOP, LOOKAHEAD, FakePipeline, InlineWorker, TimedWorker, portrait
from support.virtual_time import run

from letstalk_rt.errors import (
    AudioFormatError,
    ConfigError,
    EngineError,
    PortraitError,
    SessionClosed,
)
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.session.events import MAX_WAITING
from letstalk_rt.session.playout import Playout
from letstalk_rt.session.session import AvatarSession
from letstalk_rt.types import Interrupted, MotionOptions, SegmentEnd

RATE = 16_000
STEP_S = 0.06


def session_of(pipeline=None, worker=None, idle=False, **options):
    worker = worker or InlineWorker(pipeline or FakePipeline())
    return AvatarSession(worker, portrait(), idle=idle, **options)


def live(pipeline=None, step_s=STEP_S, **options):
    """A session for a `Screen`, which reports what it plays."""
    worker = TimedWorker(pipeline or FakePipeline(), step_s)
    return session_of(worker=worker, idle=True, **{"playback": "reported", **options})


def speech(seconds, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1, int(seconds * RATE)).astype(np.float32)


class Screen:
    """Plays a session on time and notes what was shown when."""

    def __init__(self, session):
        self.frames, self.times_s = [], []
        self.clock = asyncio.get_running_loop().time
        self._playout = Playout(
            self._show,
            played=session.notify_played,
            epoch=lambda: session.epoch,
            metrics=session.metrics,
            clock=self.clock,
        )
        self._task = asyncio.create_task(self._playout.run(session))

    def _show(self, frame):
        self.frames.append(frame)
        self.times_s.append(self.clock())

    async def close(self):
        self._task.cancel()
        await asyncio.wait([self._task])


async def microphone(session, pcm, piece=320, ppm=0):
    """Push as a microphone does whose clock is `ppm` too fast."""
    loop = asyncio.get_running_loop()
    started_s, pace = loop.time(), 1 / (RATE * (1 + ppm * 1e-6))
    for start in range(0, pcm.size, piece):
        await asyncio.sleep(started_s + (start + piece) * pace - loop.time())
        await session.push_audio(pcm[start : start + piece], RATE)


async def until_end(session):
    frames = []
    async for item in session:
        if isinstance(item, SegmentEnd):
            return frames
        frames.append(item)
    return frames


async def hear(session, pcm):
    async def say():
        await session.push_audio(pcm, RATE)
        await session.end_segment()

    frames, _ = await asyncio.gather(until_end(session), say())
    return frames


def heard_types(events):
    return [event.type for event in events]


# Events


def test_a_segment_is_told_from_its_first_to_its_last_sound():
    async def body():
        events = []
        async with session_of() as session:
            session.on_event(events.append)
            for seconds in (0.5, 0.25):
                await hear(session, speech(seconds))
        segments = [e for e in events if e.type.startswith("segment")]
        assert [(e.type, e.segment_id, e.played_ms) for e in segments] == [
            ("segment.started", 0, 0),
            ("segment.finished", 0, 500),
            ("segment.started", 1, 0),
            ("segment.finished", 1, 250),
        ]

    run(body())


def test_the_avatar_speaks_and_idles():
    async def body():
        events = []
        async with live() as session:
            session.on_event(lambda event: events.append((event.type, len(screen.frames))))
            screen = Screen(session)
            await asyncio.sleep(1)
            assert session.state == "idle"
            await microphone(session, speech(1))
            assert session.state == "speaking"
            await session.end_segment()
            await asyncio.sleep(2)
            assert session.state == "idle"
            await screen.close()
        moods = [(kind, at) for kind, at in events if kind.startswith("avatar")]
        assert [kind for kind, _ in moods] == ["avatar.speaking", "avatar.idle"]
        loud = [i for i, frame in enumerate(screen.frames) if frame.pcm.any()]
        assert abs(moods[0][1] - loud[0]) <= 2
        assert 0 < moods[1][1] - loud[-1] < 25

    run(body())


def test_an_interrupt_is_told_and_the_avatar_listens():
    async def body():
        events = []
        async with live() as session:
            session.on_event(events.append)
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech(10), RATE))
            await asyncio.sleep(2)
            cut = session.interrupt()
            await talk
            assert session.state == "listening"
            (told,) = [e for e in events if e.type == "segment.interrupted"]
            assert (told.segment_id, told.played_ms, told.dropped_ms) == (
                0,
                cut.played_ms,
                cut.dropped_ms,
            )
            await asyncio.sleep(1)
            assert session.state == "listening", "until it is told otherwise, or speaks"
            session.listen(False)
            assert session.state == "idle"
            session.interrupt()
            await microphone(session, speech(1, seed=1))
            assert session.state == "speaking"
            await screen.close()
        assert heard_types(events).count("segment.interrupted") == 1, "nothing spoke at the second"

    run(body())


def test_a_player_that_reports_decides_what_was_played():
    async def body():
        events = []
        async with session_of(playback="reported") as session:
            session.on_event(events.append)
            frames = await hear(session, speech(0.5))
            assert events == [] and session.backlog_ms == 500
            loud = [frame for frame in frames if frame.spoken]
            assert sum(frame.spoken for frame in loud) == RATE // 2
            session.notify_played(loud[2])
            assert session.backlog_ms == 380
            assert session.interrupt() == Interrupted(played_ms=120, dropped_ms=380)
            session.notify_played(frames[-1])
        assert heard_types(events) == [
            "segment.started",
            "avatar.speaking",
            "segment.interrupted",
            "avatar.listening",
        ]

    run(body())


def test_a_session_that_counts_what_is_read_takes_no_reports():
    async def body():
        async with session_of() as session:
            (first, *_) = await hear(session, speech(0.3))
            with pytest.raises(ConfigError, match="playback='reported'"):
                session.notify_played(first)

    run(body())


def test_events_can_be_iterated_until_the_session_closes():
    async def body():
        async def read(session):
            return [event.type async for event in session.events()]

        async with session_of() as session:
            reading = asyncio.create_task(read(session))
            await asyncio.sleep(0)
            await hear(session, speech(0.3))
        assert await reading == ["segment.started", "avatar.speaking", "segment.finished"]

    run(body())


def test_a_reader_of_events_who_sleeps_loses_the_oldest():
    async def body():
        async with session_of() as session:
            stream = session.events()
            first = asyncio.create_task(anext(stream))
            await asyncio.sleep(0)
            for listening in [True, False] * MAX_WAITING:
                session.listen(listening)
            await first
        assert len([event async for event in stream]) == MAX_WAITING - 1

    run(body())


def test_a_listener_that_fails_disturbs_nobody():
    async def body():
        events = []

        def fail(event):
            raise RuntimeError("mine")

        async with session_of() as session:
            session.on_event(fail)
            stop = session.on_event(events.append)
            assert len(await hear(session, speech(0.3))) > 4
            stop()
            stop()
            count = len(events)
            await hear(session, speech(0.3))
        assert len(events) == count > 0

    run(body())


def test_warnings_say_what_is_wrong_and_not_too_often():
    async def body():
        warnings = []
        async with live(step_s=0.5) as session:
            session.on_event(lambda event: warnings.append(event.code) if event.code else None)
            screen = Screen(session)
            await asyncio.sleep(9)
            await session.push_audio(np.full(HOP, 3.0, np.float32), RATE)
            await session.push_audio(np.full(HOP, 3.0, np.float32), RATE)
            await screen.close()
        assert warnings == ["model-behind", "clipped"]

    run(body())


def test_speech_with_gaps_is_warned_of():
    async def body():
        events = []
        async with live() as session:
            session.on_event(events.append)
            screen = Screen(session)
            for _ in range(3):
                await microphone(session, speech(1))
                await asyncio.sleep(0.6)
            await screen.close()
        assert [e.code for e in events if e.type == "session.warning"] == ["speech-late"]
        assert session.metrics.filled > 0

    run(body())


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
            frames = await hear(session, speech(0.5))
        frames_ahead = lookahead_ms // 40
        sound = np.concatenate([frame.pcm for frame in frames])
        assert np.flatnonzero(sound)[0] == frames_ahead * FRAME
        np.testing.assert_array_equal(sound[frames_ahead * FRAME :][: RATE // 2], speech(0.5))

    run(body())


@pytest.mark.parametrize(
    "options",
    [
        {"lookahead_ms": 20},
        {"lookahead_ms": 120},
        {"lookahead_ms": -40},
        {"steps": 0},
        {"voice_activity": "loud"},
        {"playback": "later"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="must be"):
        session_of(**options)


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
        async with live(pipeline, voice_activity=gate) as session:
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
        pcm = speech(4)
        async with live() as session:
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
        async with live() as session:
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
        async with live(step_s=0.5) as session:
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
        async with live(OneFace()) as session:
            with pytest.raises(ConfigError, match="cannot change"):
                await session.change_portrait(portrait())

    run(body())


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
    piece = 1600
    sound = speech(60, seed=3)

    async def body():
        async with live(step_s=0.03) as session:
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
            pace = piece / (RATE * (1 + ppm * 1e-6))
            for number in range(int(seconds / pace)):
                if number == 600:
                    repeats_before = session.metrics.repeats
                await asyncio.sleep((number + 1) * pace - loop.time())
                start = number * piece % (len(sound) - piece)
                await session.push_audio(sound[start : start + piece], RATE)
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
        talk = np.concatenate([speech(1.0), np.zeros(RATE, np.float32)])
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
        async with live(pipeline) as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech(5), RATE))
            await asyncio.sleep(when_s)
            session.interrupt()
            shown = len(screen.frames)
            await talk
            await asyncio.sleep(1)
            assert not any(frame.pcm.any() for frame in screen.frames[shown:])
            assert len(screen.frames) - shown >= 21
            new = speech(1, seed=5)
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
            talk = asyncio.create_task(session.push_audio(speech(2), RATE))
            for _ in range(6):
                await anext(session)
            made = pipeline.steps * 4
            session.interrupt()
            await talk
            await hear(session, speech(0.1))
        assert pipeline.states[0].unseen == made - 6

    run(body())


def test_interrupts_before_opening_and_after_closing_change_nothing():
    async def body():
        session = session_of()
        assert session.interrupt() == Interrupted(0, 0)
        async with session:
            assert len(await hear(session, speech(0.3))) > 4
        assert session.interrupt() == Interrupted(0, 0)
        assert session.epoch == 1

    run(body())


# Failures and ends


def test_a_model_that_fails_in_mid_session_ends_it_for_all():
    async def body():
        events = []
        async with live(FakePipeline(fail_at=9)) as session:
            session.on_event(events.append)
            reading = asyncio.create_task(anext_forever(session))
            talk = asyncio.create_task(microphone(session, speech(5)))
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
        async with live() as session, asyncio.TaskGroup() as group:
            group.create_task(microphone(session, speech(60)))
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
        async with live() as session:
            await anext(session)
            (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "avatar-session"]
            task.cancel()
            await asyncio.sleep(1)
            with pytest.raises(SessionClosed):
                await session.push_audio(speech(0.1), RATE)
            assert len(await until_end(session)) <= 8

    run(body())


# Bad input


def test_a_huge_chunk_is_taken_and_held_back_to_real_time():
    async def body():
        async with live(step_s=0.01) as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech(600), RATE))
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
            frames = await hear(session, np.full(HOP, 7.0, np.float32))
        assert {float(x) for frame in frames for x in frame.pcm} == {0.0, 1.0}

    run(body())


def test_speech_after_the_end_of_a_segment_is_the_next_segment():
    async def body():
        async with session_of() as session:
            await hear(session, speech(0.3))
            frames = await hear(session, speech(0.3, seed=1))
        assert {frame.segment_id for frame in frames} == {1}

    run(body())


# Measures


def test_every_frame_says_when_it_passed_each_stage():
    async def body():
        async with live() as session:
            screen = Screen(session)
            await microphone(session, speech(3))
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
        async with live(step_s=0.2) as session:
            screen = Screen(session)
            await asyncio.sleep(5)
            await screen.close()
        assert session.metrics.missed == session.metrics.steps > 10

    run(body())


def test_the_first_frames_are_silent_and_counted_by_the_look_ahead():
    async def body():
        async with session_of() as session:
            frames = await hear(session, speech(0.16))
        assert len(frames) == LOOKAHEAD + 4

    run(body())
