"""A denoiser's own output over minutes: as a session makes it, its end against its beginning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.small_model import make_speech, stir
from support.toys import TOY_B, write_autoencoder

from letstalk_rt.inference.sample_stage import LatentState, SampleStage
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.memory import MemoryBank
from letstalk_rt.models.presets import DCAutoencoderConfig
from letstalk_rt.models.sampler import NoiseState, timesteps
from letstalk_rt.training.evaluation.latent_drift import drift_of, measure_latent_drift
from letstalk_rt.training.evaluation.rollout import Sampling, rolled_out

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")

SAMPLING = Sampling(2, 2.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_autoencoder(tmp_path_factory.mktemp("dc"))
    identity = DCAutoencoder.load(folder, 64).identity
    torch.manual_seed(0)
    made = AvatarModel(replace(TOY_B, autoencoder=DCAutoencoderConfig(64, identity)))
    stir(made)
    return made.eval().requires_grad_(False)


def test_a_roll_out_is_what_a_session_samples_also_after_memory_is_full(model):
    """Seven windows, of which memory keeps two."""
    config = model.denoiser.config
    torch.manual_seed(1)
    tokens = torch.randn(7, 1, config.window, config.audio_tokens, config.audio_width)
    portrait = torch.randn(1, *model.autoencoder.latent_shape)
    anchor = torch.zeros_like(portrait)
    state = LatentState(
        MemoryBank.anchored(anchor, config.memory),
        model.denoiser.init_cache(anchor),
        model.denoiser.portrait_state(model.normalized_portrait(portrait)),
        NoiseState(5, torch.zeros(anchor.shape)),
    )
    stage = SampleStage(model, SAMPLING.guidance, model.denoiser.predict)
    shown = [stage(window, timesteps(SAMPLING.steps), [state]) for window in tokens]
    made = list(rolled_out(model, tokens, portrait, SAMPLING, seed=5))
    torch.testing.assert_close(torch.cat(made, 1), torch.cat(shown, 1))


class TestDrift:
    def windows(self, offset, growth):
        """Ten parts of five windows of white motion, with another mean and size in each."""
        generator = torch.Generator().manual_seed(0)
        for part in range(10):
            for _ in range(5):
                noise = torch.randn(1, 4, 2, 8, 8, generator=generator)
                yield noise * (1 + growth * part) + offset * part

    def test_motion_that_stays_the_same_has_none(self):
        found = drift_of(self.windows(0.0, 0.0), 5)
        assert found["latent_minutes"] == 10
        assert found["latent_offset"] < 0.4 * found["latent_size"]  # chance: sqrt(2 / 20)
        assert found["latent_size_ratio"] == pytest.approx(1, abs=0.1)
        assert found["latent_range_ratio"] == pytest.approx(1, abs=0.1)

    def test_a_mean_that_moves_is_found(self):
        found = drift_of(self.windows(0.3, 0.0), 5)
        assert found["latent_offset"] == pytest.approx(2.7, abs=0.1)
        assert found["latent_range_ratio"] == pytest.approx(1, abs=0.1)

    def test_motion_that_grows_is_found(self):
        found = drift_of(self.windows(0.0, 0.2), 5)
        assert found["latent_range_ratio"] == pytest.approx(2.8, abs=0.2)

    def test_a_part_that_is_not_whole_is_left_out(self):
        whole = list(self.windows(0.0, 0.0))
        assert drift_of(whole[:14], 5)["latent_minutes"] == 2


def test_a_model_is_measured_from_its_portrait_and_speech(model):
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    found = measure_latent_drift(model, image, np.tile(make_speech(2.0), 3), SAMPLING, part_s=2)
    assert found["latent_minutes"] == 3 and found["latent_size"] > 0
    assert all(np.isfinite(value) for value in found.values())
