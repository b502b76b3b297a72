"""Head pose: known turns of a head are found again, and leave its proportions alone."""

import numpy as np
import pytest

from letstalk_rt.models.face.head_pose import (
    HeadShape,
    angles,
    average_head,
    in_face_sizes,
    opened_between,
    rotation,
    turn_between,
)
from letstalk_rt.models.geometry.landmarks import (
    LEFT_LID,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NUM_LANDMARKS,
    RIGHT_LID,
)

POSE = np.array([0.3, -0.2, 0.1, 0.4, -0.3, 0.15])


@pytest.fixture
def head():
    front = average_head()
    rng = np.random.default_rng(0)
    points = front.points[:, :2] * [40, 55] + [300, 200] + rng.normal(0, 0.3, (NUM_LANDMARKS, 2))
    return HeadShape.of(points)


def test_angles_are_the_inverse_of_rotation():
    turned = rotation(POSE[:3])
    np.testing.assert_allclose(angles(turned), POSE[:3], atol=1e-12)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)


def test_the_pose_of_a_turned_head_is_found(head):
    np.testing.assert_allclose(head.pose(head.shown(POSE)), POSE, atol=0.02)


def test_a_head_in_no_pose_is_shown_as_it_is(head):
    still = head.points[:, :2] + head.centre
    np.testing.assert_allclose(head.shown(np.zeros(6)), still, atol=1e-9)


def test_positive_yaw_moves_the_nose_to_the_right_and_positive_pitch_down(head):
    nose = int(head.points[:, 2].argmin())
    for axis, turn in ((0, [0.2, 0, 0]), (1, [0, 0.2, 0])):
        moved = head.shown(np.array([*turn, 0, 0, 0])) - head.shown(np.zeros(6))
        assert moved[nose, axis] > 0.05 * head.size


def test_what_the_lips_do_is_left_without_the_pose(head):
    opened = head.points[:, :2] + head.centre
    smile = np.zeros_like(opened)
    smile[[MOUTH_LEFT, MOUTH_RIGHT]] = [[-3, -2], [3, -2]]
    posed = head.shown(POSE) + np.exp(POSE[5]) * smile @ rotation(POSE[:3])[:2, :2].T
    np.testing.assert_allclose(head.unposed(posed, POSE), opened + smile, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_regression_tells_turns_wherever_the_face_is(head, axis):
    pose = np.zeros(6)
    rest = head.shown(pose)
    pose[axis] = 0.1
    turn = turn_between(rest, 1.3 * head.shown(pose) + [50, -20])
    assert abs(turn).argmax() == axis
    assert 0.07 < turn[axis] < 0.2  # more than this solid turns: landmarks that are read lag


def test_the_regression_tells_eyes_that_close_of_heads_that_tilt(head):
    rest = head.shown(np.zeros(6))
    shut = rest.copy()
    for upper, lower, *_ in (RIGHT_LID, LEFT_LID):
        shut[upper] = shut[lower]
    tilted = shut @ rotation(np.array([0, 0, 0.3]))[:2, :2].T
    assert opened_between(rest, shut) < -0.02
    assert opened_between(rest, tilted) == pytest.approx(opened_between(rest, shut), abs=1e-6)


def test_face_sizes_do_not_depend_on_place_and_size(head):
    points = head.shown(np.zeros(6))
    np.testing.assert_allclose(in_face_sizes(3 * points + 7), in_face_sizes(points), atol=1e-9)
