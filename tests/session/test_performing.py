"""A session is directed: what was asked reaches the model with the right window only."""

import asyncio

import numpy as np
import pytest
from support.fakes import LOOKAHEAD, FakePipeline, PartedPipeline, portrait
from support.live_sessions import Screen, live_session, microphone, session_of, speech_of
from support.sessions import RATE, record, speech
from support.virtual_time import run

from letstalk_rt import CameraOptions, ConfigError
from letstalk_rt.inference.protocol import CameraReading, CameraStatus
from letstalk_rt.models.face.face_motion import NUM_MOTION, SMILE
from letstalk_rt.performance import GESTURES, Style
from letstalk_rt.performance.direction import channel
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import FPS

PITCH, SMILED = channel("pitch"), channel("smile")


class Directed(PartedPipeline):
    """Notes how the motion of each window was changed; zeros where it was not."""

    is_directable = True

    def __init__(self, fails_once_at=None):
        super().__init__()
        self.windows, self._next, self.fails_once_at = [], None, fails_once_at

    def direct(self, state, window):
        assert self._next is None, "once for each step"
        self._next = window

    def step(self, pcm, states, deliver=None):
        self.windows.append(self._next)
        self._next = None
        if len(self.windows) - 1 == self.fails_once_at:
            raise RuntimeError("this step fails")
        return super().step(pcm, states, deliver)

    @property
    def added(self):
        """What was added to each frame, `(T, 15)`."""
        still = np.zeros((4, 15))
        return np.concatenate([still if w is None else w.added for w in self.windows])


def test_a_session_that_is_not_directed_leaves_the_model_alone():
    async def body():
        pipeline = Directed()
        async with session_of(pipeline) as session:
            await record(session, speech(RATE))
        assert pipeline.windows and set(pipeline.windows) == {None}

    run(body())


