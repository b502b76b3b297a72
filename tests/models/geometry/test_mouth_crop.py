"""Crops of mouths and the mask of the opening."""

import numpy as np
import pytest
import torch
from support.mouths import frontal_face, rotated, skin

from letstalk_rt.models.geometry.mouth_crop import (
    CROP_CENTRE,
    CROP_HEIGHT,
    CROP_WIDTH,
    RIGID,
    CropTransform,
    align_heads,
    align_mouths,
    aligned_centre,
    lip_gap_px,
    opening_mask,
    resample,
)

SIZE = (CROP_HEIGHT, CROP_WIDTH)


@pytest.mark.parametrize(
    "scale, turn, at", [(1, 0, (0, 0)), (0.6, 0.3, (90, 40)), (3, -0.5, (7, 9))]
)
def test_a_mouth_has_the_same_position_for_any_head_pose(scale, turn, at):
    straight = frontal_face(8.0)
    held = rotated(straight, turn) * scale + torch.tensor(at)
    centre = aligned_centre(straight)
    a, b = (align_mouths(points, centre)(points) for points in (straight, held))
    torch.testing.assert_close(a, b, atol=1e-2, rtol=0)
    torch.testing.assert_close(
        align_mouths(held, centre).scale, torch.tensor([1 / scale]), atol=1e-3, rtol=1e-3
    )


def test_lips_and_jaw_do_not_move_the_crop():
    shut, wide = frontal_face(0.0), frontal_face(30.0)
    centre = aligned_centre(shut)
    a, b = align_mouths(shut, centre), align_mouths(wide, centre)
    torch.testing.assert_close(a.rotation, b.rotation)
    torch.testing.assert_close(a.shift, b.shift)


def test_the_centre_of_the_mouth_is_at_the_crop_centre():
    points = frontal_face(8.0, scale=0.7, at=(120, 130))
    transform = align_mouths(points, aligned_centre(points))
    back = transform.inverse()(torch.tensor([[CROP_CENTRE]]))
    torch.testing.assert_close(back, torch.tensor([[[120.0, 130.0]]]), atol=0.05, rtol=0)


def test_the_inverse_returns_the_same_points():
    transform = CropTransform(
        torch.tensor([[0.8, 0.3], [2.0, -1.0]]), torch.tensor([[5.0, 6], [-3, 2]])
    )
    points = torch.randn(2, 7, 2)
    torch.testing.assert_close(transform.inverse()(transform(points)), points)


def test_an_error_in_one_landmark_moves_the_crop_little():
    points = frontal_face(8.0)
    off = points.clone()
    off[0, RIGID[0]] += torch.tensor([3.0, -3.0])
    moved = align_heads(off)(points) - points
    assert 0.01 < float(moved[0, RIGID].abs().max()) < 1.5


@pytest.mark.parametrize("gap", [6.0, 20.0])
def test_the_opening_has_the_area_between_the_lips(gap):
    points = frontal_face(gap, at=(56, 34))
    within = opening_mask(points, SIZE)
    assert within.shape == (1, 1, *SIZE) and 0 <= within.min() and within.max() == 1
    # a parabola of this height over 60 px, its ends resample straight to the corners
    assert float(within.sum()) == pytest.approx(2 / 3 * 60 * gap, rel=0.12)
    assert within[0, 0, 34, 56] == 1 and within[0, 0, 34, 10] == 0
    assert within[0, 0, 34 - round(gap / 2) - 3, 56] == 0


def test_closed_lips_have_no_opening():
    assert opening_mask(frontal_face(0.0, at=(56, 34)), SIZE).max() == 0


def test_an_opening_can_be_dilated():
    points = frontal_face(8.0, at=(56, 34))
    own, wider = opening_mask(points, SIZE), opening_mask(points, SIZE, dilation_px=2.0)
    column = wider[0, 0, :, 56].sum() - own[0, 0, :, 56].sum()
    assert float(column) == pytest.approx(4, abs=0.01)
    each = opening_mask(points.repeat(2, 1, 1), SIZE, dilation_px=torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(each, torch.cat([own, wider]))


def test_lip_gaps_are_in_pixels_of_the_crop():
    points = frontal_face(9.0, scale=2.0, at=(300, 200))
    placed = align_mouths(points, aligned_centre(points))(points)
    torch.testing.assert_close(lip_gap_px(placed), torch.tensor([9.0]), atol=1e-2, rtol=0)


def test_resampling_reads_the_transformed_pixels():
    frame = torch.from_numpy(skin()).permute(2, 0, 1)[None].float()
    transform = CropTransform(torch.tensor([[1.0, 0.0]]), torch.tensor([[-40.0, -60.0]]))
    crop = resample(frame, transform, SIZE)
    torch.testing.assert_close(
        crop, frame[:, :, 60 : 60 + CROP_HEIGHT, 40 : 40 + CROP_WIDTH], atol=1e-2, rtol=0
    )


def test_resampling_there_and_back_keeps_the_image():
    frame = torch.from_numpy(skin()).permute(2, 0, 1)[None].float()
    points = rotated(frontal_face(9.0, scale=0.8), 0.2) + torch.tensor([128.0, 128.0])
    transform = align_mouths(points, aligned_centre(points))
    back = resample(resample(frame, transform, SIZE), transform.inverse(), (256, 256))
    inside = np.s_[..., 115:145, 110:146]
    assert float((back[inside] - frame[inside]).abs().mean()) < 1
