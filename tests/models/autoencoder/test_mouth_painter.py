"""The mouth painter: what its output depends on."""

import torch
from support.mouths import frontal_face
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import (
    APPEARANCE_SIZE,
    MouthAppearance,
    MouthPainter,
    MouthPainterConfig,
)
from letstalk_rt.models.geometry.mouth_crop import CROP_SIZE, opening_mask

SMALL = MouthPainterConfig(widths=(8, 8, 8), appearance_width=8)


class TestPainter:
    def painter(self) -> MouthPainter:
        torch.manual_seed(0)
        return MouthPainter(SMALL).eval().requires_grad_(False)

    def inputs(self, count: int = 2) -> tuple[Tensor, Tensor, Tensor, MouthAppearance]:
        size = CROP_SIZE
        points = frontal_face(14.0, at=(56, 34)).repeat(count, 1, 1)
        appearance = MouthAppearance(
            torch.randn(count, APPEARANCE_SIZE), torch.zeros(count, 4, *size)
        )
        return torch.rand(count, 3, *size) * 2 - 1, opening_mask(points), points, appearance

    def test_pixels_inside_the_opening_are_ignored(self):
        crops, opening, points, appearance = self.inputs()
        painter = self.painter()
        opening = (opening > 0.5).float()
        other = torch.where(opening > 0, torch.rand_like(crops), crops)
        assert torch.equal(
            painter(crops, opening, points, appearance), painter(other, opening, points, appearance)
        )

    def test_surroundings_and_appearance_are_used(self):
        crops, opening, points, appearance = self.inputs()
        painter = self.painter()
        own = painter(crops, opening, points, appearance)
        assert not torch.equal(own, painter(crops.flip(0), opening, points, appearance))
        other = MouthAppearance(appearance.code.flip(0), appearance.teeth)
        assert not torch.equal(own, painter(crops, opening, points, other))
        teeth = MouthAppearance(appearance.code, appearance.teeth + 0.5)
        assert not torch.equal(own, painter(crops, opening, points, teeth))
        assert own.shape == crops.shape and own.abs().max() <= 1

    def test_items_do_not_mix(self):
        crops, opening, points, appearance = self.inputs(3)
        painter = self.painter()
        whole = painter(crops, opening, points, appearance)
        first = MouthAppearance(appearance.code[:1], appearance.teeth[:1])
        alone = painter(crops[:1], opening[:1], points[:1], first)
        torch.testing.assert_close(whole[:1], alone, atol=1e-5, rtol=1e-4)

    def test_bfloat16_is_close_to_float32(self):
        inputs = self.inputs()
        painter = self.painter()
        exact = painter(*inputs)
        short = painter.to(torch.bfloat16)(*inputs)
        assert short.dtype == torch.float32
        assert painter.encode_appearance(inputs[3].teeth)[0].dtype == torch.float32
        assert float((short - exact).abs().mean()) < 0.02
