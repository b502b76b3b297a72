"""The region painter moves pixels of the portrait, and paints what it does not show."""

import torch
from support.small_model import stir

from letstalk_rt.models.autoencoder.eye_painter import EyePainter
from letstalk_rt.models.autoencoder.region_painter import (
    PaintedRegion,
    RegionPainter,
    RegionPainterConfig,
)
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS

SMALL = RegionPainterConfig(maps=2, widths=(8, 16))
STILL = torch.zeros(1, 2, 16, 24)


def region(channels: int, seed: int, size: tuple[int, int] = (16, 24)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, *size, generator=generator) * 2 - 1


def painted(flow: tuple[float, float], kept: float) -> PaintedRegion:
    """Return regions that are moved by `flow` and have one colour."""
    moved = torch.tensor(flow).view(1, 2, 1, 1).expand(2, 2, 16, 24)
    return PaintedRegion(moved, torch.full((2, 1, 16, 24), kept), torch.full((2, 3, 16, 24), 0.25))


def test_what_is_kept_comes_from_where_the_flow_points():
    portrait = region(3, 0)
    shown = painted((2.0, -1.0), 1.0).shown(portrait)
    torch.testing.assert_close(shown[..., 1:, :-2], portrait[..., :-1, 2:])


def test_what_is_not_kept_has_the_painted_colours():
    assert torch.equal(
        painted((2.0, -1.0), 0.0).shown(region(3, 0)), torch.full((2, 3, 16, 24), 0.25)
    )


def test_a_finer_portrait_is_shown_at_its_own_sharpness():
    fine = region(3, 0, (48, 72))
    torch.testing.assert_close(painted((0.0, 0.0), 1.0).shown(fine), fine, atol=1e-5, rtol=0)
    shifted = painted((1.0, 0.0), 1.0).shown(fine)
    torch.testing.assert_close(shifted[..., :-3], fine[..., 3:], atol=1e-5, rtol=0)


def test_painted_skin_has_the_portraits_pores_but_lids_do_not_show_the_eye_below():
    checks = 0.1 * (-1.0) ** torch.arange(96).view(1, -1).add(torch.arange(64).view(-1, 1))
    fine = (0.25 + checks).expand(2, 3, 64, 96)
    openings = torch.zeros(2, 2, 16, 24)
    skin = painted((0.0, 0.0), 0.0).shown(fine, openings)
    torch.testing.assert_close(skin, fine, atol=1e-3, rtol=0)
    openings[:, 0] = 1  # open in the portrait, closed as wanted
    lid = painted((0.0, 0.0), 0.0).shown(fine, openings)
    torch.testing.assert_close(lid, torch.full_like(lid, 0.25))
    other = painted((0.0, 0.0), 0.0).shown(fine - 0.6, 0 * openings)
    torch.testing.assert_close(other, torch.full_like(other, 0.25))


def test_portrait_surroundings_and_maps_have_influence():
    torch.manual_seed(0)
    painter = RegionPainter(SMALL).eval()
    stir(painter)
    inputs = [region(c, s) for s, c in enumerate((3, 2, 3, 2))]

    def colours(parts: list[torch.Tensor]) -> torch.Tensor:
        encoded = painter.encode_portrait(parts[0], parts[1])
        return painter(encoded, parts[2], parts[3], STILL).colours

    for index, channels in enumerate((3, 2, 3, 2)):
        changed = list(inputs)
        changed[index] = region(channels, 9)
        assert (colours(changed) - colours(inputs)).abs().max() > 1e-3, index


def test_an_untrained_painter_keeps_most_of_the_portrait_in_its_place():
    painter = RegionPainter(SMALL)
    encoded = painter.encode_portrait(region(3, 0), region(2, 1))
    with torch.no_grad():
        made = painter(encoded, region(3, 2), region(2, 3), STILL)
    assert not made.flow.any() and not made.colours.any()
    assert 0.5 < float(made.kept.min()) <= float(made.kept.max()) < 1


def test_the_motion_of_eyes_is_linear_in_how_landmarks_have_moved():
    painter = EyePainter(SMALL)
    painter.from_landmarks.copy_(torch.randn(4, 2 * NUM_LANDMARKS))
    portrait, points = torch.rand(1, NUM_LANDMARKS, 2), torch.rand(3, NUM_LANDMARKS, 2)
    motion = painter.motion(points, portrait)
    torch.testing.assert_close(painter.motion(portrait, portrait), torch.zeros(1, 4))
    torch.testing.assert_close(painter.motion((points + portrait) / 2, portrait), motion / 2)
