"""The mouth compositor inpaints open mouths in place and nothing else."""

import pytest
import torch
from support.mouths import TEETH, frontal_face, rotated, skin
from support.small_model import stir
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.geometry.mouth_crop import FINE_SIZE
from letstalk_rt.portrait.mouth_compositor import MouthCompositor, OpenMouths, inpaint

SMALL = MouthPainterConfig(widths=(8, 8, 8), bank=2)


class OneColour(nn.Module):
    """A painter that returns one colour and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.teeth: list[Tensor] = []
        self.openings: list[Tensor] = []
        self.sounds: list[Tensor | None] = []

    def banked_teeth(self, seed: int, skin: Tensor) -> Tensor:
        assert skin.shape == (1, 3)
        return torch.full((1, 4, *FINE_SIZE), float(seed))

    def encode_teeth(self, teeth: Tensor) -> Tensor:
        return teeth

    def forward(
        self,
        crops: Tensor,
        opening: Tensor,
        points: Tensor,
        teeth: Tensor,
        sound: Tensor | None = None,
        *,
        inner: bool,
    ) -> Tensor:
        self.teeth.append(teeth)
        self.sounds.append(sound)
        self.openings.append(opening)
        colour = torch.tensor(TEETH) / 127.5 - 1
        return colour.view(1, 3, 1, 1).expand(len(crops), 3, *FINE_SIZE)


def portrait_canvas() -> Tensor:
    return torch.from_numpy(skin())


def mouths_of(gap: float, painter: nn.Module | None = None, seed: int = 0) -> MouthCompositor:
    return MouthCompositor(
        painter or OneColour(), portrait_canvas(), frontal_face(gap, at=(128, 128)), seed
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("scale, turn", [(0.7, 0.0), (1.0, 0.3), (1.3, -0.2)])
def test_only_the_region_between_the_lips_is_replaced(scale, turn):
    points = rotated(frontal_face(16.0, scale=scale), turn) + torch.tensor([120.0, 130.0])
    frames = portrait_canvas()[None].clone()
    mouths_of(0.0)(frames, points)
    assert (frames[0, 130, 120] - torch.tensor(TEETH, dtype=torch.uint8)).abs().max() <= 1
    changed = (frames[0] != portrait_canvas()).any(-1)
    area = 2 / 3 * 60 * 18 * scale**2
    assert float(changed.sum()) == pytest.approx(area, rel=0.35)
    rows, columns = changed.nonzero().unbind(1)
    assert rows.min() > 130 - 14 * scale - 12 and rows.max() < 130 + 14 * scale + 12
    assert columns.min() > 120 - 34 * scale and columns.max() < 120 + 34 * scale


def test_closed_lips_are_skipped():
    painter = OneColour()
    frames = portrait_canvas()[None].repeat(3, 1, 1, 1)
    points = frontal_face(0.4, at=(128, 128)).repeat(3, 1, 1)
    mouths_of(0.0, painter)(frames, points)
    assert not painter.openings and torch.equal(frames[1], portrait_canvas())


@pytest.mark.parametrize("gap", [0.4, -5.0])
def test_closed_lips_of_a_parted_portrait_are_covered_by_a_narrow_seam(gap):
    frames = portrait_canvas()[None].clone()
    mouths_of(16.0)(frames, frontal_face(gap, at=(128, 128)))
    changed = (frames[0] != portrait_canvas()).any(-1)
    rows = changed[:, 128].nonzero()
    assert 3 <= len(rows) <= 9 and abs(float(rows.float().mean()) - 128) <= 1


def test_inpainting_fades_in_as_lips_part():
    shares = []
    for gap in (0.7, 0.95, 1.2, 1.45, 1.7):
        frames = portrait_canvas()[None].clone()
        mouths_of(0.0)(frames, frontal_face(gap, at=(128, 128)))
        shares.append(float((frames[0].float() - portrait_canvas().float()).abs().sum()))
    steps = [b - a for a, b in zip(shares, shares[1:], strict=False)]
    assert shares[0] == 0 and all(step > 0 for step in steps)
    assert max(steps) < 0.6 * shares[-1]


def test_only_open_mouths_of_a_batch_are_inpainted():
    painter = OneColour()
    points = torch.cat(
        [frontal_face(gap, at=(128, y)) for gap, y in ((0.0, 100), (14.0, 110), (14.0, 150))]
    )
    frames = portrait_canvas()[None].repeat(3, 1, 1, 1)
    mouths_of(0.0, painter)(frames, points)
    assert [len(o) for o in painter.openings] == [2]
    assert torch.equal(frames[0], portrait_canvas())
    for index, row in ((1, 110), (2, 150)):
        alone = portrait_canvas()[None].clone()
        mouths_of(0.0)(alone, points[[index]])
        assert torch.equal(frames[index], alone[0])
        assert (alone[0, row, 128].int() - torch.tensor(TEETH)).abs().max() <= 1


def test_each_open_mouth_gets_the_sound_of_its_frame():
    painter = OneColour()
    points = torch.cat([frontal_face(gap, at=(128, 128)) for gap in (14.0, 0.0, 14.0)])
    frames = portrait_canvas()[None].repeat(3, 1, 1, 1)
    sound = torch.arange(3.0)[:, None].expand(-1, 60)
    mouths = mouths_of(0.0, painter).crop_open(frames, points, sound)
    assert mouths is not None
    inpaint(painter, [mouths])  # type: ignore[arg-type]
    assert painter.sounds[0] is not None and painter.sounds[0][:, 0].tolist() == [0, 2]


@pytest.mark.parametrize("at", [(2, 2), (254, 250), (128, 300), (-90, -90)])
def test_mouths_may_lie_at_or_beyond_the_edge(at):
    frames = portrait_canvas()[None].clone()
    mouths_of(0.0)(frames, frontal_face(16.0, at=at))
    assert frames.shape == (1, 256, 256, 3)


@pytest.mark.parametrize("size, scale", [(256, 1.0), (512, 2.0), (1024, 4.0)])
def test_the_inpainted_area_scales_with_the_frame(size, scale):
    painter = MouthPainter(SMALL).eval().requires_grad_(False)
    frame = torch.from_numpy(skin(size))
    points = frontal_face(14.0, scale=scale, at=(size / 2, size / 2))
    frames = frame[None].clone()
    with torch.inference_mode():
        MouthCompositor(painter, frame, points, 0)(frames, points)
    changed = (frames[0] != frame).any(-1).float().mean()
    assert float(changed) == pytest.approx(2 / 3 * 60 * 16 / 256**2, rel=0.3)


def test_teeth_of_the_portrait_are_used_for_all_frames():
    painter = OneColour()
    shown = mouths_of(16.0, painter, seed=3)
    shown(portrait_canvas()[None].clone(), frontal_face(12.0, at=(128, 128)))
    assert float(painter.teeth[0][:, 3].max()) == 1
    assert torch.equal(painter.teeth[0][:, 3] > 0, painter.teeth[0][:, :3].any(1))


def test_an_open_mouth_without_teeth_in_the_light_borrows_them():
    painter, points = OneColour(), frontal_face(16.0, at=(128, 128))
    dark = portrait_canvas()
    dark[112:144, 90:166] = 20
    MouthCompositor(painter, dark, points, 3)(dark[None].clone(), points)  # type: ignore[arg-type]
    assert torch.equal(painter.teeth[0], torch.full((1, 4, *FINE_SIZE), 3.0))


def test_the_seed_picks_the_teeth_of_a_portrait_that_shows_none():
    painter = OneColour()
    frames = portrait_canvas()[None].repeat(2, 1, 1, 1)
    points = frontal_face(12.0, at=(128, 128)).repeat(2, 1, 1)
    mouths_of(0.0, painter, seed=3)(frames, points)
    assert torch.equal(painter.teeth[0], torch.full((2, 4, *FINE_SIZE), 3.0))


class TestSeveralSessions:
    """Mouths of sessions whose frames have different sizes go through the network together."""

    SIZES = (256, 512, 384)

    def mouths(self, painter: MouthPainter, low: bool) -> tuple[list[Tensor], list[OpenMouths]]:
        """Return the frames of three sessions, and their open mouths.

        Args:
            painter: the network.
            low: whether the lower lip of the second session lies below the middle of its crop.
        """
        frames, mouths = [], []
        for n, size in enumerate(self.SIZES):
            scale, middle = size / 256, (size / 2, size / 2)
            canvas = torch.from_numpy(skin(size))
            rest = frontal_face(5.0 * n, scale=scale, at=middle)  # two of them show teeth
            points = torch.cat(
                [
                    frontal_face(gap, scale=scale, at=middle)
                    for gap in (12.0 + n, 60.0 if low and n == 1 else 9.0)
                ]
            )
            frames.append(canvas[None].repeat(2, 1, 1, 1))
            sound = torch.full((2, MOUTH_SOUND), float(n))
            compositor = MouthCompositor(painter, canvas, rest, n)
            cropped = compositor.crop_open(frames[-1], points, sound)
            assert cropped is not None
            mouths.append(cropped)
        return frames, mouths

    @pytest.fixture
    def painter(self) -> MouthPainter:
        torch.manual_seed(0)
        made = MouthPainter(SMALL).eval().requires_grad_(False)
        stir(made)
        made.bank.copy_(torch.randint(-99, 99, made.bank.shape))
        return made

    @pytest.mark.parametrize("low, calls", [(False, [6]), (True, [5, 1])])
    def test_the_network_runs_once_for_all_that_it_can_take_together(self, painter, low, calls):
        counts: list[int] = []
        watched = painter.register_forward_hook(
            lambda module, inputs, result: counts.append(len(result))
        )
        try:
            inpaint(painter, self.mouths(painter, low)[1])
        finally:
            watched.remove()
        assert counts == calls

    @pytest.mark.parametrize("low", [False, True])
    def test_frames_are_those_of_each_session_alone(self, painter, low):
        together, mouths = self.mouths(painter, low)
        inpaint(painter, mouths)
        alone, mouths = self.mouths(painter, low)
        for one in mouths:
            inpaint(painter, [one])
        plain = self.mouths(painter, low)[0]
        for shown, wanted, before in zip(together, alone, plain, strict=True):
            assert (shown.int() - wanted.int()).abs().max() <= 1, "but for rounding"
            assert all((a != b).any() for a, b in zip(wanted, before, strict=True))
