"""Lip control: motion with given lip values, in sessions with a lip reader."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_model import (
    LIP_READER,
    PRESET,
    face_points,
    make_lip_model,
    make_model,
    make_portrait,
    make_speech,
    open_mouth,
)

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.lip_control import PRESS, LipControl
from letstalk_rt.inference.motion_control import EASING, MotionController
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import StateOptions
from letstalk_rt.models.audio_encoder.lip_reader import LipReaderConfig
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.face.lip_motion import LipMotion
from letstalk_rt.models.face.lip_values import GAPS, LIP_VALUES, NUM_LIP_VALUES, lip_value_matrix
from letstalk_rt.models.presets import get_preset, with_lookahead
from letstalk_rt.types import MotionOptions

GAP = LIP_VALUES.index("gap")


@pytest.fixture(scope="module")
def model():
    return make_lip_model()


@pytest.fixture
def control(model):
    points = open_mouth(face_points(), 0.2)
    scale = model.motion_scale.expand(-1, 4, 4).flatten()
    matrix = model.autoencoder.landmark_matrix
    return LipControl.of(model.lip_motion, points, matrix, scale), points


class TestControl:
    def test_motion_has_the_given_gap(self, control):
        lip_control, points = control
        motion = torch.randn(2, 4, 24, 4, 4)
        values = torch.zeros(2, 4, NUM_LIP_VALUES)
        values[..., GAPS] = 0.15
        made = lip_control.apply(motion, values).flatten(-3) @ lip_control.read.T
        own = lip_value_matrix(points)[GAPS] @ points.flatten()
        gaps = made[..., GAPS] + own
        torch.testing.assert_close(gaps, torch.full_like(gaps, 0.15), atol=5e-3, rtol=0.02)

    def test_parted_lips_of_a_portrait_close_at_rest(self, control):
        lip_control, points = control
        made = lip_control.apply(torch.zeros(1, 24, 4, 4), torch.zeros(1, NUM_LIP_VALUES))
        gap = (made.flatten(-3) @ lip_control.read.T)[0, GAP] + (
            lip_value_matrix(points) @ points.flatten()
        )[GAP]
        assert gap == pytest.approx(-PRESS, abs=5e-3)

    def test_closed_lips_of_a_portrait_are_not_pressed(self, model):
        points, scale = (
            open_mouth(face_points(), 0.005),
            model.motion_scale.expand(-1, 4, 4).flatten(),
        )
        matrix = model.autoencoder.landmark_matrix
        lip_control = LipControl.of(model.lip_motion, points, matrix, scale)
        motion = torch.zeros(1, 24, 4, 4)
        torch.testing.assert_close(
            lip_control.apply(motion, torch.zeros(1, NUM_LIP_VALUES)), motion
        )

    def test_the_background_flow_stays(self, control):
        lip_control, _ = control
        motion = torch.randn(1, 24, 4, 4)
        made = lip_control.apply(motion, torch.ones(1, NUM_LIP_VALUES))
        assert torch.equal(made[:, 16:], motion[:, 16:])

    def test_lip_motion_that_was_not_fitted_changes_nothing(self, model):
        scale = model.motion_scale.expand(-1, 4, 4).flatten()
        lip_control = LipControl.of(
            LipMotion(), face_points(), model.autoencoder.landmark_matrix, scale
        )
        motion = torch.randn(1, 24, 4, 4)
        assert torch.equal(lip_control.apply(motion, torch.zeros(1, NUM_LIP_VALUES)), motion)


class TestSession:
    def test_expressiveness_scales_the_mouth_opening(self, model):
        features = AvatarPipeline(model).init_state(make_portrait()).features
        features.points = open_mouth(face_points(), 0.0)[None]
        motion, mouth = torch.zeros(1, 2, 24, 4, 4), torch.zeros(1, 2, NUM_LIP_VALUES)
        mouth[..., GAPS] = 0.1
        gaps = {}
        for size in (1.0, 2.0):
            options = MotionOptions(expressiveness=size, blinks_per_min=0)
            motion_control = MotionController(options, model, features, 0)
            made = motion_control.apply(motion, mouth) * model.motion_scale
            read = lip_value_matrix(features.points[0]) @ model.autoencoder.landmark_matrix
            gaps[size] = float((read @ made[0, 0].flatten())[GAP])
        assert gaps[2.0] == pytest.approx(2 * gaps[1.0], rel=0.05)

    def test_after_an_interrupt_the_mouth_continues_from_the_last_shown_frame(self, model):
        features = AvatarPipeline(model).init_state(make_portrait()).features
        motion = torch.zeros(1, 4, 24, 4, 4)
        said = torch.linspace(0, 0.3, 4)[None, :, None].expand(1, 4, NUM_LIP_VALUES)
        quiet = torch.zeros(1, 4, NUM_LIP_VALUES)
        cut, seen = (
            MotionController(MotionOptions(blinks_per_min=0), model, features, 0) for _ in "ab"
        )
        cut.apply(motion, said)
        cut.rewind(2)
        cut.ease_from(motion[:, 0])
        half = quiet.clone()
        half[:, 0] = (1 - EASING[0]) * said[:, 1]
        torch.testing.assert_close(cut.apply(motion, quiet), seen.apply(motion, half))

    def test_lips_depend_on_the_audio(self, model):
        pipeline = AvatarPipeline(model)
        sounds = [np.zeros((1, 2560), np.float32), make_speech(0.16)[None]]
        shown = [pipeline.step(s, [pipeline.init_state(make_portrait())]) for s in sounds]
        assert not np.array_equal(*shown)

    @pytest.mark.parametrize("lookahead", [0, 1])
    def test_sessions_may_use_less_look_ahead(self, model, lookahead):
        pipeline, speech = AvatarPipeline(model), make_speech(0.48).reshape(3, 1, -1)
        state = pipeline.init_state(make_portrait(), StateOptions(lookahead_frames=lookahead))
        assert all(len(pipeline.step(hop, [state])[0]) == 4 for hop in speech)

    def test_a_reset_session_and_one_of_two_give_the_same(self, model):
        pipeline, speech = AvatarPipeline(model), make_speech(0.48).reshape(3, 1, -1)
        states = [pipeline.init_state(make_portrait()) for _ in range(2)]
        first = [pipeline.step(hop, states[:1]) for hop in speech]
        states[0].reset()
        again = [pipeline.step(hop, states[:1]) for hop in speech]
        np.testing.assert_array_equal(first, again)
        states[0].reset()
        both = [pipeline.step(np.concatenate([hop, 0 * hop]), states)[:1] for hop in speech]
        assert np.abs(np.stack(first).astype(int) - np.stack(both)).max() <= 2


class TestPreset:
    def test_lip_reader_and_audio_encoder_have_one_look_ahead(self):
        preset = with_lookahead(get_preset("tiny"), 160)
        assert preset.lips.lookahead_ms == preset.audio.lookahead_ms == 160
        wrong = replace(PRESET, lips=replace(LIP_READER, lookahead_ms=40))
        with pytest.raises(ConfigError, match="look-ahead of 80 ms"):
            AvatarModel(wrong)

    def test_a_model_without_landmarks_has_no_reader(self):
        with pytest.raises(ConfigError, match="latents hold"):
            AvatarModel(replace(get_preset("b"), lips=LipReaderConfig()))

    def test_a_lip_reader_is_optional(self):
        assert make_model().lips is None
