"""Brows move by as much as they are told, on both sides alike, and eyes stay where they are."""

import pytest
import torch
from support.faces import average_face
from support.mouths import rotated

from letstalk_rt.models.geometry.brow_flow import BROW_MOTION, brow_extent, brow_flow
from letstalk_rt.models.geometry.landmarks import landmark_indices

CORNERS = landmark_indices((33, 133, 263, 362))
FACE = average_face(at=(90, 120))[0]


def at(face: torch.Tensor, along: float, down: float, side: int = 0) -> torch.Tensor:
    """Return the position that far from the middle of an eye, `(1, 1, 2)`."""
    outer, inner = face[CORNERS][2 * side : 2 * side + 2]
    axis = inner - outer
    below = torch.stack([-axis[1], axis[0]]) * (-1 if side else 1)
    return ((outer + inner) / 2 + along * axis + down * below)[None, None]


def width(face: torch.Tensor) -> float:
    return float((face[CORNERS[1]] - face[CORNERS[0]]).norm())


@pytest.mark.parametrize("turn", [0.0, 0.4])
@pytest.mark.parametrize("side", [0, 1])
def test_a_brow_that_rises_is_read_from_below(turn, side):
    face = rotated(FACE[None], turn)[0]
    flow = brow_flow(face, torch.tensor([-0.2, -0.2, 0.0]), at(face, -0.3, -0.7, side))[0, 0]
    expected = 0.2 * (at(face, 0.0, 1.0, side) - at(face, 0.0, 0.0, side))[0, 0]
    assert torch.allclose(flow, expected, atol=1e-3)


def test_the_inner_part_alone_moves_little_at_the_outer_end():
    raised = torch.tensor([-0.2, 0.0, 0.0])
    inner = brow_flow(FACE, raised, at(FACE, 0.29, -0.8)).norm()
    outer = brow_flow(FACE, raised, at(FACE, -0.88, -0.8)).norm()
    assert inner > 0.19 * width(FACE) and outer < 0.01 * width(FACE)


def test_brows_that_draw_together_are_read_from_outside():
    nearer = torch.tensor([0.0, 0.0, 0.1])
    flows = [brow_flow(FACE, nearer, at(FACE, 0.29, -0.8, side))[0, 0, 0] for side in (0, 1)]
    assert flows[0] < 0 < flows[1]


def test_eyes_and_what_is_far_away_stay():
    motion = torch.tensor([-0.3, 0.2, 0.1])
    assert motion.shape == (BROW_MOTION,)
    left, top, right, bottom = brow_extent(FACE)
    for place in (at(FACE, 0, 0), at(FACE, 0, -2.2), torch.tensor([[[left - 1.0, top - 1.0]]])):
        assert not brow_flow(FACE, motion, place).any()
    assert right > left and bottom > top
