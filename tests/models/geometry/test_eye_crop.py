"""Crops of eyes: where the corners come to lie, and the edges of the lids in them."""

import pytest
import torch
from support.faces import average_face
from support.mouths import rotated

from letstalk_rt.models.geometry.eye_crop import (
    CLOSED_AT,
    CORNER_DISTANCE_PX,
    EYE_CENTRE,
    EYE_SIZE,
    EYE_WIDTH,
    LOWER_LIDS,
    UPPER_LIDS,
    align_eyes,
    lid_edges,
    lid_mask,
)

FACE = average_face(at=(90, 120))


@pytest.mark.parametrize("eye", [0, 1])
@pytest.mark.parametrize("scale, turn", [(0.5, 0.0), (1.0, 0.4), (3.0, -0.3)])
def test_corners_come_to_the_same_place_however_a_face_lies(eye, scale, turn):
    face = rotated(scale * FACE, turn) + 7.0
    placed = align_eyes(face, eye)(face)[0]
    left, right = placed[UPPER_LIDS[eye][0]], placed[UPPER_LIDS[eye][-1]]
    centre = torch.tensor([EYE_WIDTH - EYE_CENTRE[0] if eye else EYE_CENTRE[0], EYE_CENTRE[1]])
    half = torch.tensor([CORNER_DISTANCE_PX / 2, 0.0])
    torch.testing.assert_close(left, centre - half, atol=1e-3, rtol=0)
    torch.testing.assert_close(right, centre + half, atol=1e-3, rtol=0)


def test_left_eyes_are_mirrored():
    mirrored = FACE.clone()
    for lids in (UPPER_LIDS, LOWER_LIDS):
        at = FACE[:, lids[0]].flip(1)
        mirrored[:, lids[1]] = torch.stack([256 - at[..., 0], at[..., 1]], -1)
    right, left = (lid_edges(align_eyes(mirrored, eye)(mirrored), eye) for eye in (0, 1))
    torch.testing.assert_close(right.upper, left.upper, atol=1e-3, rtol=0)
    torch.testing.assert_close(right.lower, left.lower, atol=1e-3, rtol=0)


def test_edges_go_through_the_landmarks():
    placed = align_eyes(FACE, 0)(FACE)
    edges = lid_edges(placed, 0)
    for index in UPPER_LIDS[0][2:-2]:
        x, y = placed[0, index].tolist()
        assert float(edges.upper[0, int(x)]) == pytest.approx(y, abs=0.8)
    torch.testing.assert_close(
        edges.closed, (1 - CLOSED_AT) * edges.upper + CLOSED_AT * edges.lower
    )


@pytest.mark.parametrize("resolution", [1, 2])
def test_the_mask_reaches_from_above_the_lid_to_below_the_lashes(resolution):
    edges = lid_edges(align_eyes(FACE, 0)(FACE), 0, resolution)
    mask = lid_mask(edges.upper, edges.closed)[0, 0]
    assert mask.shape == tuple(resolution * side for side in EYE_SIZE)
    middle = mask[:, resolution * EYE_WIDTH // 2]
    upper, closed = (float(line[0, len(line[0]) // 2]) for line in (edges.upper, edges.closed))
    rows = (torch.arange(len(middle)) + 0.5) / resolution
    assert (middle[(rows > upper - 5.5) & (rows < closed + 3)] > 0.99).all()
    assert (middle[(rows < upper - 12) | (rows > closed + 8)] == 0).all()
    assert mask[:, 0].sum() == mask[:, -1].sum() == 0
