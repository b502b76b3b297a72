"""The bank of teeth: sharp front views of white teeth, as the painter inpaints them."""

from dataclasses import replace

import pytest
import torch
from support.mouth_crops import make_crops
from support.mouths import frontal_face
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, MouthPainterConfig
from letstalk_rt.models.geometry.mouth_crop import CROP_SIZE, opening_mask
from letstalk_rt.training.data.mouth_crops import KINDS, MouthCrops
from letstalk_rt.training.stages.teeth_bank import fit_bank, fit_light, rate_teeth, soften

SMALL = MouthPainterConfig(widths=(8, 8, 8), bank=3)


def teeth(width_px: int, *, level: float = 0.3, tint: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the crop of a mouth with teeth of this width, and its landmarks."""
    points = frontal_face(14.0, at=(56, 34))
    crop = torch.full((1, 3, *CROP_SIZE), 0.1)
    dark = torch.arange(CROP_SIZE[1]) % width_px == 0
    inside = torch.where(dark, level - 0.8, level).expand(1, 3, *CROP_SIZE).clone()
    inside[:, 2] -= tint
    return torch.lerp(crop, inside, (opening_mask(points) > 0.5).float()), points


def test_close_teeth_come_first():
    close, gappy = teeth(7), teeth(4)
    scores = rate_teeth(torch.cat([gappy[0], close[0]]), torch.cat([gappy[1], close[1]]))
    assert 0 < float(scores[0]) < float(scores[1])


def test_blurred_teeth_score_zero():
    crop, points = teeth(5)
    assert float(rate_teeth(soften(crop, times=6), points)) == 0


def test_softening_keeps_the_mean():
    crop, _ = teeth(5)
    assert float(soften(crop).mean()) == pytest.approx(float(crop.mean()), abs=1e-3)


def test_what_is_no_front_view_of_white_teeth_scores_zero():
    crop, points = teeth(5)
    turned = points + torch.tensor([12.0, 0.0])
    tilted = points.clone()
    tilted[..., 1] += 0.3 * (points[..., 0] - 56)
    nearly_closed = frontal_face(3.0, at=(56, 34))
    for mouth in ((crop, turned), (crop, tilted), (crop, nearly_closed), teeth(5, tint=0.6),
                  teeth(5, level=-0.5), teeth(5, level=0.9)):  # fmt: skip
        assert float(rate_teeth(*mouth)) == 0


def with_teeth(mouths: MouthCrops, rows: list[int]) -> MouthCrops:
    """Return crops of which these rows are portraits that show teeth."""
    stills, kind, points = mouths.stills.copy(), mouths.kind.copy(), mouths.points.copy()
    for n, row in enumerate(rows):
        crop, face = teeth(5 + n)
        inner = ((crop[0].permute(1, 2, 0) + 1) * 127.5).numpy()
        stills[row, 48:208, 48:272] = inner.repeat(2, 0).repeat(2, 1)
        points[row] = face[0].numpy() + 24
        kind[row] = KINDS.index("portrait")
    return replace(mouths, stills=stills, kind=kind, points=points)


def with_kind(mouths: MouthCrops, kind: str) -> MouthCrops:
    """Return crops whose stills are of this kind."""
    kinds = mouths.kind.copy()
    kinds[: len(mouths.stills)] = KINDS.index(kind)
    return replace(mouths, kind=kinds)


def test_the_bank_repeats_what_was_found():
    torch.manual_seed(0)
    painter = MouthPainter(SMALL)
    assert fit_bank(painter, with_teeth(make_crops(), [0, 1])) == 2
    mean = painter.light[:1]
    first, second, third = (painter.banked_teeth(n, mean) for n in range(3))
    assert first.any() and not torch.equal(first, second) and torch.equal(first, third)


def test_the_light_on_teeth_is_fitted_to_that_on_the_skin():
    lights = (0.6, 0.8, 1.0)
    crops, points = zip(*(teeth(4, level=0.6) for _ in lights), strict=True)
    lit = [(crop + 1) * light - 1 for crop, light in zip(crops, lights, strict=True)]
    light = fit_light(torch.cat(lit), torch.cat(points))
    assert float(light.slope[2]) == pytest.approx(1, abs=0.05)
    mean = torch.tensor([0.55 * x for x in lights]).log().mean()
    assert float(light.skin[2]) == pytest.approx(float(mean), abs=0.02)


def test_without_teeth_the_bank_stays_empty():
    painter = MouthPainter(SMALL)
    mouths = make_crops()
    closed = with_kind(mouths, "portrait")
    assert fit_bank(painter, mouths) == 0 and fit_bank(painter, closed) == 0
    assert not painter.bank.any()
