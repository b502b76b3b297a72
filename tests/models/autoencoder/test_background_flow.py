"""The flow of what is around the face: measured on moved pictures, and none within the face."""

import pytest
import torch
import torch.nn.functional as F
from support.small_model import face_points

from letstalk_rt.models.autoencoder.background_flow import (
    CHANNELS,
    GAIN,
    flow_from_latent,
    measure_background_flow,
)
from letstalk_rt.models.geometry.landmark_warp import warp


@pytest.fixture
def picture():
    torch.manual_seed(0)
    coarse = torch.rand(1, 3, 24, 24) * 2 - 1
    return F.interpolate(coarse, (256, 256), mode="bicubic").clamp(-1, 1)


@pytest.fixture
def points():
    return 0.4 * face_points()[None]


def moved_by(picture, x, y):
    flow = torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, 256, 256)
    return warp(picture, flow)


def test_a_shift_is_measured_where_no_landmark_is_near(picture, points):
    still = torch.zeros(1, 2, 128, 128)
    frame = moved_by(picture, 0.03, -0.02)
    latent = measure_background_flow(frame, picture, points, still)
    assert latent.shape == (1, CHANNELS, 4, 4)
    flow = flow_from_latent(latent, points)
    corner = flow[0, :, 16:32, 16:32].mean((1, 2))
    torch.testing.assert_close(corner, torch.tensor([0.03, -0.02]), atol=0.006, rtol=0)
    near = (points[0, 0] * 64 + 64).long()
    assert flow[0, :, near[1], near[0]].abs().max() < 0.005
    shown = warp(picture, flow)
    assert (shown - frame).square().mean() < 0.4 * (picture - frame).square().mean()


def test_landmarks_own_flow_is_not_measured_again(picture, points):
    flow = torch.tensor([0.03, -0.02]).view(1, 2, 1, 1).expand(1, 2, 128, 128)
    frame = moved_by(picture, 0.03, -0.02)
    assert measure_background_flow(frame, picture, points, flow).abs().max() < 0.05 * GAIN


def test_what_only_appears_has_no_flow(picture, points):
    frame = picture.clone()
    frame[..., :64, :64] = torch.rand(1, 3, 64, 64) * 2 - 1
    still = torch.zeros(1, 2, 128, 128)
    latent = measure_background_flow(frame, picture, points, still)
    moved = warp(picture, flow_from_latent(latent, points))
    assert (moved - frame).square().mean() <= 1.02 * (picture - frame).square().mean()


def test_items_do_not_mix(picture, points):
    still = torch.zeros(2, 2, 128, 128)
    frames = torch.cat([picture, moved_by(picture, 0.03, 0.0)])
    together = measure_background_flow(
        frames, picture.expand(2, -1, -1, -1), points.expand(2, -1, -1), still
    )
    assert not together[0].any() and together[1].any()
