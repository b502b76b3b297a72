"""The brow compositor moves brows in place, and changes nothing else."""

import torch
from support.faces import average_face
from support.mouths import skin

from letstalk_rt.models.geometry.brow_flow import brow_extent
from letstalk_rt.portrait.brow_compositor import move_brows

FACE = average_face(at=(90, 120))


def painted() -> torch.Tensor:
    """Return a canvas with a dark bar where brows are, `(1, H, W, 3)`."""
    canvas = torch.from_numpy(skin()).clone()
    left, top, right, bottom = brow_extent(FACE[0])
    middle = (top + bottom) // 2 + 4
    canvas[middle : middle + 4, max(left, 0) : right] = 0
    return canvas[None]


def height_of(frames: torch.Tensor) -> float:
    """Return how far down the dark bar is in the column of the middle of the right eye."""
    column = frames[0, :, int(FACE[0, 0, 0])].float().mean(-1)
    dark = (column.amax() - column).clamp(min=0)
    return float((dark * torch.arange(len(dark))).sum() / dark.sum())


def test_brows_go_up_and_down_and_stay_if_nothing_is_wanted():
    before = painted()
    still, up, down = (before.clone() for _ in range(3))
    move_brows(still, FACE, torch.zeros(1, 3))
    assert torch.equal(still, before)
    move_brows(up, FACE, torch.tensor([[-0.2, -0.2, 0.0]]))
    move_brows(down, FACE, torch.tensor([[0.2, 0.2, 0.0]]))
    assert height_of(up) < height_of(before) < height_of(down)


def test_what_is_beyond_the_brows_is_not_touched():
    before = painted()
    moved = before.clone()
    move_brows(moved, FACE, torch.tensor([[-0.2, 0.1, 0.1]]))
    left, top, right, bottom = brow_extent(FACE[0])
    inside = torch.zeros(before.shape[1:3], dtype=torch.bool)
    inside[max(top, 0) : bottom, max(left, 0) : right] = True
    changed = (moved != before).any(-1)[0]
    assert changed.any() and not changed[~inside].any()


def test_a_face_at_the_border_or_beyond_is_moved_as_far_as_it_is_seen():
    before = painted()
    for offset in (-100.0, -5000.0):
        move_brows(before.clone(), FACE + offset, torch.tensor([[-0.2, -0.2, 0.0]]))
