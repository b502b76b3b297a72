"""The eye compositor shows eyes as wanted, in place, and changes nothing else."""

import pytest
import torch
from support.faces import average_face
from support.mouths import rotated, skin
from torch import Tensor

from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.region_painter import PaintedRegion
from letstalk_rt.models.geometry.eye_region import EYE_POINTS, EYE_SIZE
from letstalk_rt.models.presets import EYE_PAINTER
from letstalk_rt.portrait.eye_compositor import EyeCompositor

PAINT = torch.tensor([200, 40, 90], dtype=torch.uint8)
STILL = torch.zeros(1, 4)


class OneColour(EyePainter):
    """A painter that keeps nothing, paints one colour, and counts the eyes that it painted."""

    def __init__(self) -> None:
        super().__init__(EYE_PAINTER)
        self.painted = 0

    def forward(
        self, encoded: Tensor, around: Tensor, maps: Tensor, known_flow: Tensor
    ) -> PaintedRegion:
        self.painted += len(maps)
        self.around = around
        colours = (PAINT / 127.5 - 1).view(1, 3, 1, 1).expand(len(maps), 3, *EYE_SIZE)
        return PaintedRegion(maps.new_zeros(len(maps), 2, *EYE_SIZE), maps[:, :1] * 0, colours)


@pytest.fixture
def canvas() -> Tensor:
    return torch.from_numpy(skin())


@pytest.fixture
def face() -> Tensor:
    return average_face(at=(90, 120))


def eyes_of(canvas: Tensor, face: Tensor, painter: EyePainter | None = None) -> EyeCompositor:
    return EyeCompositor(painter or OneColour(), canvas, face, face / 128 - 1)


@pytest.mark.parametrize("scale, turn", [(0.7, 0.0), (1.0, 0.3), (1.3, -0.2)])
def test_both_eyes_are_painted_and_nothing_far_from_them(canvas, scale, turn):
    face = rotated(average_face(30 * scale), turn) + torch.tensor([90.0, 120.0])
    frames = canvas[None].clone()
    eyes_of(canvas, face)(frames, face, STILL, [(1.0, 1.0)])
    changed = (frames[0] != canvas).any(-1)
    near = torch.zeros_like(changed)
    for eye in (0, 1):
        x, y = (int(v) for v in face[0, EYE_POINTS[eye]].mean(0))
        assert (frames[0, y, x].int() - PAINT.int()).abs().max() <= 2
        width = int(30 * scale)
        near[y - width : y + width, x - width : x + width] = True
    assert not changed[~near].any()


def test_eyes_like_the_portraits_are_left_to_the_warp(canvas, face):
    painter, frames = OneColour(), canvas.repeat(3, 1, 1, 1)
    motion = torch.tensor([[0.0] * 4, [0.0, 0.0, 0.1, 0.0], [0.002] * 4])
    eyes_of(canvas, face, painter)(frames, face.repeat(3, 1, 1), motion, [(0.0, 0.0)] * 3)
    assert torch.equal(frames[0], canvas) and torch.equal(frames[2], canvas)
    assert not torch.equal(frames[1], canvas)
    assert painter.painted == 2, "both eyes of one frame"


def test_the_painter_does_not_see_what_it_replaces(canvas, face):
    painter = OneColour()
    eyes = eyes_of(canvas, face, painter)
    seen = []
    for colour in (0, 255):
        frames = canvas[None].clone()
        x, y = (int(v) for v in face[0, EYE_POINTS[0]].mean(0))
        frames[0, y - 3 : y + 4, x - 8 : x + 9] = colour
        eyes(frames, face, STILL, [(1.0, 1.0)])
        seen.append(painter.around)
    assert torch.equal(*seen) and seen[0].any()


def test_motion_is_read_from_how_landmarks_have_moved(canvas, face):
    painter = OneColour()
    painter.from_landmarks[3] = 1.0
    eyes = eyes_of(canvas, face, painter)
    unit = face / 128 - 1
    assert not eyes.motion(unit).any()
    moved = eyes.motion(unit + 0.01)
    assert moved[0, 3] == pytest.approx(0.01 * unit.numel(), rel=1e-3) and not moved[0, :3].any()


@pytest.mark.parametrize("shift", [(-120.0, 0.0), (140.0, 20.0), (0.0, -200.0), (900.0, 900.0)])
def test_eyes_at_or_beyond_the_border_are_no_error(canvas, face, shift):
    frames = canvas[None].clone()
    eyes_of(canvas, face)(frames, face + torch.tensor(shift), STILL, [(1.0, 1.0)])
    assert frames.shape == (1, *canvas.shape)
