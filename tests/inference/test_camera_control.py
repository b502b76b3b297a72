"""What a camera moves in the embedded model: head, lips and eyes, in the portrait's proportions."""

import numpy as np
import pytest
import torch
from PIL import Image

from letstalk_rt.avatars import list_avatars
from letstalk_rt.inference.camera_control import LIMITS, MOST_DEVIATIONS, driven_lips, limited
from letstalk_rt.inference.code_control import eye_closures
from letstalk_rt.inference.motion_stage import MotionState
from letstalk_rt.inference.picture_state import PictureState
from letstalk_rt.inference.pipeline import AvatarPipeline
from letstalk_rt.inference.protocol import CameraStatus
from letstalk_rt.models.face.face_motion import LIPS, NUM_MOTION, POSE, SHUT, SMILE, DriveWindow
from letstalk_rt.models.face.head_pose import HeadShape
from letstalk_rt.models.geometry.landmarks import EYES
from letstalk_rt.models.loading import load_model
from letstalk_rt.models.motion.code import NUM_MOTION as NUM_CODE
from letstalk_rt.portrait.image import prepare_portrait


@pytest.fixture(scope="module")
def pipeline():
    return AvatarPipeline.on(load_model("tiny"), dtype="float32", compiled=False)


@pytest.fixture(scope="module")
def picture():
    path = next(iter(list_avatars().values()))
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture(scope="module")
def portrait(pipeline, picture):
    return prepare_portrait(picture, pipeline.finder, size=256)


def window(weight=1.0, mode="sound", **values):
    motion = np.zeros((4, NUM_MOTION), np.float32)
    for name, value in values.items():
        motion[:, {"pose": POSE, "shut": SHUT, "lips": LIPS, "smile": SMILE}[name]] = value
    return DriveWindow(np.full(4, weight, np.float32), motion, mode)


def shown_pose(pipeline, portrait, *drives):
    """The head pose in the last frame, relative to the portrait, as the encoder reads it."""
    state = pipeline.init_state(portrait)
    for drive in drives:
        pipeline.steer(state, drive.part)
        (frames,) = pipeline.step(np.zeros((1, 2560), np.float32), [state])
    (face,) = pipeline.finder.find_faces(frames[-1])
    (rest,) = pipeline.finder.find_faces(portrait.canvas)
    return HeadShape.of(rest.landmarks).pose(face.landmarks)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_portrait_turns_as_the_driver_does(pipeline, portrait, axis):
    turn = np.zeros(6)
    turn[axis] = 0.15
    ahead, back = (shown_pose(pipeline, portrait, window(pose=s * turn)) for s in (1, -1))
    moved = (ahead - back)[:3] / 2
    assert 0.05 < moved[axis] < 0.2  # a flat picture nods by half
    assert abs(moved).argmax() == axis


def test_without_weight_the_camera_changes_nothing(pipeline, portrait):
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 2560)).astype(np.float32)
    states = [pipeline.init_state(portrait) for _ in range(2)]
    pipeline.steer(states[0], window(0.0, pose=0.3, shut=1.0).part)
    first, second = (pipeline.step(sound, [state]) for state in states)
    np.testing.assert_array_equal(first, second)


def test_frames_of_a_live_window_are_asked_for_in_two_parts_and_shown_the_same(pipeline, portrait):
    turning = window(pose=0.2)
    turning.motion[:, 0] = [0.0, 0.1, 0.2, 0.3]
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 2560)).astype(np.float32)
    asked, shown, parts = [], [], []

    def steering(first, count):
        asked.append((first, count, len(parts)))
        return turning.part(first, count)

    for deliver in (None, parts.append):
        state = pipeline.init_state(portrait)
        pipeline.steer(state, steering)
        shown.append(pipeline.step(sound, [state], deliver)[0])
        pipeline.step(sound, [state], deliver)  # it holds for one window
    assert asked == [(0, 4, 0), (0, 2, 0), (2, 2, 2)]
    assert abs(shown[0].astype(int) - shown[1]).mean() < 0.05


def test_sessions_of_a_batch_are_asked_once(pipeline, portrait):
    states = [pipeline.init_state(portrait) for _ in range(2)]
    asked = []

    def steering(first, count):
        asked.append((first, count))

    pipeline.steer(states[1], steering)
    pipeline.step(np.zeros((2, 2560), np.float32), states, lambda parts: None)
    assert asked == [(0, 4)]


def test_a_drive_holds_for_one_window(pipeline, portrait):
    turn = [0.3, 0, 0, 0, 0, 0]
    driven = shown_pose(pipeline, portrait, window(pose=turn))
    after = shown_pose(pipeline, portrait, window(pose=turn), window(0.0))
    assert driven[0] > 0.15 and abs(after[0]) < 0.1


