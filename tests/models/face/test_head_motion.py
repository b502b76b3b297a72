"""Heads that move: what is fitted to tracks is found again."""

import numpy as np
import pytest
import torch

from letstalk_rt.models.autoencoder.background_flow import SIZE
from letstalk_rt.models.face.head_motion import HeadMotion, face_size, rigid_landmarks
from letstalk_rt.models.geometry.landmarks import EYES, LIPS, NUM_LANDMARKS


@pytest.fixture(scope="module")
def face():
    points = torch.from_numpy(
        np.random.default_rng(0).uniform(-0.5, 0.3, (NUM_LANDMARKS, 2))
    ).float()
    points[LIPS, 1] = 0.4 + 0.05 * torch.rand(len(LIPS), generator=torch.Generator().manual_seed(0))
    return points


def swaying_clips(face, count=8, frames=400):
    """Faces that go from side to side as a known process does, and nod a little."""
    chance = np.random.default_rng(1)
    clips = []
    for _ in range(count):
        x = np.zeros((frames, 2))
        for n in range(2, frames):
            x[n] = 1.6 * x[n - 1] - 0.64 * x[n - 2] + chance.normal(0, (0.004, 0.001))
        clips.append(face + torch.from_numpy(x).float()[:, None])
    return clips


def hair(clip):
    """Surroundings that go where the first landmark goes, in one of their numbers."""
    around = torch.zeros(len(clip), SIZE)
    around[:, 5] = 3 * clip[:, 0, 0]
    return around


@pytest.fixture(scope="module")
def fitted(face):
    head = HeadMotion()
    clips = swaying_clips(face)
    head.fit(clips, [hair(clip) for clip in clips])
    return head


def test_lids_lips_and_chin_are_not_rigid(face):
    low = face.clone()
    low[0] = torch.tensor([0.0, 0.9])
    mask = rigid_landmarks(low)
    assert not mask[LIPS].any() and not mask[EYES].any() and not mask[0]
    assert mask.sum() > 20


def test_the_main_component_is_found(face, fitted):
    main = fitted.displacements(face)[-1].view(NUM_LANDMARKS, 2)
    assert main[:, 0].abs().min() > 3 * main[:, 1].abs().max()  # sideways, all points alike
    assert torch.allclose(main, main[:1].expand_as(main), atol=0.1 * float(main.abs().max()))
    true = torch.stack([c[:, 0, 0].std() for c in swaying_clips(face)]).median()
    assert 0.6 < abs(float(main[0, 0])) / true < 1.6


def test_the_background_follows_the_head_as_in_the_clips(face, fitted):
    follows, goes = fitted.background(face)[-1], fitted.displacements(face)[-1]
    assert float(follows[5]) == pytest.approx(3 * float(goes[0]), rel=0.05)
    assert follows.abs().sum() == follows[5].abs()


def test_movements_are_in_sizes_of_the_face(face, fitted):
    assert face_size(0.5 * face) == pytest.approx(float(0.5 * face_size(face)))
    small, large = fitted.displacements(0.5 * face), fitted.displacements(face)
    assert torch.allclose(2 * small, large)


def test_the_size_of_points_that_are_no_face_is_positive(face):
    upside_down = -face
    assert rigid_landmarks(upside_down).all()
    assert torch.isfinite(face_size(upside_down))


def test_a_head_that_was_not_fitted_has_no_motion(face):
    assert not HeadMotion().displacements(face).any()
