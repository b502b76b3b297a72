"""A face is followed from frame to frame; that none can be seen is noticed."""

import numpy as np
import pytest
from PIL import Image

from letstalk_rt.avatars import list_avatars
from letstalk_rt.models.face.face_tracker import EncoderReader, FaceTracker, TrackState
from letstalk_rt.models.loading import load_model

SIDE = 220


@pytest.fixture(scope="module")
def tracker():
    model = load_model("tiny")
    return FaceTracker(model.detector, EncoderReader(model.autoencoder))


@pytest.fixture(scope="module")
def portrait():
    path = next(iter(list_avatars().values()))
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE)))


def frame(portrait, *places, gain=1.0):
    """A frame of 480x270 with the portrait at places (left, top)."""
    image = np.full((270, 480, 3), 90.0)
    for left, top in places:
        image[top : top + SIDE, left : left + SIDE] = portrait
    return (gain * image).astype(np.uint8)


def test_landmarks_follow_a_face_that_moves(tracker, portrait):
    state = TrackState()
    first = tracker.track(frame(portrait, (40, 20)), state)
    for number in range(1, 8):
        face = tracker.track(frame(portrait, (40 + 6 * number, 20 + 3 * number)), state)
    moved = (face.landmarks - first.landmarks).mean(0)
    np.testing.assert_allclose(moved, (42, 21), atol=1.5)


def test_a_face_that_leaves_is_noticed_at_once_and_found_again(tracker, portrait):
    state = TrackState()
    assert tracker.track(frame(portrait, (40, 20)), state) is not None
    assert tracker.track(frame(portrait), state) is None
    found = [tracker.track(frame(portrait, (200, 30)), state) for _ in range(3)]
    assert found[-1] is not None and found[-1].landmarks[:, 0].mean() > 250


@pytest.mark.parametrize("gain", [0.25, 0.0])
def test_a_dim_face_is_read_and_a_dark_image_has_none(tracker, portrait, gain):
    state = TrackState()
    faces = [tracker.track(frame(portrait, (40, 20), gain=gain), state) for _ in range(3)]
    assert (faces[-1] is not None) == (gain > 0)


def test_a_second_face_is_noticed_while_the_first_is_followed(tracker, portrait):
    state = TrackState()
    tracker.track(frame(portrait, (10, 20)), state)
    assert not state.others
    faces = [tracker.track(frame(portrait, (10, 20), (250, 30)), state) for _ in range(7)]
    assert state.others
    assert faces[-1].landmarks[:, 0].mean() < 240


def test_a_reset_state_equals_a_new_one(tracker, portrait):
    state = TrackState()
    tracker.track(frame(portrait, (40, 20)), state)
    state.reset()
    assert state == TrackState()


def test_what_a_turn_reader_says_of_the_face_comes_with_it(portrait):
    model, asked = load_model("tiny"), []

    def nose_in_image(image, points):
        asked.append(image.shape)
        return points.mean(0) / image.shape[-1]

    reader = EncoderReader(model.autoencoder)
    tracker, state = FaceTracker(model.detector, reader, nose_in_image), TrackState()
    face = tracker.track(frame(portrait, (40, 20)), state)
    np.testing.assert_allclose(face.turns, face.landmarks.mean(0) / 480)
    assert tracker.track(frame(portrait), state) is None and asked == [(1, 3, 270, 480)]


def test_without_a_turn_reader_a_face_has_no_turns(tracker, portrait):
    assert tracker.track(frame(portrait, (40, 20)), TrackState()).turns.size == 0
