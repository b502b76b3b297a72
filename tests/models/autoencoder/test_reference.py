"""The autoencoder before training: shapes, the warp's geometry, the landmarks in the latent."""

import numpy as np
import pytest
import torch
from support.small_model import AUTOENCODER, stir

from letstalk_rt.models.autoencoder.blocks import ChannelNorm, Down, Up, for_inference
from letstalk_rt.models.autoencoder.latents import (
    FACE_SHAPE,
    FACE_SIZE,
    FLOW_SIZE,
    LATENT_SHAPE,
    FramePart,
    without_background_flow,
)
from letstalk_rt.models.autoencoder.networks import soft_argmax
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.geometry import landmarks
from letstalk_rt.models.geometry.landmarks import MESH_POINTS, NUM_LANDMARKS, SUBSET, mouth_opening


def pictures(*shape):
    """Smooth random pictures `(*shape, 3, 256, 256)` in [-1, 1]."""
    coarse = torch.rand(int(np.prod(shape)), 3, 6, 6) * 2 - 1
    smooth = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic").clamp(-1, 1)
    return smooth.view(*shape, 3, 256, 256)


@pytest.fixture
def new():
    """As training begins."""
    torch.manual_seed(0)
    return ReferenceAutoencoder(AUTOENCODER).eval().requires_grad_(False)


@pytest.fixture
def model(new):
    """As if trained: no part is silent."""
    stir(new)
    new.mean_points.uniform_(-0.5, 0.5)
    return new


class TestShapes:
    def test_frames_to_latents_and_back(self, model):
        x = pictures(2, 3)
        latents = model.encode(x)
        assert latents.shape == (2, 3, *LATENT_SHAPE)
        out = model.decode(latents, model.encode_portrait(x[:, 0]))
        assert out.shape == x.shape
        assert out.isfinite().all() and out.abs().max() <= 1

    def test_a_portrait_has_features_of_three_sizes(self, model):
        portrait = model.encode_portrait(pictures(2))
        assert [f.shape for f in portrait.features] == [(2, 8, s, s) for s in (16, 32, 64)]
        assert portrait.points.shape == (2, NUM_LANDMARKS, 2)
        assert portrait.latent.shape == (2, *LATENT_SHAPE)

    def test_shapes_of_the_layers(self, model):
        portrait = model.encode_portrait(pictures(1))
        parts = model.decode_latents(torch.randn(1, *LATENT_SHAPE), portrait)
        assert parts.mask.shape == (1, 1, 256, 256)
        assert parts.mask.min() >= 0 and parts.mask.max() <= 1
        assert parts.flow.shape == (1, 2, FLOW_SIZE, FLOW_SIZE)
        blend = (1 - parts.mask) * parts.warped + parts.mask * (parts.warped + parts.change)
        torch.testing.assert_close(parts.frames, blend, atol=1e-5, rtol=1e-4)

    def test_layers_add_up_to_the_decoded_frames(self, model):
        portraits, latents = model.encode_portrait(pictures(2)), torch.randn(2, 3, *LATENT_SHAPE)
        layers = model.decode_layers(latents, portraits)
        assert layers.flow.shape == (2, 3, 2, FLOW_SIZE, FLOW_SIZE)
        assert layers[1].mask.shape == (3, 1, 256, 256)
        assert torch.equal(layers.frames.clamp(-1, 1), model.decode(latents, portraits))

    def test_pictures_of_another_size_are_refused(self, model):
        with pytest.raises(AssertionError):
            model.encode(torch.zeros(1, 1, 3, 128, 128))
        with pytest.raises(AssertionError):
            model.encode_portrait(torch.zeros(1, 3, 128, 128))


