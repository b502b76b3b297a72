"""Directed windows on the real code: head, brows, gaze, lids; one window each; other processes."""

import numpy as np
import pytest
import torch
from support.isolated_models import isolated
from support.live_sessions import session_of
from support.sessions import RATE, record, speech
from support.small_model import (
    make_model,
    make_motion_model,
    make_portrait,
    make_speech,
)
from support.virtual_time import run_real

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.code_control import eye_closures
from letstalk_rt.inference.motion_stage import MotionState
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.face import face_motion as motion_of
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.models.motion.code import NUM_MOTION, channel
from letstalk_rt.performance.direction import NUM_CHANNELS, DirectedWindow
from letstalk_rt.performance.direction import channel as directed_channel
from letstalk_rt.session.avatar import Avatar
from letstalk_rt.types import MotionOptions, Portrait


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_motion_model())


def directed(count=4, kept=1.0, closures=(0.0, 0.0), style=(0.0,) * 6, blinks=1.0, **added):
    rows = np.zeros((count, NUM_CHANNELS), np.float32)
    for name, value in added.items():
        rows[:, directed_channel(name)] = value
    shares = np.full_like(rows, kept)
    closed = np.tile(np.float32(closures), (count, 1))
    return DirectedWindow(rows, shares, closed, np.float32(style), blinks)


def begin(pipeline, **options):
    return pipeline.init_state(make_portrait(), StateOptions(motion=MotionOptions(**options)))


def face(state, codes, window=None):
    return state[MotionState].control.face(codes, state[PictureState].features.latent[0], window)


def codes(count=4, **values):
    made = torch.zeros(count, NUM_MOTION)
    for name, value in values.items():
        made[:, channel(name)] = value
    return made


def hops(pipeline, count):
    return make_speech(count * pipeline.hop / 16_000).reshape(count, 1, -1)


def same(one, other):
    for name in ("latents", "eyes", "brows"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))
    assert eye_closures(one.shut) == eye_closures(other.shut)


def test_what_is_added_is_shown_as_if_it_had_been_sampled(pipeline):
    state = begin(pipeline)
    moved = {"yaw": 0.1, "gaze_x": 0.03, "shut": -0.1}
    same(face(state, codes(), directed(**moved)), face(state, codes(**moved)))
    frowns = face(state, codes(), directed(brow_down=0.4)).latents
    assert not torch.allclose(frowns, face(state, codes()).latents, atol=1e-3)


def test_less_of_the_sampled_motion_may_be_kept(pipeline):
    state = begin(pipeline)
    same(
        face(state, codes(yaw=0.2, gaze_y=0.04), directed(kept=0.5)),
        face(state, codes(yaw=0.1, gaze_y=0.02)),
    )
    spoken = codes(gap=0.3, pucker=0.2)
    same(face(state, spoken, directed(kept=0.0)), face(state, spoken))


def test_gestures_are_shown_whatever_the_options_leave_out(pipeline):
    still = begin(pipeline, head_motion=False, gaze_at_camera=True)
    moved = face(still, codes(yaw=0.2, gaze_x=0.1), directed(pitch=0.1, gaze_x=0.02))
    same(moved, face(begin(pipeline), codes(pitch=0.1, gaze_x=0.02)))


def test_a_camera_has_precedence(pipeline):
    state = begin(pipeline)
    seen = np.zeros((4, motion_of.NUM_MOTION), np.float32)
    seen[:, motion_of.POSE.start] = 0.1

    def drive():
        state[MotionState].control.drive(DriveWindow(np.ones(4, np.float32), seen, "sound"))

    drive()
    alone = face(state, codes())
    drive()
    torch.testing.assert_close(face(state, codes(), directed(yaw=0.3)).latents, alone.latents)


def test_each_eye_closes_by_itself(pipeline):
    state = begin(pipeline)
    shown = face(state, codes(shut=0.1), directed(closures=(0.0, 1.0)))
    left, right = zip(*eye_closures(shown.shut), strict=True)
    assert max(left) < 0.3 and min(right) == 1
    both = eye_closures(face(state, codes(shut=0.8), directed(closures=(0.0, 1.0))).shut)
    assert both == [(1.0, 1.0)] * 4, "a blink goes on in a wink"


