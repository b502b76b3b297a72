"""What the frames of a step show of a camera, and how long later frames wait for it."""

import numpy as np
import pytest

from letstalk_rt.models.face.face_motion import NUM_MOTION, DriveWindow
from letstalk_rt.session.camera_steering import CameraSteering
from letstalk_rt.session.camera_times import CameraTimes

BEHIND_S = 0.1


class FakeCamera:
    """Has seen a face 30 ms ago, whenever it is asked."""

    def __init__(self, sees=True):
        self.sees, self.times_s = sees, []

    def age_s(self, now_s):
        return 0.03

    def window(self, times_s):
        self.times_s += times_s
        count = len(times_s)
        motion = np.zeros((count, NUM_MOTION), np.float32)
        return DriveWindow(np.ones(count), motion, "sound") if self.sees else None


class Steps:
    """Steps of 160 ms, one after the other: 26 ms of sampling, then two parts are rendered."""

    def __init__(self, camera, *, render_s=0.03, is_live=False):
        self.camera, self.times, self.now_s = camera, CameraTimes(), 0.0
        self.render_s, self.is_live = render_s, is_live

    def pause(self, until_s):
        self.now_s = max(self.now_s, until_s)

    def run(self, number):
        """Return the steering of a step, and when each part was asked for and the step ended."""
        self.now_s = started_s = 0.16 * number
        heard_s = started_s if self.is_live else None
        steering = CameraSteering(
            self.camera, self.times, 4, started_s, BEHIND_S, heard_s, lambda: self.now_s, self.pause
        )
        self.now_s += 0.026
        asked_s = []
        for first in (0, 2):
            steering(first, 2)
            asked_s.append(self.now_s - started_s)
            self.now_s += self.render_s
        return steering, asked_s, self.now_s - started_s


def test_later_frames_wait_until_they_show_the_motion_of_their_time():
    steps = Steps(FakeCamera())
    for number in range(6):
        steering, asked_s, ended_s = steps.run(number)
    assert asked_s == pytest.approx([0.026, 0.106])
    assert ended_s == pytest.approx(0.136)
    assert steering.waited_s == pytest.approx(0.05)
    # Every frame is 40 ms later than the one before it, and the last of a part is the newest.
    np.testing.assert_allclose(np.diff(steps.camera.times_s), 0.04, atol=1e-6)
    assert steering.captured_at(3) == pytest.approx(5 * 0.16 + 0.106 - 0.03)
    assert steering.captured_at(4) is None


def test_a_step_that_waits_ends_in_time():
    steering, asked_s, ended_s = Steps(FakeCamera(), render_s=0.05).run(0)
    assert asked_s[1] == pytest.approx(0.09)
    assert ended_s == pytest.approx(0.14)
    steering, _, _ = Steps(FakeCamera(), render_s=0.07).run(0)
    assert steering.waited_s == 0.0


def test_without_a_face_nothing_waits():
    steering, asked_s, _ = Steps(FakeCamera(sees=False)).run(0)
    assert asked_s == pytest.approx([0.026, 0.056]) and steering.waited_s == 0.0
    assert steering.captured_at(0) is None


def test_with_a_live_microphone_frames_show_what_was_captured_with_their_sound():
    steps = Steps(FakeCamera(), is_live=True)
    for number in range(4):
        steering, asked_s, _ = steps.run(number)
    assert asked_s == pytest.approx([0.026, 0.056])
    heard_s = 3 * 0.16
    shown_s = [steering.captured_at(frame) for frame in range(4)]
    expected = [heard_s - BEHIND_S - 0.04 * before for before in (3, 2, 1, 0)]
    assert shown_s == pytest.approx(expected)


def test_a_step_that_is_run_again_asks_again():
    steps = Steps(FakeCamera())
    steering, _, _ = steps.run(0)
    steering(0, 4)
    assert len(steering.captured_s) == 4