class TestItems:
    def test_frames_do_not_mix(self, model):
        x = pictures(2, 2)
        together = model.encode(x)
        for item in range(2):
            for frame in range(2):
                alone = model.encode(x[item : item + 1, frame : frame + 1])[0, 0]
                torch.testing.assert_close(together[item, frame], alone, atol=1e-4, rtol=1e-4)

    def test_each_item_is_decoded_with_its_own_portrait(self, model):
        portraits, latents = pictures(2), torch.randn(2, 3, *LATENT_SHAPE)
        together = model.decode(latents, model.encode_portrait(portraits))
        for item in range(2):
            portrait = model.encode_portrait(portraits[item : item + 1])
            for frame in range(3):
                alone = model.decode(latents[item : item + 1, frame : frame + 1], portrait)[0, 0]
                torch.testing.assert_close(together[item, frame], alone, atol=2e-3, rtol=1e-3)

    def test_features_from_a_known_latent_are_the_same(self, model):
        x = pictures(1)
        known, own = (
            model.portrait_features(x, model.encode(x[:, None])[:, 0]),
            model.encode_portrait(x),
        )
        assert torch.equal(known.points, own.points)
        assert torch.equal(known.features[2], own.features[2])


class TestWarp:
    def test_the_portrait_latent_decodes_to_the_portrait(self, new):
        x = pictures(1)
        portrait = new.encode_portrait(x)
        parts = new.decode_latents(portrait.latent, portrait)
        assert not parts.flow.any()
        torch.testing.assert_close(parts.warped, x, atol=1e-4, rtol=0)

    def test_moved_landmarks_move_the_frame(self, new):
        x = pictures(1)
        portrait = new.encode_portrait(x)
        # Landmarks all over the picture, wanted a little to the right of where they were.
        portrait.points = torch.rand(1, NUM_LANDMARKS, 2) - 0.5
        new.mean_points.copy_(portrait.points[0] + torch.tensor([2 / 64, 0]))
        parts = new.decode_latents(torch.zeros(1, *LATENT_SHAPE), portrait)
        shown, wanted = parts.warped[0, :, 100:156, 100:156], x[0, :, 100:156, 96:152]
        assert (shown - wanted).abs().mean() < 0.3 * (
            x[0, :, 100:156, 100:156] - wanted
        ).abs().mean()

    def test_a_given_coarse_flow_is_used(self, new):
        x = pictures(1)
        portrait = new.encode_portrait(x)
        flow = torch.zeros(1, 2, FLOW_SIZE, FLOW_SIZE)
        flow[:, 0] = 2 / 256
        parts = new.decode_latents(
            without_background_flow(torch.randn(1, *LATENT_SHAPE)), portrait, flow
        )
        torch.testing.assert_close(parts.warped[..., :-1], x[..., 1:], atol=1e-4, rtol=0)


class TestLandmarksInTheLatent:
    def test_the_read_out_is_linear(self, model):
        a, b = torch.randn(2, *LATENT_SHAPE).unbind(0)
        moved = model.decode_landmarks(0.3 * a - 2 * b) - model.mean_points
        parts = 0.3 * (model.decode_landmarks(a) - model.mean_points) - 2 * (
            model.decode_landmarks(b) - model.mean_points
        )
        torch.testing.assert_close(moved, parts, atol=1e-5, rtol=1e-4)

    def test_a_latent_of_zeros_is_the_mean_face(self, model):
        assert torch.equal(model.decode_landmarks(torch.zeros(LATENT_SHAPE)), model.mean_points)

    def test_any_number_of_axes_may_lead(self, model):
        latents = torch.randn(2, 3, *LATENT_SHAPE)
        whole = model.decode_landmarks(latents)
        assert whole.shape == (2, 3, NUM_LANDMARKS, 2)
        torch.testing.assert_close(whole[1, 2], model.decode_landmarks(latents[1, 2]))

    def test_the_read_out_is_initialised_as_the_inverse(self, new):
        latent = torch.randn(LATENT_SHAPE)
        moved = (new.decode_landmarks(latent) - new.mean_points).flatten()
        again = new.encoder.write_points(moved)
        torch.testing.assert_close(again, latent.flatten()[:FACE_SIZE], atol=1e-4, rtol=1e-4)

    def test_the_encoder_adds_its_landmarks_to_the_latent(self, model):
        x = pictures(1, 1)
        latents, heat = model.encode_with_heatmaps(x)
        assert heat.shape == (1, 1, NUM_LANDMARKS, 32, 32)
        found = soft_argmax(heat[0])[0]
        written = model.encoder.write_points((found - model.mean_points).flatten())
        model.encoder.write_points.weight.zero_()
        rest = model.encode(x).flatten()
        written = torch.nn.functional.pad(written, (0, rest.numel() - FACE_SIZE))
        torch.testing.assert_close(latents.flatten(), rest + written, atol=1e-4, rtol=1e-4)


