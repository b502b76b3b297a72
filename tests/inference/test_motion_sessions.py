"""Sessions whose whole face a motion denoiser moves: options, interrupts, batches and cameras."""

import numpy as np
import pytest
import torch
from support.small_model import face_points, make_motion_model, make_portrait, make_speech

from letstalk_rt.inference.camera_control import SMILED
from letstalk_rt.inference.code_control import EyeShape, eye_closures
from letstalk_rt.inference.motion_stage import MotionState
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.face import face_motion as motion_of
from letstalk_rt.models.face.face_motion import DriveWindow
from letstalk_rt.models.loading import load_model, save_model
from letstalk_rt.models.motion.code import GAZE, HEAD, LIPS, NUM_MOTION, channel
from letstalk_rt.models.motion.expression import EXPRESSION_NAMES
from letstalk_rt.models.presets import PRESETS
from letstalk_rt.types import MotionOptions


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline(make_motion_model())


def begin(pipeline, seed=0, portrait=0, **options):
    made = StateOptions(seed=seed, motion=MotionOptions(**options))
    return pipeline.init_state(make_portrait(portrait), made)


def hops(pipeline, count, seed=0):
    return make_speech(count * pipeline.hop / 16_000, seed).reshape(count, 1, -1)


def run(pipeline, state, heard):
    return np.concatenate([pipeline.step(hop, [state])[0] for hop in heard])


def face(state, codes):
    return state[MotionState].control.face(codes, state[PictureState].features.latent[0])


def latents(state, codes):
    return face(state, codes).latents


def codes(**values):
    made = torch.zeros(2, NUM_MOTION)
    for name, value in values.items():
        made[:, channel(name)] = value
    return made


def test_speech_moves_the_face_and_the_same_seed_moves_it_the_same(pipeline):
    heard = hops(pipeline, 4)
    first = run(pipeline, begin(pipeline), heard)
    assert np.array_equal(first, run(pipeline, begin(pipeline), heard))
    assert not np.array_equal(first, run(pipeline, begin(pipeline, seed=1), heard))
    assert not np.array_equal(first, run(pipeline, begin(pipeline), 0 * heard))
    state = begin(pipeline)
    run(pipeline, state, heard)
    state.reset()
    assert np.array_equal(first, run(pipeline, state, heard)), "a session begins anew"


def test_sessions_of_a_batch_are_moved_as_alone(pipeline):
    heard = hops(pipeline, 3)
    alone = [run(pipeline, begin(pipeline, seed), heard) for seed in (1, 2)]
    states = [begin(pipeline, seed) for seed in (1, 2)]
    parts = [pipeline.step(np.repeat(hop, 2, 0), states) for hop in heard]
    for index, one in enumerate(alone):
        together = np.concatenate([part[index] for part in parts])
        assert np.abs(one.astype(int) - together).max() <= 2


def test_memory_goes_on_from_the_last_frame_that_was_shown(pipeline):
    state = begin(pipeline)
    run(pipeline, state, hops(pipeline, 5))
    shown = state[MotionState].memory.codes.flatten(1, 2).clone()
    pipeline.interrupt(state, unseen=6)
    assert torch.equal(state[MotionState].memory.codes.flatten(1, 2)[:, -1], shown[:, -7])
    pipeline.step(np.zeros((1, pipeline.hop), np.float32), [state])
    after = state[MotionState].memory.codes.flatten(1, 2)[0]
    lips = after[-5:, LIPS]
    rest = lips[-1]
    assert (lips[1] - (lips[0] + rest) / 2).abs().max() < 0.6 * (lips[0] - rest).abs().max() + 1e-6


def test_options_change_what_the_code_does(pipeline):
    moved = codes(yaw=0.1, gaze_x=0.05, smile=0.2, gap=0.1)
    plain = begin(pipeline)
    still = latents(begin(pipeline, head_motion=False), moved)
    without_head = moved.clone()
    without_head[:, HEAD] = 0
    torch.testing.assert_close(still, latents(plain, without_head))
    assert not torch.allclose(still, latents(plain, moved))
    held = face(begin(pipeline, gaze_at_camera=True), moved).eyes
    without_gaze = moved.clone()
    without_gaze[:, GAZE] = 0
    torch.testing.assert_close(held, face(plain, without_gaze).eyes)
    calm = latents(begin(pipeline, expressiveness=0.0), codes(smile=0.3, gap=0.2, brow_inner=1.0))
    torch.testing.assert_close(calm, latents(plain, codes()))


def test_options_changed_in_a_session_hold_from_the_next_window_on(pipeline):
    chosen = {"expressiveness": 0.5, "head_motion": False, "blinks_per_min": 0.0}
    heard = hops(pipeline, 4)
    plain, changed, whole = begin(pipeline), begin(pipeline), begin(pipeline, **chosen)
    before = [run(pipeline, state, heard[:2]) for state in (plain, changed)]
    assert np.array_equal(*before)
    address = changed[MotionState].blink_gain.data_ptr()
    pipeline.set_motion(changed, MotionOptions(**chosen))
    assert not np.array_equal(*(run(pipeline, state, heard[2:]) for state in (plain, changed)))
    moved = codes(yaw=0.1, smile=0.2, gap=0.1)
    torch.testing.assert_close(latents(changed, moved), latents(whole, moved))
    assert torch.equal(changed[MotionState].blink_gain, whole[MotionState].blink_gain)
    assert changed[MotionState].blink_gain.data_ptr() == address