def test_a_direction_holds_for_one_window_and_is_not_remembered(pipeline):
    heard = hops(pipeline, 3)
    plain, changed = begin(pipeline), begin(pipeline)
    first = [pipeline.step(hop, [plain])[0] for hop in heard]
    pipeline.direct(changed, directed(yaw=0.2, brow_inner=0.5))
    second = [pipeline.step(hop, [changed])[0] for hop in heard]
    assert not np.array_equal(first[0], second[0])
    for one, other in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_style_reaches_the_denoiser_and_its_memory(pipeline):
    pipeline.model.motion.embed_style.weight.normal_(std=0.3)
    heard = hops(pipeline, 2)
    plain, styled = begin(pipeline), begin(pipeline)
    pipeline.direct(styled, directed(style=(3, 0, 0, 0, 0, 0)))
    for state in (plain, styled):
        pipeline.step(heard[0], [state])
    assert not torch.equal(plain[MotionState].memory.codes, styled[MotionState].memory.codes)


def test_blinks_are_more_often_while_that_is_asked(pipeline):
    state = begin(pipeline)
    pipeline.direct(state, directed(blinks=3.0))
    usual = float(state[MotionState].blink_gain)
    state[MotionState].direction = state.direction
    assert float(state[MotionState].shown_blink_gain) == pytest.approx(3 * usual)


def test_sessions_of_a_batch_are_directed_one_by_one(pipeline):
    states = [begin(pipeline) for _ in range(2)]
    pipeline.direct(states[1], directed(yaw=0.25))
    one, other = pipeline.step(np.repeat(hops(pipeline, 1)[0], 2, 0), states)
    alone = pipeline.step(hops(pipeline, 1)[0], [begin(pipeline)])[0]
    assert np.abs(one.astype(int) - alone).max() <= 2 < np.abs(other.astype(int) - alone).max()


def test_an_interrupt_and_a_reset_forget_the_direction(pipeline):
    state = begin(pipeline)
    pipeline.direct(state, directed(yaw=0.2))
    state.reset()
    assert state.direction is None and state[MotionState].direction is None


def test_a_model_without_a_motion_denoiser_is_not_directable():
    plain = AvatarPipeline(make_model())
    assert not plain.is_directable
    with pytest.raises(ConfigError, match="no motion denoiser"):
        plain.direct(plain.init_state(make_portrait()), directed())


def black(size=32):
    canvas = np.zeros((size, size, 3), np.uint8)
    return Portrait(canvas, canvas, (0.0, 0.0, float(size)))


def test_directions_travel_to_the_process_of_the_model(tmp_path):
    pipeline = isolated(tmp_path, model="DirectedPipeline")
    try:
        assert pipeline.is_directable
        states = [pipeline.init_state(black()) for _ in range(2)]
        pipeline.direct(states[1], directed(smile=0.2))
        silence = np.zeros((2, 2560), np.float32)
        levels = [window.max() for window in pipeline.step(silence, states)]
        assert levels == [0, 20]
        assert pipeline.step(silence, states)[1].max() == 0, "it holds for one window"
    finally:
        pipeline.close()


def test_a_session_whose_model_runs_elsewhere_is_directed_and_outlives_it(tmp_path):
    async def body():
        avatar = Avatar.from_pipeline(pipeline, black())
        with avatar:
            async with avatar.session(idle=False, mood="cheerful") as session:
                before = await record(session, speech(RATE))
                (tmp_path / "kill").touch()
                after = await record(session, speech(RATE))
        assert min(frame.rgb.max() for frame in before[4:-4]) >= 10
        assert min(frame.rgb.max() for frame in after[4:-4]) >= 10, "its mood is kept"

    pipeline = isolated(tmp_path, model="DirectedPipeline")
    try:
        run_real(body())
    finally:
        pipeline.close()


def test_an_isolated_model_that_cannot_be_directed_says_so(tmp_path):
    pipeline = isolated(tmp_path)
    try:
        with pytest.raises(ConfigError, match="no motion denoiser"):
            session_of(pipeline).set_mood("warm")
        with pytest.raises(ConfigError, match="no motion denoiser"):
            pipeline.direct(pipeline.init_state(black()), directed())
    finally:
        pipeline.close()
