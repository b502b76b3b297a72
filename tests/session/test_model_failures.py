"""A session survives failures of its model: nothing is lost, and it ends only after several."""

import asyncio
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from support.fakes import FakePipeline, InlineWorker, PartedPipeline, portrait
from support.live_sessions import Screen, live_session, microphone, session_of, speech_of
from support.sessions import RATE, check_frames, joined_pcm, record, say, speech, until_end
from support.virtual_time import run

from letstalk_rt.errors import ConfigError, EngineError, ModelLost, SessionClosed
from letstalk_rt.inference.protocol import Fault, StateLost
from letstalk_rt.types import MotionOptions


class Failing(PartedPipeline):
    """Raises an error in chosen calls of a step, after it delivered the first part.

    Args:
        failures: the error of each call of `step`, by its number.
        away: how many calls of `init_state` after the first one find no model.
    """

    def __init__(self, failures=(), away=0):
        super().__init__()
        self.failures, self.calls, self.away = dict(failures), 0, away
        self.portraits = []

    def init_state(self, portrait, options):
        self.portraits.append(portrait)
        if self.calls and self.away:
            self.away -= 1
            raise StateLost("not yet", Fault.START)
        return super().init_state(portrait, options)

    def step(self, pcm, states, deliver=None):
        self.calls += 1
        error = self.failures.get(self.calls)
        if error is None:
            return super().step(pcm, states, deliver)
        if deliver is not None:
            deliver(super().step(pcm, states)[:, :1])
        raise error


def lost():
    return ModelLost("the model has died", Fault.DIED)


async def failure_of(session):
    """Push speech, and return the error that ends the session."""
    talk = asyncio.create_task(say(session, speech(30_000)))
    with pytest.raises(EngineError) as failure:
        await until_end(session)
    await asyncio.wait([talk])
    assert isinstance(talk.exception(), SessionClosed)
    return failure.value


@pytest.mark.parametrize("error", [RuntimeError("a bug"), lost(), StateLost("gone", Fault.DIED)])
def test_no_speech_is_lost_or_doubled(error):
    async def body():
        pcm, pipeline = speech(30_000), Failing({4: error})
        async with session_of(pipeline) as session:
            frames = await record(session, pcm)
        np.testing.assert_array_equal(joined_pcm(frames)[1280:][: pcm.size], pcm)
        assert [frame.index for frame in frames] == list(range(len(frames)))
        assert len(pipeline.states) == 2 and session.metrics.recoveries == 1
        return frames

    plain = run(body())
    check_frames(plain[:12])


def test_a_live_session_shows_its_last_frame_and_goes_on():
    async def body():
        events, pipeline = [], Failing({9: lost()}, away=20)
        async with live_session(pipeline) as session:
            session.on_event(events.append)
            screen = Screen(session)
            await microphone(session, speech_of(5))
            await asyncio.sleep(3)
            await screen.close()
        assert [event.code for event in events if event.type == "session.warning"][0] == (
            "model-failed"
        )
        assert session.metrics.recoveries == 1 and session.metrics.repeats > 25
        assert [frame.index for frame in screen.frames] == list(range(len(screen.frames)))
        late = max(np.diff(screen.times_s))
        assert 2.0 < late < 5.0, "as long as the model was away"

    run(body())


def test_a_session_ends_when_its_steps_keep_failing():
    async def body():
        pipeline = Failing({n: RuntimeError("a bug") for n in range(5, 100)})
        async with session_of(pipeline) as session:
            failure = await failure_of(session)
        assert "open another" in str(failure)
        assert pipeline.calls == 4 + 3
        assert str(failure.__cause__) == "a bug"

    run(body())


def test_failures_that_are_not_in_a_row_do_not_end_it():
    async def body():
        pipeline = Failing({n: lost() for n in range(2, 40, 2)})
        async with session_of(pipeline) as session:
            frames = await record(session, speech(30_000))
        assert session.metrics.recoveries > 5 and len(frames) > 40

    run(body())


def test_a_session_ends_when_the_model_stays_away():
    async def body():
        pipeline = Failing({4: lost()}, away=10_000)
        async with session_of(pipeline, recovery_s=7.0) as session:
            began_s = asyncio.get_running_loop().time()
            failure = await failure_of(session)
            took_s = asyncio.get_running_loop().time() - began_s
        assert isinstance(failure.__cause__, ModelLost)
        assert "within 7 s" in str(failure.__cause__) and 6.9 < took_s < 8

    run(body())


