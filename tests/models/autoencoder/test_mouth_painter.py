"""The mouth painter: what its output depends on."""

import torch
from support.mouths import frontal_face
from support.small_model import stir
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import (
    MouthPainter,
    MouthPainterConfig,
    is_inner,
    masked_teeth,
)
from letstalk_rt.models.geometry.mouth_crop import CROP_SIZE, opening_mask

SMALL = MouthPainterConfig(widths=(8, 8, 8), bank=2)


class TestPainter:
    def painter(self) -> MouthPainter:
        torch.manual_seed(0)
        return MouthPainter(SMALL).eval().requires_grad_(False)

    def inputs(self, count: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = CROP_SIZE
        points = frontal_face(14.0, at=(56, 34)).repeat(count, 1, 1)
        opening = opening_mask(points)
        crops, other = (torch.rand(count, 3, *size) * 2 - 1 for _ in range(2))
        return crops, opening, points, masked_teeth(other, opening)

    def test_pixels_inside_the_opening_are_ignored(self):
        crops, opening, points, teeth = self.inputs()
        painter = self.painter()
        opening = (opening > 0.5).float()
        other = torch.where(opening > 0, torch.rand_like(crops), crops)
        assert torch.equal(
            painter(crops, opening, points, teeth), painter(other, opening, points, teeth)
        )

    def test_surroundings_and_teeth_are_used(self):
        crops, opening, points, teeth = self.inputs()
        painter = self.painter()
        own = painter(crops, opening, points, teeth)
        assert not torch.equal(own, painter(crops.flip(0), opening, points, teeth))
        assert not torch.equal(own, painter(crops, opening, points, torch.zeros_like(teeth)))
        assert own.shape == crops.shape and own.abs().max() <= 1

    def test_items_do_not_mix(self):
        inputs = self.inputs(3)
        painter = self.painter()
        whole = painter(*inputs)
        alone = painter(*(value[:1] for value in inputs))
        torch.testing.assert_close(whole[:1], alone, atol=1e-5, rtol=1e-4)

    def test_the_middle_alone_is_close_to_the_whole(self):
        torch.manual_seed(0)
        painter = MouthPainter(SMALL).requires_grad_(False)
        stir(painter)
        crops, opening, points, teeth = self.inputs()
        assert is_inner(opening).all()
        whole = painter(crops, opening, points, teeth) * opening
        middle = painter(crops, opening, points, teeth, inner=True)
        assert middle.shape == whole.shape and not middle[..., :8, :].any()
        assert float((middle * opening - whole).abs().max()) < 0.1 * float(whole.abs().max())

    def test_wide_open_mouths_do_not_fit_into_the_middle(self):
        opening = opening_mask(frontal_face(70.0, at=(56, 34)))
        assert not is_inner(opening).any()

    def test_bfloat16_is_close_to_float32(self):
        inputs = self.inputs()
        painter = self.painter()
        exact = painter(*inputs)
        short = painter.to(torch.bfloat16)(*inputs)
        assert short.dtype == torch.float32
        assert float((short - exact).abs().mean()) < 0.02


class TestBank:
    def test_it_returns_what_was_set(self):
        painter = MouthPainter(SMALL)
        points = frontal_face(14.0, at=(56, 34)).repeat(2, 1, 1)
        teeth = masked_teeth(torch.rand(2, 3, *CROP_SIZE) * 2 - 1, opening_mask(points))
        painter.set_bank(teeth)
        for seed in range(5):
            banked = painter.banked_teeth(seed)
            torch.testing.assert_close(banked, teeth[[seed % 2]], atol=0.01, rtol=0)
        painter.to(torch.bfloat16)
        assert torch.equal(banked, painter.banked_teeth(4))

    def test_a_new_painter_has_no_teeth_to_show(self):
        assert not MouthPainter(SMALL).banked_teeth(3).any()
