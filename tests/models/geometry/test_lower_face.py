"""What of a crop is masked: the lower face, placed by what speech does not move."""

import numpy as np
import pytest
import torch
from support.faces import average_face

from letstalk_rt.models.geometry.landmarks import LIPS
from letstalk_rt.models.geometry.lower_face import lower_face_box, lower_face_mask, masked_frames
from letstalk_rt.models.geometry.mouth_crop import RIGID


@pytest.fixture(scope="module")
def face():
    points = average_face()[0]
    return 0.8 * (points - points.mean(0)) / points.sub(points.mean(0)).abs().amax()


def test_it_covers_the_mouth_also_an_open_one_and_not_the_eyes(face):
    left, top, right, bottom = lower_face_box(face)
    for drop in (0.0, 0.15):
        lips = face[LIPS].clone()
        lips[:, 1] += drop
        assert (lips[:, 0] > left).all() and (lips[:, 0] < right).all()
        assert (lips[:, 1] > top).all() and (lips[:, 1] < bottom).all()
    assert (face[RIGID[:4], 1] < top).all()


def test_speech_does_not_move_it(face):
    spoken = face.clone()
    others = [i for i in range(len(face)) if i not in RIGID]
    spoken[others] += 0.2 * torch.randn(len(others), 2)
    assert torch.equal(lower_face_box(spoken), lower_face_box(face))


def test_it_goes_with_the_face(face):
    moved = 0.5 * face + torch.tensor([0.2, -0.1])
    expected = 0.5 * lower_face_box(face) + torch.tensor([0.2, -0.1, 0.2, -0.1])
    torch.testing.assert_close(lower_face_box(moved), expected)


def test_frames_are_grey_there_and_as_they_were_elsewhere(face):
    frames = torch.rand(2, 3, 64, 64) + 0.1
    points = torch.stack([face, face + 0.1])
    hidden, mask = masked_frames(frames, points), lower_face_mask(points, 64)
    assert 0.1 < float(mask[0].float().mean()) < 0.5 and not torch.equal(mask[0], mask[1])
    for before, after, where in zip(frames, hidden, mask, strict=True):
        assert not after[:, where].any()
        np.testing.assert_array_equal(after[:, ~where], before[:, ~where])
