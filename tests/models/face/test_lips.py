"""Lip values of a mouth, and how latents change with them in people who talk."""

import torch
from support.small_model import face_points, open_mouth

from letstalk_rt.models.face.lip_values import GAPS, LIP_VALUES, NUM_LIP_VALUES, lip_values
from letstalk_rt.models.face.neutral_mouth import NeutralMouth, change_to_rest
from letstalk_rt.models.face.talking_mouth import TalkingMouth
from letstalk_rt.models.geometry.landmarks import (
    LOWER_LIP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NUM_LANDMARKS,
)

GAP = LIP_VALUES.index("gap")


class TestValues:
    def test_gaps_are_absolute_and_other_values_relative(self):
        rest = open_mouth(face_points(), 0.1)
        values = lip_values(torch.stack([rest, open_mouth(rest, 0.3)]), rest)
        torch.testing.assert_close(values[:, GAP], torch.tensor([0.1, 0.3]), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(values[0, GAPS.stop :], torch.zeros(NUM_LIP_VALUES - GAPS.stop))
        assert values[1, LIP_VALUES.index("upper")] < 0, "heights grow downwards"

    def test_head_motion_does_not_change_the_values(self):
        rest = open_mouth(face_points(), 0.1)
        turned = rest @ torch.tensor([[1.02, 0.1], [-0.1, 0.98]]) + torch.tensor([0.1, -0.05])
        torch.testing.assert_close(
            lip_values(turned[None], rest), lip_values(rest[None], rest), atol=1e-4, rtol=1e-3
        )


def test_components_are_without_head_motion():
    points = open_mouth(face_points(), 0.1)
    read = torch.linalg.qr(torch.randn(2 * NUM_LANDMARKS, 256)).Q
    jaw = torch.zeros(NUM_LANDMARKS, 2)
    jaw[LOWER_LIP, 1] = 1.0
    shift = torch.zeros(NUM_LANDMARKS, 2)
    shift[:, 0] = 1.0
    time = torch.linspace(0, 30, 300)
    moved = torch.sin(time)[:, None] * jaw.flatten() + torch.cos(2 * time)[:, None] * (
        5 * shift.flatten()
    )
    latents = (moved @ read).view(-1, 16, 4, 4)
    motion = TalkingMouth()
    motion.fit_components([latents], read, points)
    main = (motion.natural[0] @ read.T).view(NUM_LANDMARKS, 2)
    assert main[LOWER_LIP, 1].abs() > 5 * main[:, 0].abs().mean()


class TestNeutralMouth:
    def test_it_learns_how_parted_mouths_look_at_rest(self):
        gaps = torch.linspace(0.1, 0.4, 12)
        rest = open_mouth(face_points(), 0.0)
        corners = torch.zeros_like(rest)
        corners[MOUTH_LEFT, 0], corners[MOUTH_RIGHT, 0] = -0.1, 0.1  # parted ones are narrower
        frames = torch.stack([open_mouth(rest, float(gap)) - gap * corners for gap in gaps])
        neutral = NeutralMouth()
        neutral.fit([frames[::2]], [rest], torch.ones(1))
        wanted, width = change_to_rest(frames[5], rest), LIP_VALUES.index("width")
        assert wanted[width] > 0 and wanted[GAP] < 0
        found = neutral(frames[5])[[width, GAP]]
        torch.testing.assert_close(found, wanted[[width, GAP]], atol=0.0, rtol=0.1)

    def test_closed_lips_are_neutral_and_an_unfitted_one_changes_nothing(self):
        closed, parted = (open_mouth(face_points(), gap) for gap in (0.01, 0.3))
        neutral = NeutralMouth()
        assert not neutral(parted).any()
        neutral.bias.fill_(1.0)
        assert not neutral(closed).any() and neutral(parted).all()