class TestBackgroundFlow:
    def test_without_a_portrait_it_is_zero(self, model):
        x = pictures(2, 1)
        assert not model.encode(x)[:, :, FACE_SHAPE[0] :].any()
        assert not model.encode_portrait(x[:, 0]).latent[:, FACE_SHAPE[0] :].any()

    def test_from_a_portrait_to_itself_it_is_zero(self, model):
        x = pictures(2, 1)
        torch.testing.assert_close(model.encode(x, model.encode_portrait(x[:, 0])), model.encode(x))

    def test_the_face_is_the_same_with_and_without(self, model):
        x = pictures(1, 3)
        alone, beside = model.encode(x), model.encode(x, model.encode_portrait(x[:, 0]))
        face = slice(FACE_SHAPE[0])
        assert torch.equal(alone[:, :, face], beside[:, :, face])
        assert beside[:, 1:, FACE_SHAPE[0] :].any()

    def test_it_moves_the_frame(self, model):
        portrait = model.encode_portrait(pictures(1))
        latent = portrait.latent.clone()
        latent[:, FACE_SHAPE[0] :] = 1.0
        still, moved = (model.decode_latents(z, portrait).flow for z in (portrait.latent, latent))
        assert (moved - still).abs().max() > 0.01

    def test_landmarks_do_not_depend_on_it(self, model):
        latents = torch.randn(2, *LATENT_SHAPE)
        assert torch.equal(
            model.decode_landmarks(latents),
            model.decode_landmarks(without_background_flow(latents)),
        )
        read = latents.flatten(1) @ model.landmark_matrix.T
        torch.testing.assert_close(
            read.view(2, NUM_LANDMARKS, 2) + model.mean_points, model.decode_landmarks(latents)
        )


class TestSoftArgmax:
    def test_one_cell_is_its_middle(self):
        heat = torch.full((1, 1, 4, 8), -50.0)
        heat[0, 0, 1, 6] = 50.0
        torch.testing.assert_close(soft_argmax(heat), torch.tensor([[[0.625, -0.25]]]))

    def test_two_cells_yield_the_point_between(self):
        heat = torch.full((1, 1, 4, 4), -50.0)
        heat[0, 0, 0, 0] = heat[0, 0, 0, 3] = 50.0
        torch.testing.assert_close(soft_argmax(heat), torch.tensor([[[0.0, -0.75]]]))

    def test_shares_follow_the_logits(self):
        heat = torch.full((1, 1, 1, 2), 0.0)
        heat[0, 0, 0, 1] = np.log(3)
        torch.testing.assert_close(soft_argmax(heat), torch.tensor([[[0.25, 0.0]]]))

    def test_a_flat_map_is_the_middle(self):
        assert soft_argmax(torch.zeros(2, 3, 32, 32)).abs().max() < 1e-6

    def test_an_untrained_model_expects_the_mean_face(self, new):
        mean = torch.rand(NUM_LANDMARKS, 2) - 0.5
        new.set_mean_landmarks(mean)
        assert torch.equal(new.mean_points, mean)
        found = soft_argmax(new.encoder.heat_prior[None])[0]
        torch.testing.assert_close(found, mean, atol=0.01, rtol=0)


