"""The mouth painter: what its output depends on."""

import torch
from support.mouths import frontal_face
from support.small_model import stir
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from letstalk_rt.models.audio_encoder.mouth_sound import MOUTH_SOUND
from letstalk_rt.models.autoencoder.mouth_painter import (
    SMALL_PAINTER,
    MouthPainter,
    MouthPainterConfig,
    is_inner,
    masked_teeth,
)
from letstalk_rt.models.autoencoder.teeth_light import TeethLight
from letstalk_rt.models.geometry.mouth_crop import CROP_SIZE, FINE, FINE_SIZE, opening_mask

SMALL = MouthPainterConfig(widths=(8, 8, 8), bank=2)


class TestPainter:
    def painter(self) -> MouthPainter:
        torch.manual_seed(0)
        return MouthPainter(SMALL).eval().requires_grad_(False)

    def inputs(
        self, painter: MouthPainter, count: int = 2
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        points = frontal_face(14.0, at=(56, 34)).repeat(count, 1, 1)
        crops, other = (torch.rand(count, 3, *size) * 2 - 1 for size in (CROP_SIZE, FINE_SIZE))
        teeth = masked_teeth(other, opening_mask(points, resolution=FINE))
        return crops, opening_mask(points), points, painter.encode_teeth(teeth)

    def test_pixels_inside_the_opening_are_ignored(self):
        painter = self.painter()
        crops, opening, points, teeth = self.inputs(painter)
        opening = (opening > 0.5).float()
        other = torch.where(opening > 0, torch.rand_like(crops), crops)
        assert torch.equal(
            painter(crops, opening, points, teeth), painter(other, opening, points, teeth)
        )

    def test_surroundings_and_teeth_are_used(self):
        painter = self.painter()
        crops, opening, points, teeth = self.inputs(painter)
        own = painter(crops, opening, points, teeth)
        assert not torch.equal(own, painter(crops.flip(0), opening, points, teeth))
        assert not torch.equal(own, painter(crops, opening, points, torch.zeros_like(teeth)))
        assert own.shape == (len(crops), 3, *FINE_SIZE) and own.abs().max() <= 1

    def test_sound_is_used_and_may_be_unknown(self):
        painter = self.painter()
        inputs = self.inputs(painter)
        mute = painter(*inputs)
        assert torch.equal(mute, painter(*inputs, torch.zeros(2, MOUTH_SOUND)))
        assert not torch.equal(mute, painter(*inputs, torch.ones(2, MOUTH_SOUND)))

    def test_items_do_not_mix(self):
        painter = self.painter()
        inputs = self.inputs(painter, 3)
        whole = painter(*inputs)
        alone = painter(*(value[:1] for value in inputs))
        torch.testing.assert_close(whole[:1], alone, atol=1e-5, rtol=1e-4)

    def test_the_middle_alone_is_close_to_the_whole(self):
        torch.manual_seed(0)
        painter = MouthPainter(SMALL).requires_grad_(False)
        stir(painter)
        crops, opening, points, teeth = self.inputs(painter)
        assert is_inner(opening).all()
        mask = opening_mask(points, resolution=FINE)
        whole = painter(crops, opening, points, teeth) * mask
        middle = painter(crops, opening, points, teeth, inner=True)
        assert middle.shape == whole.shape and not middle[..., : 8 * FINE, :].any()
        assert float((middle * mask - whole).abs().max()) < 0.1 * float(whole.abs().max())

    def test_a_small_painter_has_a_third_of_the_operations(self):
        points = frontal_face(14.0, at=(56, 34))
        opening, crops = opening_mask(points), torch.zeros(1, 3, *CROP_SIZE)
        work = []
        for config in (SMALL_PAINTER, MouthPainterConfig()):
            painter = MouthPainter(config).requires_grad_(False)
            teeth = painter.encode_teeth(torch.zeros(1, 4, *FINE_SIZE))
            with FlopCounterMode(display=False) as counter:
                inside = painter(crops, opening, points, teeth, inner=True)
            assert inside.shape == (1, 3, *FINE_SIZE)
            work.append(counter.get_total_flops())
        assert 0.3 < work[0] / work[1] < 0.36

    def test_wide_open_mouths_do_not_fit_into_the_middle(self):
        opening = opening_mask(frontal_face(70.0, at=(56, 34)))
        assert not is_inner(opening).any()

    def test_bfloat16_is_close_to_float32(self):
        painter = self.painter()
        inputs = self.inputs(painter)
        exact = painter(*inputs)
        short = painter.to(torch.bfloat16)(*inputs[:3], inputs[3].to(torch.bfloat16))
        assert short.dtype == torch.float32
        assert float((short - exact).abs().mean()) < 0.02


class TestBank:
    def test_it_returns_what_was_set(self):
        painter = MouthPainter(SMALL)
        points = frontal_face(14.0, at=(56, 34)).repeat(2, 1, 1)
        mask = opening_mask(points, resolution=FINE)
        teeth = masked_teeth(torch.rand(2, 3, *FINE_SIZE) * 2 - 1, mask)
        painter.set_bank(teeth, TeethLight(torch.zeros(3), torch.zeros(3), torch.ones(3)))
        for seed in range(5):
            banked = painter.banked_teeth(seed, torch.zeros(1, 3))
            torch.testing.assert_close(banked, teeth[[seed % 2]], atol=0.01, rtol=0)
        painter.to(torch.bfloat16)
        assert torch.equal(banked, painter.banked_teeth(4, torch.zeros(1, 3)))

    def test_teeth_are_darker_on_a_darker_face(self):
        painter = MouthPainter(SMALL)
        points = frontal_face(14.0, at=(56, 34)).repeat(2, 1, 1)
        teeth = masked_teeth(torch.rand(2, 3, *FINE_SIZE), opening_mask(points, resolution=FINE))
        painter.set_bank(teeth, TeethLight(torch.zeros(3), torch.zeros(3), torch.full((3,), 0.5)))
        usual, dark = (
            painter.banked_teeth(0, torch.tensor([[0.0, 0.0, light]])) for light in (0.0, -0.8)
        )
        assert float(dark[:, :3].sum()) < float(usual[:, :3].sum())

    def test_a_new_painter_has_no_teeth_to_show(self):
        assert not MouthPainter(SMALL).banked_teeth(3, torch.zeros(1, 3)).any()