def test_eyes_close_with_the_drivers(pipeline, portrait):
    state = pipeline.init_state(portrait)
    state[MotionState].control.drive(window(shut=1.0))
    face = state[MotionState].control.face(
        torch.zeros(4, NUM_CODE), state[PictureState].features.latent[0]
    )
    assert eye_closures(face.shut) == [(1.0, 1.0)] * 4


def test_large_turns_approach_a_limit():
    np.testing.assert_allclose(limited(0.1 * LIMITS), 0.1 * LIMITS, rtol=0.01)
    assert (limited(10 * LIMITS) <= LIMITS).all() and (limited(10 * LIMITS) > 0.95 * LIMITS).all()


class TestLips:
    sound = torch.full((1, 4, 8), 0.1)
    usual = torch.full((8,), 0.2)
    most = 0.2 * MOST_DEVIATIONS

    def test_the_sound_moves_them_and_a_smile_is_added(self):
        values = driven_lips(self.sound, window(mode="sound", smile=[0.2, -0.1]), self.usual)
        expected = self.sound.clone()
        expected[..., 2] += 0.2
        expected[..., 3] -= 0.1
        torch.testing.assert_close(values, expected)

    def test_the_camera_moves_them(self):
        values = driven_lips(self.sound, window(mode="camera"), self.usual)
        torch.testing.assert_close(values, torch.zeros(1, 4, 8))

    def test_in_a_blend_the_sound_counts_while_there_is_speech(self):
        speech = driven_lips(self.sound, window(mode="blend"), self.usual)
        silence = driven_lips(0 * self.sound, window(mode="blend", lips=0.3), self.usual)
        torch.testing.assert_close(speech, torch.full((1, 4, 8), 0.06))
        shown = self.most * np.tanh(0.3 / self.most)
        torch.testing.assert_close(silence, torch.full((1, 4, 8), float(shown)))

    def test_lips_far_beyond_the_usual_approach_a_limit(self):
        values = driven_lips(self.sound, window(mode="camera", lips=3.0), self.usual)
        torch.testing.assert_close(values, torch.full((1, 4, 8), self.most))


def test_a_wide_open_mouth_does_not_keep_eyes_from_closing(pipeline, portrait):
    wide = [0.25, 0.12, 0.2, -0.05, -0.08, -0.07, 0.04, -0.03]
    state = pipeline.init_state(portrait)

    def eyes(shut):
        pipeline.steer(state, window(mode="camera", lips=wide, shut=shut).part)
        frame = pipeline.step(np.zeros((1, 2560), np.float32), [state])[0][-1]
        (face,) = pipeline.finder.find_faces(portrait.canvas)
        points = face.landmarks[EYES].round().astype(int)
        (left, top), (right, bottom) = points.min(0) - 2, points.max(0) + 2
        return frame[top:bottom, left:right].astype(float)

    assert np.abs(eyes(1.0) - eyes(0.0)).mean() > 5


@pytest.mark.parametrize("gap", [0.15, 0.3])
def test_a_mouth_that_opens_does_not_turn_the_head(pipeline, portrait, gap):
    lips = [gap, 0.7 * gap, 0, 0, 0, 0, 0, 0]
    poses = [shown_pose(pipeline, portrait, window(mode="camera", lips=v)) for v in (lips, 0.0)]
    yaw, pitch, roll = (poses[0] - poses[1])[:3]
    assert abs(yaw) < 0.01 and abs(pitch) < 0.02 and abs(roll) < 0.01


def test_a_portrait_before_the_camera_is_seen_and_rests(pipeline, picture):
    reader = pipeline.open_camera()
    readings = [reader.read(picture, n / 25, absolute=False) for n in range(12)]
    assert readings[0].status is CameraStatus.LEARNING
    assert readings[-1].status is CameraStatus.FACE
    assert np.abs(readings[-1].motion).max() < 0.05
    dark = reader.read(np.zeros_like(picture), 0.5, absolute=False)
    assert dark.status is CameraStatus.NO_FACE and dark.motion is None


def test_the_tracker_sees_the_portrait_turn(pipeline, portrait, picture):
    reader = pipeline.open_camera()
    state = pipeline.init_state(portrait)
    for number in range(11):
        reader.read(portrait.canvas, number / 25, absolute=False)
    turned = np.array([0.25, 0, 0, 0, 0, 0])
    pipeline.steer(state, window(pose=turned.tolist()).part)
    frames = pipeline.step(np.zeros((1, 2560), np.float32), [state])[0]
    for number, frame in enumerate([*frames, *[frames[-1]] * 8], 11):
        reading = reader.read(frame, number / 25, absolute=False)
    assert reading.motion[0] == pytest.approx(limited(turned)[0], abs=0.04)