def test_a_mood_is_there_from_the_first_frame_or_eases_in():
    async def body():
        begun, changed = Directed(), Directed()
        async with session_of(begun, mood="cheerful", mood_strength=0.5) as session:
            await record(session, speech(RATE))
        async with session_of(changed) as session:
            await record(session, speech(RATE // 2))
            session.set_mood("cheerful", 0.5)
            await record(session, speech(RATE))
        smile = begun.added[0, SMILED]
        assert smile > 0 and (begun.added[:, SMILED] == smile).all()
        course = changed.added[:, SMILED]
        assert course[-1] == pytest.approx(smile) and (np.diff(course) < smile / 4).all()
        assert not course[:12].any()

    run(body())


def test_gestures_meet_their_moment_in_the_audio():
    async def body():
        pipeline = Directed()
        async with session_of(pipeline) as session:
            await record(session, speech(RATE))  # another segment before
            before = len(pipeline.added)
            session.gesture("nod", at=0.8)
            frames = await record(session, speech(2 * RATE))
        first = next(n for n, frame in enumerate(frames) if frame.spoken)
        lowest = pipeline.added[before:, PITCH].argmax()
        assert (lowest - first) / FPS == pytest.approx(0.8, abs=0.05)

    run(body())


def test_a_gesture_without_a_time_begins_with_the_next_window_of_an_idle_session():
    async def body():
        pipeline = Directed()
        async with live_session(pipeline) as session:
            screen = Screen(session)
            await asyncio.sleep(1)
            before = len(pipeline.added)
            session.gesture("nod", 0.5)
            await asyncio.sleep(1)
            await screen.close()
        assert pipeline.added[before : before + 12, PITCH].max() > 0.06

    run(body())


def test_an_interrupt_ends_gestures_and_keeps_the_mood():
    async def body():
        pipeline = Directed()
        async with live_session(pipeline, mood="warm") as session:
            screen = Screen(session)
            await asyncio.sleep(0.5)
            session.gesture("shake", at=3.0)
            session.gesture("tilt", 2.0)
            await session.push_audio(speech_of(0.5), RATE)
            await asyncio.sleep(0.6)
            session.interrupt()
            await asyncio.sleep(3)
            await session.push_audio(speech_of(4), RATE)
            await asyncio.sleep(5)
            await screen.close()
        roll = pipeline.added[:, channel("roll")]
        assert 0.02 < roll.max() and not roll[-100:].any()
        assert not pipeline.added[:, channel("yaw")].any(), "what waited was dropped"
        assert (pipeline.added[-100:, SMILED] > 0).all()

    run(body())


def test_a_step_that_fails_is_run_again_with_the_same_direction():
    async def body():
        pipeline = Directed(fails_once_at=1)
        async with session_of(pipeline, mood="warm") as session:
            await record(session, speech(RATE))
        assert len(pipeline.windows) > 2
        np.testing.assert_array_equal(pipeline.windows[1].added, pipeline.windows[2].added)

    run(body())


@pytest.mark.parametrize(
    "ask",
    [
        lambda s: s.set_mood("angry"),
        lambda s: s.set_mood("warm", float("nan")),
        lambda s: s.set_mood("warm", at=float("nan")),
        lambda s: s.set_mood(Style(smile=float("inf"))),
        lambda s: s.gesture("dance"),
        lambda s: s.gesture("nod", float("nan")),
        lambda s: s.gesture("nod", at=-1.0),
        lambda s: s.set_listening("on"),
        lambda s: s.push_listened(True, float("nan")),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_session_lives(ask):
    async def body():
        pipeline = Directed()
        async with session_of(pipeline) as session:
            with pytest.raises(ConfigError, match="must be"):
                ask(session)
            assert len(await record(session, speech(RATE))) >= FPS
        assert set(pipeline.windows) == {None}

    run(body())


@pytest.mark.parametrize(
    "options", [{"mood": "angry"}, {"mood": "warm", "mood_strength": 2}, {"listening": "on"}]
)
def test_options_that_are_wrong_are_refused(options):
    async def body():
        with pytest.raises(ConfigError, match="must be"):
            session_of(Directed(), **options)

    run(body())


def test_a_model_that_cannot_be_directed_says_so_and_the_session_lives():
    async def body():
        async with session_of(FakePipeline()) as session:
            for ask in (
                lambda: session.set_mood("warm"),
                lambda: session.gesture("nod"),
                lambda: session.set_listening("calm"),
            ):
                with pytest.raises(ConfigError, match="no motion denoiser"):
                    ask()
            session.push_listened(True)
            assert len(await record(session, speech(RATE))) >= FPS
        for options in ({"mood": "warm"}, {"listening": "calm"}):
            with pytest.raises(ConfigError, match="no motion denoiser"):
                session_of(FakePipeline(), **options)

    run(body())


def test_a_flood_of_gestures_is_limited_and_the_session_lives(caplog):
    async def body():
        pipeline = Directed()
        async with session_of(pipeline) as session:
            for number in range(1000):
                session.gesture(GESTURES[number % len(GESTURES)], 2.0)
            session.gesture("nod")
            assert len(await record(session, speech(RATE))) >= FPS
        assert np.isfinite(pipeline.added).all() and np.abs(pipeline.added[:, :3]).max() <= 0.3
        assert pipeline.added[:12, PITCH].max() > 0.05

    run(body())
    assert sum("oldest are dropped" in r.getMessage() for r in caplog.records) == 1


def test_a_listening_avatar_looks_at_the_other_side_and_nods_in_its_pauses():
    async def body():
        pipeline = Directed()
        async with live_session(pipeline, listening="attentive") as session:
            screen = Screen(session)
            await asyncio.sleep(0.5)
            idle = len(pipeline.windows)
            for _ in range(4):
                for number in range(100):
                    session.push_listened(number < 80, 120.0)
                    await asyncio.sleep(0.04)
            heard = len(pipeline.windows)
            await asyncio.sleep(20)
            await screen.close()
        assert set(pipeline.windows[:idle]) == {None}
        kept = np.concatenate([w.kept for w in pipeline.windows[idle + 6 : heard]])
        assert (kept[:, channel("gaze_x")] < 0.3).mean() > 0.9
        pitch = pipeline.added[:, PITCH]
        assert 1 <= (np.diff((pitch > 0.05).astype(int)) > 0).sum() <= 4
        assert set(pipeline.windows[-60:]) == {None}, "long silence: it idles"

    run(body())


def test_an_avatar_that_speaks_does_not_listen():
    async def body():
        pipeline = Directed()
        async with live_session(pipeline, listening="attentive") as session:
            screen, pcm = Screen(session), speech_of(4)

            async def hum():
                for _ in range(100):
                    session.push_listened(True, 120.0)
                    await asyncio.sleep(0.04)

            await asyncio.gather(hum(), microphone(session, pcm))
            middle = pipeline.windows[10:20]
            await screen.close()
        assert all(w is None or w.kept.min() > 0.95 for w in middle)

    run(body())


class Smiling:
    """Reads a broad smile in every frame of a camera."""

    def __init__(self):
        self.motion = np.zeros(NUM_MOTION, np.float32)
        self.motion[SMILE] = (0.2, -0.1)

    def read(self, rgb, captured_s, *, absolute):
        return CameraReading(CameraStatus.FACE, self.motion)

    def take_neutral(self):
        pass

    def close(self):
        pass


class Watching(Directed):
    def __init__(self):
        super().__init__()
        self.steered = 0

    def open_camera(self):
        return Smiling()

    def steer(self, state, steering):
        self.steered += 1


async def show_camera(options):
    """Push frames of a camera for two seconds; the reader's thread needs real time."""
    pipeline = Watching()
    async with session_of(pipeline, idle=True, camera=options) as session:
        reading = asyncio.create_task(drain(session))
        for _ in range(50):
            session.push_video(np.zeros((48, 64, 3), np.uint8))
            await asyncio.sleep(0.04)
        status = session.camera_status
        reading.cancel()
        await asyncio.wait([reading])
    assert status is CameraStatus.FACE
    return pipeline


async def drain(session):
    async for _ in session:
        pass


async def test_a_watched_camera_is_answered_and_moves_nothing_else():
    pipeline = await show_camera(CameraOptions(role="watch"))
    assert pipeline.steered == 0
    added = pipeline.added
    assert 0.2 < added[:, SMILED].max() <= 0.5
    assert not np.delete(added, SMILED, 1).any()


async def test_a_camera_that_drives_is_not_answered():
    pipeline = await show_camera(CameraOptions())
    assert pipeline.steered and not pipeline.added.any()


def test_a_role_that_is_unknown_is_refused():
    with pytest.raises(ConfigError, match="role must be one of drive, watch"):
        CameraOptions(role="stare")


def test_a_rendered_utterance_has_its_mood_and_its_gestures():
    pipeline = Directed()
    with Avatar.from_pipeline(pipeline, portrait()) as avatar:
        cues = [(0.5, "nod"), (1.0, "serious")]
        frames = list(avatar.render(speech(2 * RATE), mood="warm", cues=cues))
        assert len(frames) == 2 * FPS
        shown = pipeline.added[LOOKAHEAD:]
        assert shown[:, PITCH].argmax() / FPS == pytest.approx(0.5, abs=0.05)
        assert shown[0, SMILED] > 0 >= shown[-1, SMILED]
        with pytest.raises(ConfigError, match="gesture must be"):
            avatar.render(speech(RATE), cues=[(0.5, "dance")])
        with pytest.raises(ConfigError, match="mood must be"):
            avatar.render(speech(RATE), mood="angry")
    with Avatar.from_pipeline(FakePipeline(), portrait()) as avatar:
        with pytest.raises(ConfigError, match="no motion denoiser"):
            avatar.render(speech(RATE), mood="warm")
