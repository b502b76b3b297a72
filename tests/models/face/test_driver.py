"""The driver: what landmarks and the pose reader say becomes one turn of the head."""

import numpy as np
import pytest

from letstalk_rt.models.face import face_motion as motion_of
from letstalk_rt.models.face.detector import Box
from letstalk_rt.models.face.driver import NEUTRAL_FRAMES, Driver
from letstalk_rt.models.face.face_tracker import TrackedFace
from letstalk_rt.models.face.head_pose import average_head

REST = np.array([0.1, -0.3])
"""What the pose reader says of this person at rest."""


def face(turns):
    points = (average_head().points[:, :2] * [40, 55] + [200, 200]).astype(np.float32)
    return TrackedFace(points, 0.9, Box(200, 200, 250, 1.0), np.asarray(turns))


def shown(turns, *, frames=40):
    """Return yaw, pitch and roll of a driver at rest whose pose reader then says `turns`."""
    driver, motion = Driver(), None
    rest = REST if len(turns) else turns
    for number in range(NEUTRAL_FRAMES + frames):
        now = rest if number < NEUTRAL_FRAMES else turns
        motion = driver.motion(face(now), number / 25, absolute=False)
    assert motion is not None
    return motion[motion_of.POSE][:3]


def test_a_head_as_it_was_at_rest_is_not_turned():
    np.testing.assert_allclose(shown(REST), 0, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_what_the_pose_reader_sees_turns_the_head_the_same_way(axis):
    turned = 0.2 * np.eye(2)[axis]
    once, twice = shown(REST + turned), shown(REST + 2 * turned)
    others = [other for other in range(3) if other != axis]
    assert 0.02 < once[axis] < 0.2
    np.testing.assert_allclose(once[others], 0, atol=1e-6)
    np.testing.assert_allclose(twice[axis], 2 * once[axis], rtol=0.02)


def test_without_a_pose_reader_the_landmarks_tell():
    np.testing.assert_allclose(shown(np.zeros(0)), 0, atol=1e-6)
