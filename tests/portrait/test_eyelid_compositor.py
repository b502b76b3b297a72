"""The eyelid compositor closes eyes in place and changes nothing else."""

import pytest
import torch
from support.faces import average_face
from support.mouths import rotated, skin
from torch import Tensor, nn

from letstalk_rt.models.geometry.eye_crop import LOWER_LIDS, UPPER_LIDS, LidEdges
from letstalk_rt.portrait.eyelid_compositor import EyelidCompositor

LID = torch.tensor([200, 40, 90], dtype=torch.uint8)


class OneColour(nn.Module):
    """A painter whose lids have one colour, and count how often they are painted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, crops: Tensor, lids: LidEdges, closed: Tensor) -> Tensor:
        self.calls += 1
        return (LID / 127.5 - 1).view(1, 3, 1, 1).expand_as(crops)


@pytest.fixture
def canvas() -> Tensor:
    return torch.from_numpy(skin())


@pytest.fixture
def face() -> Tensor:
    return average_face(at=(90, 120))


def lids_of(canvas: Tensor, face: Tensor) -> EyelidCompositor:
    return EyelidCompositor(OneColour(), canvas, face)  # type: ignore[arg-type]


def covered(frame: Tensor) -> Tensor:
    """Return where a lid is fully visible, `(H, W)` bool."""
    return (frame.int() - LID.int()).abs().amax(-1) <= 2


def middle_of(face: Tensor, eye: int) -> tuple[int, int]:
    """Return the column and the row in the middle of an eye."""
    x, y = face[0, UPPER_LIDS[eye] + LOWER_LIDS[eye]].mean(0).tolist()
    return int(x), int(y)


@pytest.mark.parametrize("scale, turn", [(0.7, 0.0), (1.0, 0.3), (1.3, -0.2)])
def test_both_eyes_are_closed_and_nothing_else_changes(canvas, scale, turn):
    face = rotated(average_face(30 * scale), turn) + torch.tensor([90.0, 120.0])
    frames = canvas[None].clone()
    lids_of(canvas, face)(frames, face, [1.0])
    changed = (frames[0] != canvas).any(-1)
    for eye in (0, 1):
        x, y = middle_of(face, eye)
        assert covered(frames[0])[y, x]
        corners = face[0, [UPPER_LIDS[eye][0], UPPER_LIDS[eye][-1]]]
        width = float((corners[1] - corners[0]).norm())
        rows, columns = changed.nonzero().unbind(1)
        here = (columns - x).abs() < width
        assert (rows[here] - y).abs().max() < 0.75 * width
    assert changed.sum() < 4 * width**2


def test_open_eyes_are_left_alone_and_painted_once(canvas, face):
    painter = OneColour()
    lids = EyelidCompositor(painter, canvas, face)  # type: ignore[arg-type]
    frames = canvas.repeat(3, 1, 1, 1)
    lids(frames, face.repeat(3, 1, 1), [0.0, 1.0, 0.0])
    lids(frames, face.repeat(3, 1, 1), [0.0, 0.0, 0.0])
    assert torch.equal(frames[0], canvas) and torch.equal(frames[2], canvas)
    assert not torch.equal(frames[1], canvas)
    assert painter.calls == 1


def test_the_lid_comes_down_as_the_eye_closes(canvas, face):
    lids, x = lids_of(canvas, face), middle_of(face, 0)[0]
    lowest = []
    for closure in (0.3, 0.5, 0.7, 0.9, 1.0):
        frames = canvas[None].clone()
        lids(frames, face, [closure])
        lowest.append(int(covered(frames[0])[:, x].nonzero().max()))
    assert lowest == sorted(lowest) and lowest[-1] - lowest[0] >= 4
    assert lowest[-1] >= middle_of(face, 0)[1]


def test_the_lid_follows_a_head_that_has_moved(canvas, face):
    moved = rotated(face - 120, 0.1) + 120 + torch.tensor([14.0, -9.0])
    frames = canvas[None].clone()
    lids_of(canvas, face)(frames, moved, [1.0])
    for eye in (0, 1):
        x, y = middle_of(moved, eye)
        assert covered(frames[0])[y, x]


@pytest.mark.parametrize("shift", [(-120.0, 0.0), (140.0, 20.0), (0.0, -200.0), (900.0, 900.0)])
def test_eyes_at_or_beyond_the_border_are_no_error(canvas, face, shift):
    frames = canvas[None].clone()
    lids_of(canvas, face)(frames, face + torch.tensor(shift), [1.0])
    assert frames.shape == (1, *canvas.shape)