class TestParts:
    def test_the_shortcut_of_down_averages_groups(self):
        down = Down(2, 4).requires_grad_(False)
        for parameter in down.parameters():
            parameter.zero_()
        x = torch.randn(1, 2, 4, 4)
        moved = torch.nn.functional.pixel_unshuffle(x, 2)
        torch.testing.assert_close(down(x)[:, 1], moved[:, 2:4].mean(1))

    def test_channels_that_do_not_divide_are_refused(self):
        with pytest.raises(AssertionError):
            Down(2, 3)

    def test_up_doubles(self):
        assert Up(3, 5)(torch.zeros(1, 3, 4, 6)).shape == (1, 5, 8, 12)

    def test_channel_norm_normalises_each_cell(self):
        out = ChannelNorm(16)(5 + 3 * torch.randn(2, 16, 3, 3)).detach()
        assert out.mean(1).abs().max() < 1e-5
        torch.testing.assert_close(out.std(1, correction=0), torch.ones(2, 3, 3), atol=1e-3, rtol=0)


def test_a_decoder_in_half_precision_is_close(model):
    x, latents = pictures(1), torch.randn(1, 2, *LATENT_SHAPE)
    portrait = model.encode_portrait(x)
    exact = model.decode(latents, portrait)
    model.decoder.to(torch.bfloat16)
    rough = model.decode(latents, portrait)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.02


class TestLandmarks:
    def test_the_subset_is_ascending_and_names_lips_and_eyes(self):
        assert list(SUBSET) == sorted(set(SUBSET)) and max(SUBSET) < MESH_POINTS
        assert NUM_LANDMARKS == len(SUBSET)
        assert [SUBSET[i] for i in landmarks.LIPS] == list(
            landmarks.LIPS_OUTER + landmarks.LIPS_INNER
        )
        assert SUBSET[landmarks.UPPER_LIP] == 13 and SUBSET[landmarks.LOWER_LIP] == 14

    def test_mouth_opening_is_gap_over_width(self):
        points = np.zeros((2, NUM_LANDMARKS, 2))
        points[:, landmarks.MOUTH_RIGHT] = [4.0, 0.0]
        points[1, landmarks.LOWER_LIP] = [0.0, 2.0]
        assert mouth_opening(points).tolist() == [0.0, 0.5]

    def test_a_mouth_without_width_gives_no_nan(self):
        assert np.isfinite(mouth_opening(np.zeros((1, NUM_LANDMARKS, 2)))).all()


class TestPartsOfFrames:
    PART = FramePart(slice(20, 52), slice(16, 54))

    def test_a_part_is_that_of_the_whole_frame_but_for_its_edges(self, model):
        portrait = model.encode_portrait(pictures(1))
        inputs = model.prepare_decoder(model.encode(pictures(1, 1))[0], portrait)
        whole = model.run_decoder(inputs, portrait)
        part = model.run_decoder(inputs, portrait, self.PART)
        inside = (..., slice(40, -40), slice(40, -40))
        assert part.warped.shape == (1, 3, 128, 152)
        torch.testing.assert_close(
            part.frames[inside], self.PART.of(whole.frames)[inside], atol=1e-4, rtol=0
        )
        inner = (..., slice(70, 80), slice(60, 80))
        torch.testing.assert_close(part.flow[inner], whole.flow[inner], atol=1e-5, rtol=0)

    def test_maps_of_all_sizes_are_cut_at_the_same_place(self):
        rows = torch.linspace(0, 1, 257)
        for size in (64, 128, 256):
            edges = rows[:: 256 // size][:-1].expand(size, size).T  # upper edge of each row
            assert float(self.PART.of(edges)[0, 0]) == pytest.approx(20 / 64)
            assert self.PART.of(edges).shape == (32 * size // 64, 38 * size // 64)


def test_a_network_for_inference_computes_the_same(model):
    x, down = torch.randn(2, 8, 16, 16), Down(8, 16)
    torch.testing.assert_close(down.as_convolution()(x), down(x), atol=1e-5, rtol=1e-5)
    frames = pictures(2)
    expected = model.encode_with_heatmaps(frames[None])
    for made, wanted in zip(model.encoder_in(torch.float32)(frames), expected, strict=True):
        torch.testing.assert_close(made, wanted[0], atol=2e-4, rtol=1e-4)
    assert not any(isinstance(part, Down) for part in for_inference(model.encoder).modules())
