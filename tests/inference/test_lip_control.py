"""Lip control: motion with given lip values."""

import pytest
import torch
from support.small_model import face_points, make_motion_model, open_mouth

from letstalk_rt.inference.lip_control import PRESS, LipControl
from letstalk_rt.models.face.lip_values import GAPS, LIP_VALUES, NUM_LIP_VALUES, lip_value_matrix
from letstalk_rt.models.face.talking_mouth import TalkingMouth

GAP = LIP_VALUES.index("gap")


@pytest.fixture(scope="module")
def model():
    return make_motion_model()


@pytest.fixture
def control(model):
    points = open_mouth(face_points(), 0.2)
    scale = model.motion_scale.expand(-1, 4, 4).flatten()
    matrix = model.autoencoder.landmark_matrix
    return LipControl.of(model.motion.expression.mouth, points, matrix, scale), points


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
        lip_control = LipControl.of(model.motion.expression.mouth, points, matrix, scale)
        motion = torch.zeros(1, 24, 4, 4)
        torch.testing.assert_close(
            lip_control.apply(motion, torch.zeros(1, NUM_LIP_VALUES)), motion
        )

    def test_the_background_flow_stays(self, control):
        lip_control, _ = control
        motion = torch.randn(1, 24, 4, 4)
        made = lip_control.apply(motion, torch.ones(1, NUM_LIP_VALUES))
        assert torch.equal(made[:, 16:], motion[:, 16:])

    def test_a_mouth_that_was_not_fitted_changes_nothing(self, model):
        scale = model.motion_scale.expand(-1, 4, 4).flatten()
        lip_control = LipControl.of(
            TalkingMouth(), face_points(), model.autoencoder.landmark_matrix, scale
        )
        motion = torch.randn(1, 24, 4, 4)
        assert torch.equal(lip_control.apply(motion, torch.zeros(1, NUM_LIP_VALUES)), motion)
