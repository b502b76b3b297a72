"""Crops of eyes show right eyes; maps show lids and irises where the landmarks are."""

import pytest
import torch
from support.faces import average_face
from support.mouths import rotated

from letstalk_rt.models.geometry.eye_region import (
    CORNER_DISTANCE_PX,
    EYE_CENTRE,
    EYE_SIZE,
    EYE_WIDTH,
    IRIS,
    LID_MIDDLE,
    LOWER_LID,
    UPPER_LID,
    align_eyes,
    closed_by,
    eye_maps,
    eye_motion,
    eye_points,
    iris_flow,
    moved_eyes,
    painted_part,
)

FACE = average_face(at=(90, 120))


def eyes_of(face: torch.Tensor, eye: int) -> torch.Tensor:
    return eye_points(face, eye, align_eyes(face, eye))


def gap(eyes: torch.Tensor) -> float:
    return float((eyes[:, LOWER_LID] - eyes[:, UPPER_LID])[0, LID_MIDDLE, 1])


@pytest.mark.parametrize("eye", [0, 1])
@pytest.mark.parametrize("scale, turn", [(0.5, 0.0), (1.0, 0.4), (2.0, -0.3)])
def test_the_corners_are_in_one_place_with_the_outer_one_left(eye, scale, turn):
    eyes = eyes_of(rotated(FACE * scale, turn), eye)
    outer, inner = eyes[0, 0], eyes[0, 8]
    half = CORNER_DISTANCE_PX / 2
    torch.testing.assert_close(outer, torch.tensor([EYE_CENTRE[0] - half, EYE_CENTRE[1]]))
    torch.testing.assert_close(inner, torch.tensor([EYE_CENTRE[0] + half, EYE_CENTRE[1]]))
    assert (eyes[0, LOWER_LID, 1] >= eyes[0, UPPER_LID, 1] - 0.5).all()


def test_maps_show_the_opening_between_the_lids_and_the_iris_in_it():
    eyes = eyes_of(FACE, 0)
    below_upper, below_lower, opening, iris = eye_maps(eyes)[0]
    x, y = eyes[0, IRIS][0].round().int().tolist()
    assert opening[y, x] == 1 and iris[y, x] == 1
    assert below_upper[y, x] > 0 > below_lower[y, x]
    assert opening[0].max() == 0 and opening[-1].max() == 0
    assert opening.sum() > iris.sum() > 0
    shut = eye_maps(closed_by(eyes, torch.ones(1)))[0]
    assert shut[2].max() == 0 and 0 < shut[3].max() < 0.5


def test_closing_brings_the_lids_together_and_leaves_the_iris():
    eyes = eyes_of(FACE, 1)
    assert torch.equal(closed_by(eyes, torch.zeros(1)), eyes)
    gaps = [gap(closed_by(eyes, torch.tensor([share]))) for share in (0.0, 0.5, 1.0)]
    assert gaps[0] > gaps[1] > gaps[2] == pytest.approx(0, abs=1e-4)
    assert torch.equal(closed_by(eyes, torch.ones(1))[:, IRIS], eyes[:, IRIS])


@pytest.mark.parametrize("eye", [0, 1])
def test_motion_is_what_is_measured_of_moved_eyes(eye):
    eyes = eyes_of(FACE, eye)
    motion = torch.tensor([[0.03, -0.02, 0.1, -0.05]])
    moved = moved_eyes(eyes[0], motion, eye)
    torch.testing.assert_close(eye_motion(moved, eye) - eye_motion(eyes, eye), motion)
    assert torch.equal(moved[:, [0, 8, 9, 17]], eyes[:, [0, 8, 9, 17]]), "corners stay"


def test_both_irises_go_to_the_same_side_of_the_image():
    right, left = (eyes_of(FACE, eye) for eye in (0, 1))
    motion = torch.tensor([[0.0, 0.0, 0.1, 0.0]])
    sides = [
        float((moved_eyes(eyes[0], motion, eye) - eyes)[0, IRIS.start, 0])
        for eye, eyes in enumerate((right, left))
    ]
    assert sides == pytest.approx([4.0, -4.0]), "the crop of the left eye is mirrored"


def test_an_iris_is_read_from_where_the_portrait_has_it():
    portrait = eyes_of(FACE, 0)
    wanted = moved_eyes(portrait[0], torch.tensor([[0.0, 0.0, 0.1, -0.05]]), 0)
    flow = iris_flow(portrait, wanted)
    x, y = (int(v) for v in wanted[0, IRIS][0])
    assert flow.shape == (1, 2, *EYE_SIZE)
    assert torch.allclose(flow[0, :, y, x], torch.tensor([-0.1, 0.05]) * CORNER_DISTANCE_PX)
    assert not flow[0, :, 0].any(), "skin stays"
    assert not iris_flow(portrait, portrait).any()


def test_lids_that_are_moved_too_far_do_not_cross():
    moved = moved_eyes(eyes_of(FACE, 0)[0], torch.tensor([[0.5, -0.5, 0.0, 0.0]]), 0)
    assert (moved[:, LOWER_LID, 1] >= moved[:, UPPER_LID, 1]).all()


def test_what_is_painted_fades_before_the_border():
    part = painted_part(FACE)[0, 0]
    assert part.shape == EYE_SIZE
    assert part[[0, -1]].max() == 0 and part[:, [0, -1]].max() == 0
    y, x = round(EYE_CENTRE[1]), EYE_WIDTH // 2
    assert part[y, x] == 1
    assert painted_part(FACE, 3).shape[-2:] == (3 * EYE_SIZE[0], 3 * EYE_SIZE[1])
