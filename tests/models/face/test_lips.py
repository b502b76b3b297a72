"""Lip values of a mouth, and lip motion: the size of shown values, and components of the latent."""

import pytest
import torch
from support.small_model import face_points, open_mouth

from letstalk_rt.models.face.lip_motion import LipMotion
from letstalk_rt.models.face.lip_values import GAPS, LIP_VALUES, NUM_LIP_VALUES, lip_values
from letstalk_rt.models.face.neutral_mouth import NeutralMouth, change_to_rest
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


class TestSizes:
    def test_predictions_get_the_distribution_of_measured_values_in_order(self):
        motion, rng = LipMotion(), torch.Generator().manual_seed(0)
        predicted = [torch.randn(400, NUM_LIP_VALUES, generator=rng) for _ in range(3)]
        true = [torch.rand(400, NUM_LIP_VALUES, generator=rng) ** 2 for _ in range(3)]
        quiet = torch.full((NUM_LIP_VALUES,), -3.0)
        motion.fit_sizes(predicted, true, quiet, torch.ones(NUM_LIP_VALUES))
        shown = motion.to_shown(predicted[0])
        order = predicted[0][:, 0].argsort()
        assert (shown[order, 0].diff() >= -1e-6).all()
        spread = shown.quantile(0.9, 0) - shown.quantile(0.1, 0)
        wanted = true[0].quantile(0.9, 0) - true[0].quantile(0.1, 0)
        torch.testing.assert_close(spread, wanted, atol=0.1, rtol=0.1)
        torch.testing.assert_close(motion.to_shown(quiet), torch.zeros(NUM_LIP_VALUES))

    def test_lips_that_are_nearly_closed_still_move(self):
        motion, values = LipMotion(), torch.linspace(-1, 1, 50)[:, None].expand(-1, NUM_LIP_VALUES)
        quiet = torch.full((NUM_LIP_VALUES,), -2.0)
        motion.fit_sizes([values], [values.clamp(min=0)], quiet, torch.ones(NUM_LIP_VALUES))
        gaps = motion.to_shown(torch.tensor([-2.0, -1.5, -1.0, 1.0])[:, None].expand(-1, 8))[:, GAP]
        assert gaps[0] == 0 and (gaps.diff() > 0).all() and gaps[2] < 0.03

    def test_values_with_little_agreement_are_not_amplified(self):
        motion, values = LipMotion(), torch.linspace(-1, 1, 50)[:, None].expand(-1, NUM_LIP_VALUES)
        trust = torch.ones(NUM_LIP_VALUES)
        trust[3], trust[4] = 0.25, 0.0
        motion.fit_sizes([values], [values], torch.zeros(NUM_LIP_VALUES), trust)
        shown = motion.to_shown(torch.full((NUM_LIP_VALUES,), 0.5))
        assert shown[3] == pytest.approx(0.5 * float(shown[2]), rel=1e-3) and shown[4] == 0

    def test_a_reader_that_predicts_nothing_keeps_the_lips_at_rest(self):
        motion, values = LipMotion(), torch.linspace(-1, 1, 50)[:, None].expand(-1, NUM_LIP_VALUES)
        useless = torch.full((NUM_LIP_VALUES,), -0.1)
        motion.fit_sizes([values], [values], torch.zeros(NUM_LIP_VALUES), useless)
        assert torch.equal(motion.meant, torch.zeros_like(motion.meant))

    def test_components_are_without_head_motion(self):
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
        motion = LipMotion()
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
