"""The autoencoder's losses reach all parts, and the decoder stage keeps the latents."""

import math
from dataclasses import replace

import pytest
import torch
from support.small_model import AUTOENCODER, stir
from support.training import generator, silent_parts

from letstalk_rt.models.autoencoder.networks import soft_argmax
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS
from letstalk_rt.training.data.pairs import PairSource
from letstalk_rt.training.loop import LoopConfig
from letstalk_rt.training.stages import autoencoder
from letstalk_rt.training.stages.autoencoder_loss import (
    AutoencoderLossConfig,
    autoencoder_loss,
    energy_loss,
    heat_loss,
    opening_error,
)


class TestLandmarkLosses:
    def test_the_target_map_of_a_point_has_its_mean_exactly_there(self):
        """The loss of the map that equals the target has no gradient, and that map names it."""
        torch.manual_seed(0)
        points = torch.rand(1, 6, 2, dtype=torch.float64) * 1.8 - 0.9
        heat = torch.zeros(1, 6, 8, 8, dtype=torch.float64)
        place = (points + 1) * 4 - 0.5
        low = place.floor().long()
        for index in range(6):
            (x, y), (fx, fy) = low[0, index].tolist(), (place - low)[0, index].tolist()
            for dx, dy, share in [(0, 0, (1 - fx) * (1 - fy)), (1, 0, fx * (1 - fy)),
                                  (0, 1, (1 - fx) * fy), (1, 1, fx * fy)]:  # fmt: skip
                if 0 <= x + dx < 8 and 0 <= y + dy < 8:
                    heat[0, index, y + dy, x + dx] = share
        logits = torch.log(heat.clamp(min=1e-12)).requires_grad_()
        torch.testing.assert_close(soft_argmax(logits), points, atol=1e-6, rtol=0)
        entropy = -(heat * torch.log(heat.clamp(min=1e-12))).sum((2, 3)).mean()
        value = heat_loss(logits, points)
        torch.testing.assert_close(value, entropy, atol=1e-4, rtol=0)

    def test_a_map_elsewhere_costs_more(self):
        points = torch.tensor([[[0.3, -0.2]]])
        near, far = torch.full((2, 1, 1, 16, 16), -6.0).unbind(0)
        near[0, 0, 6, 10] = 6.0
        far[0, 0, 12, 3] = 6.0
        assert heat_loss(near, points) < heat_loss(far, points) - 5

    @pytest.mark.parametrize("place", [-1.2, -1.0, 1.0, 1.2])
    def test_points_beyond_the_picture_are_finite(self, place):
        heat = torch.zeros(1, 2, 16, 16, requires_grad=True)
        value = heat_loss(heat, torch.full((1, 2, 2), place))
        value.backward()
        assert value.isfinite() and heat.grad.isfinite().all()

    def test_the_opening_error_sees_the_lips_only(self):
        a = torch.zeros(1, NUM_LANDMARKS, 2)
        moved = a + 0.3
        assert opening_error(moved, a) < 1e-6
        b = a.clone()
        b[:, ::3] += 0.1
        assert opening_error(b, a) == opening_error(a, b)


class TestAutoencoderLoss:
    @pytest.fixture
    def batch(self, clips, stills):
        return PairSource(clips, stills, 2, still_share=0.5).draw(generator(1))

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        model = ReferenceAutoencoder(AUTOENCODER)
        stir(model)
        return model

    @pytest.mark.parametrize("maturity", [0.0, 1.0])
    def test_it_reaches_every_part(self, model, batch, maturity):
        torch.manual_seed(1)
        value, parts = autoencoder_loss(model, *batch, AutoencoderLossConfig(), maturity)
        value.backward()
        missed = silent_parts(model)
        assert missed == []
        assert all(math.isfinite(part) for part in parts.values())
        assert {"frame", "warp", "gradient", "points", "heat", "latent", "mask", "flow"} <= set(
            parts
        )

    def test_a_few_steps_lower_it(self, model, batch):
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
        values = []
        for _ in range(5):
            torch.manual_seed(1)
            value, _ = autoencoder_loss(model, *batch, AutoencoderLossConfig(), 1.0)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < values[0]


def test_the_decoder_stage_leaves_the_latents_as_they_are(clips, stills, tmp_path):
    torch.manual_seed(0)
    initial_weights = ReferenceAutoencoder(AUTOENCODER)
    stir(initial_weights)
    config = LoopConfig(steps=2, warm_up=1, learning_rate=1e-3)
    trained = autoencoder.train_autoencoder(
        clips,
        stills,
        [],
        tmp_path,
        config,
        batch_size=2,
        shape=AUTOENCODER,
        initial_weights=initial_weights.state_dict(),
        freeze_latents=True,
    )
    after = trained.state_dict()
    changed = {n for n, v in initial_weights.state_dict().items() if not torch.equal(v, after[n])}
    assert {name.partition(".")[0] for name in changed} == {"decoder", "reference"}
    frames = torch.rand(1, 1, 3, 256, 256)
    assert torch.equal(trained.encode(frames), initial_weights.eval().encode(frames))


def test_a_decoder_of_another_shape_is_trained_from_scratch():
    given = ReferenceAutoencoder(AUTOENCODER)
    stir(given)
    model = ReferenceAutoencoder(replace(AUTOENCODER, decoder=(8, 8, 16), reference=(8, 8, 4)))
    own = {name: value.clone() for name, value in model.state_dict().items()}
    assert autoencoder.load_fitting(model, given.state_dict())
    for name, value in model.state_dict().items():
        is_new = name.startswith(("decoder.", "reference.heads."))
        assert torch.equal(value, own[name] if is_new else given.state_dict()[name]), name
    assert not autoencoder.load_fitting(ReferenceAutoencoder(AUTOENCODER), given.state_dict())


def test_blur_costs_energy_wherever_the_edges_are():
    true = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(true, 3, 1, 1)
    moved, one = true.roll(1, 3), torch.ones(1, 1, 64, 64)
    assert float(energy_loss(blurred, true, one)) > 5 * float(energy_loss(moved, true, one))
