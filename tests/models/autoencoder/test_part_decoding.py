"""Frames of which the mouth alone is decoded."""

import pytest
import torch
from support.small_model import AUTOENCODER, stir
from torch.utils.flop_counter import FlopCounterMode

from letstalk_rt.models.autoencoder.latents import LATENT_SHAPE, WHOLE_FRAME, FramePart
from letstalk_rt.models.autoencoder.part_decoding import (
    ABOVE,
    BELOW,
    BESIDE,
    decode_mouths,
    mouth_part,
)
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.geometry.landmark_warp import warp
from letstalk_rt.models.geometry.landmarks import LIPS, NUM_LANDMARKS


@pytest.fixture
def model() -> ReferenceAutoencoder:
    torch.manual_seed(0)
    autoencoder = ReferenceAutoencoder(AUTOENCODER).eval().requires_grad_(False)
    stir(autoencoder)
    autoencoder.mean_points.uniform_(-0.5, 0.5)
    return autoencoder


@pytest.fixture
def decoded(model):
    """A frame's inputs, its portrait, and its layers if its mouth alone is decoded."""
    portrait = model.encode_portrait(torch.rand(1, 3, 256, 256) * 2 - 1)
    inputs = model.prepare_decoder(torch.randn(1, *LATENT_SHAPE), portrait)
    return inputs, portrait, decode_mouths(model, inputs, portrait)


def lips_at(x: float, y: float) -> torch.Tensor:
    points = torch.zeros(NUM_LANDMARKS, 2)
    points[list(LIPS)] = torch.tensor([x, y])
    return points


class TestPart:
    def test_it_lies_around_the_lips(self):
        assert mouth_part(lips_at(0.0, 0.5)) == FramePart(
            slice(48 - ABOVE, 48 + BELOW), slice(32 - BESIDE, 32 + BESIDE)
        )

    @pytest.mark.parametrize("place", [(-1.0, -1.0), (1.0, 1.0), (3.0, -4.0)])
    def test_it_keeps_its_size_at_the_edge(self, place):
        part = mouth_part(lips_at(*place))
        assert part.rows.stop - part.rows.start == ABOVE + BELOW
        assert part.columns.stop - part.columns.start == 2 * BESIDE
        assert part.rows.start >= 0 and part.rows.stop <= 64
        assert part.columns.start >= 0 and part.columns.stop <= 64


class TestDecoding:
    def test_the_middle_is_that_of_the_part(self, model, decoded):
        inputs, portrait, layers = decoded
        part = mouth_part(inputs.points[0])
        alone = model.run_decoder(inputs, portrait, part)
        inner = (..., slice(24, -24), slice(24, -24))
        torch.testing.assert_close(part.of(layers.residual)[inner], alone.residual[inner])
        torch.testing.assert_close(
            part.of(layers.warped)[inner], alone.warped[inner], atol=1e-4, rtol=0
        )

    def test_the_rest_is_the_portrait_warped_by_landmarks(self, decoded):
        inputs, portrait, layers = decoded
        part = mouth_part(inputs.points[0])
        rest = torch.ones(1, 1, 256, 256)
        part.of(rest).zero_()
        assert not (layers.residual * rest).any()
        assert WHOLE_FRAME.of(layers.residual).any()
        plain = warp(portrait.image, inputs.flow, "bicubic")
        far = 1 - torch.nn.functional.max_pool2d(1 - rest, 9, stride=1, padding=4)
        torch.testing.assert_close(layers.frames * far, plain * far, atol=1e-4, rtol=0)

    def test_it_fades_out_at_the_edge_of_the_part(self, model, decoded):
        inputs, portrait, layers = decoded
        part = mouth_part(inputs.points[0])
        alone = model.run_decoder(inputs, portrait, part)
        shown = part.of(layers.mask) / alone.mask
        assert float(shown.max()) == pytest.approx(1)
        assert float(shown[..., 0, :].max()) < 0.2 and float(shown[..., -1].max()) < 0.2

    def test_it_takes_less_than_half_of_the_operations(self, model, decoded):
        inputs, portrait, _ = decoded
        work = []
        for decode in (lambda: decode_mouths(model, inputs, portrait),
                       lambda: model.run_decoder(inputs, portrait)):  # fmt: skip
            with FlopCounterMode(display=False) as counter:
                decode()
            work.append(counter.get_total_flops())
        assert work[0] < 0.5 * work[1]