def test_options_changed_stay_when_the_portrait_changes(pipeline):
    state = begin(pipeline)
    pipeline.set_motion(state, MotionOptions(head_motion=False))
    pipeline.change_portrait(state, make_portrait(1))
    assert not state[MotionState].control.options.head_motion


def test_blinks_can_be_left_out(pipeline):
    state = begin(pipeline, blinks_per_min=0)
    assert float(state[MotionState].blink_gain) == 0


def test_lids_and_gaze_are_relative_to_the_eyes_of_the_portrait(pipeline):
    eyes = EyeShape.of(face_points())
    assert eyes.width == pytest.approx(0.2 / 0.7, rel=0.02)
    assert eyes.opening == pytest.approx(0.1 / 0.2, rel=0.1)
    shut = torch.tensor([[-0.2, 0.02], [0.6, 1.4]])
    assert eye_closures(shut) == [(0.0, 0.0), (1.0, 1.0)]
    wide = codes(gaze_x=0.05)
    wide[:, channel("shut")] = torch.tensor([-0.2, 0.9])
    state = begin(pipeline)
    state[PictureState].features.points = face_points()[None]
    state[MotionState].control.set_portrait(state[PictureState].features)
    shown = face(state, wide).eyes
    assert shown[0, 0] < 0 and shown[1, 0] == 0, "lids that close are closed by the painter"
    assert shown[0, 2] > 0.05


def test_a_camera_moves_head_lids_and_lips_by_its_weight(pipeline):
    state = begin(pipeline)
    seen = np.zeros((2, motion_of.NUM_MOTION))
    seen[:, motion_of.POSE.start], seen[:, motion_of.SHUT] = 0.15, 1.0
    own = latents(state, codes())
    for weight, closed in ((0.0, 0.0), (1.0, 1.0)):
        state[MotionState].control.drive(DriveWindow(np.full(2, weight), seen, "sound"))
        shown = face(state, codes())
        assert torch.allclose(shown.latents, own, atol=1e-4) == (weight == 0)
        assert shown.shut.flatten().tolist() == pytest.approx([closed] * 4)


def test_a_drivers_brows_gaze_and_smile_are_shown_like_the_codes(pipeline):
    state, expression = begin(pipeline), pipeline.model.motion.expression
    expression.brows.normal_()
    seen = np.zeros((2, motion_of.NUM_MOTION))
    smile = expression.lips[EXPRESSION_NAMES.index("smile"), SMILED].numpy()
    seen[:, motion_of.SMILE] = 0.4 * smile
    seen[:, motion_of.BROWS], seen[:, motion_of.GAZE] = -0.5, [0.03, 0.0]
    eyes = EyeShape.of(
        pipeline.init_state(make_portrait())[PictureState].features.points[0].float()
    )
    gaze = 0.03 * eyes.face_size
    meant = codes(smile=0.4, brow_down=0.5, gaze_x=gaze)
    state[MotionState].control.drive(DriveWindow(np.ones(2), seen, "sound"))
    driven, own = face(state, codes(smile=-0.7)), face(begin(pipeline), meant)
    torch.testing.assert_close(driven.brows, own.brows)
    torch.testing.assert_close(driven.eyes, own.eyes)
    size = pipeline.model.motion_scale * 0 + 1
    cheeks = (driven.latents - own.latents).abs().amax() / size.amax()
    assert cheeks < 0.3 * (own.latents - latents(begin(pipeline), codes())).abs().amax()
    state[MotionState].control.drive(DriveWindow(np.zeros(2), seen, "sound"))
    torch.testing.assert_close(face(state, meant).brows, own.brows)


def test_a_new_portrait_keeps_the_motion(pipeline):
    state = begin(pipeline)
    run(pipeline, state, hops(pipeline, 3))
    before = state[MotionState].memory.codes.clone()
    pipeline.change_portrait(state, make_portrait(1))
    assert torch.equal(state[MotionState].memory.codes, before)
    other = begin(pipeline, portrait=1)
    torch.testing.assert_close(latents(state, codes(yaw=0.1)), latents(other, codes(yaw=0.1)))


def test_a_motion_denoiser_is_saved_with_its_model(tmp_path, monkeypatch):
    model = make_motion_model()
    monkeypatch.setitem(PRESETS, "small", model.preset)
    save_model(model, tmp_path / "small.safetensors")
    again = load_model("small", tmp_path / "small.safetensors")
    assert again.motion is not None
    torch.testing.assert_close(again.motion.levels, model.motion.levels)
    torch.testing.assert_close(again.motion.predict, model.motion.predict)