def test_a_model_that_is_back_but_slow_is_waited_for():
    class SlowWorker(InlineWorker):
        """The step after the failed one begins later than the model may be away."""

        waits = True

        def step(self, pcm, state, deliver=None):
            if self.pipeline.calls < 4 or not self.waits:
                return super().step(pcm, state, deliver)
            self.waits, future = False, Future()

            def begin():
                future.set_result(self.step(pcm, state, deliver).result())

            asyncio.get_running_loop().call_later(3.0, begin)
            return future

    async def body():
        async with session_of(worker=SlowWorker(Failing({4: lost()})), recovery_s=1.0) as session:
            began_s = asyncio.get_running_loop().time()
            frames = await record(session, speech(30_000))
            assert asyncio.get_running_loop().time() - began_s >= 3.0
        assert session.metrics.recoveries == 1 and len(frames) > 40

    run(body())


def test_speech_that_was_interrupted_is_not_tried_again():
    async def body():
        pipeline = Failing({9: lost()}, away=20)
        async with live_session(pipeline) as session:
            screen = Screen(session)
            talk = asyncio.create_task(session.push_audio(speech_of(5), RATE))
            await asyncio.sleep(2)
            assert session.metrics.recoveries == 1
            session.interrupt()
            await asyncio.sleep(4)
            await talk
            await screen.close()
        after = [frame for frame in screen.frames if frame.epoch == 1]
        assert after and not any(frame.pcm.any() for frame in after)

    run(body())


def test_a_new_portrait_is_kept_after_a_failure():
    async def body():
        pipeline = Failing({9: lost()})
        async with live_session(pipeline) as session:
            screen = Screen(session)
            await session.change_portrait(portrait(9))
            await asyncio.sleep(4)
            await screen.close()
        assert len(pipeline.states) == 2
        assert [int(p.canvas[0, 0, 0]) for p in pipeline.portraits] == [0, 9]
        assert screen.frames[-1].rgb[0, 0, 0] == 9

    run(body())


def test_a_portrait_reaches_a_model_whose_state_was_lost():
    class Forgetful(FakePipeline):
        changes = 0

        def change_portrait(self, state, portrait):
            self.changes += 1
            if self.changes == 1:
                raise lost()
            super().change_portrait(state, portrait)

    async def body():
        async with live_session(Forgetful()) as session:
            await session.change_portrait(portrait(9))
            assert session.metrics.recoveries == 1 and not session.closed

    run(body())


class Moving(Failing):
    """Moves as it is told, but never looks at the camera."""

    def set_motion(self, state, motion):
        if motion.gaze_at_camera:
            raise ConfigError("no gaze")
        state.options = replace(state.options, motion=motion)


def test_how_the_face_moves_changes_at_once_and_is_kept_after_a_failure():
    calm = MotionOptions(head_motion=False, blinks_per_min=3)

    async def body():
        pipeline = Moving({9: lost()})
        async with live_session(pipeline) as session:
            screen = Screen(session)
            await session.set_motion(calm)
            assert pipeline.states[0].options.motion == calm
            with pytest.raises(ConfigError, match="no gaze"):
                await session.set_motion(MotionOptions(gaze_at_camera=True))
            await asyncio.sleep(4)
            await screen.close()
        assert [state.options.motion for state in pipeline.states] == [calm, calm]
        with pytest.raises(SessionClosed):
            await session.set_motion(calm)

    run(body())


def test_a_model_that_moves_in_one_way_only_says_so_and_goes_on():
    async def body():
        async with session_of(Failing()) as session:
            with pytest.raises(ConfigError, match="one way only"):
                await session.set_motion(MotionOptions(head_motion=False))
            frames = await record(session, speech(10_000))
        assert frames

    run(body())


@pytest.mark.parametrize("recovery_s", [0, -1, 601, float("nan")])
def test_how_long_a_session_waits_has_a_range(recovery_s):
    with pytest.raises(ConfigError, match="recovery_s"):
        session_of(recovery_s=recovery_s)
