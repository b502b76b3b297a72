"""The autoencoder of the paper's first version, with a small random one in its place."""

import json

import pytest
import torch

from letstalk_rt.errors import WeightsError
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.layers.network import fingerprint
from letstalk_rt.paper.kl_ae import SCALING_FACTOR, KLAutoencoder

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return KLAutoencoder.random(64, widths=(8,) * 4, layers=1, norm_groups=4)


@pytest.fixture
def folder(autoencoder, tmp_path):
    autoencoder.inner.save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def frames():
    return torch.rand(1, 2, 3, 64, 64) * 2 - 1


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_frame_becomes_4_channels_at_an_8th_of_its_size(autoencoder):
    checked: Autoencoder = autoencoder
    latents = checked.encode(frames())
    assert latents.shape == (1, 2, *checked.latent_shape) == (1, 2, 4, 8, 8)
    decoded = checked.decode(latents, None)
    assert decoded.shape == (1, 2, 3, 64, 64) and decoded.abs().amax() <= 1


def test_latents_are_the_scaled_mean_and_are_scaled_back(autoencoder):
    x = frames()
    mean = autoencoder.inner.encode(x[0]).latent_dist.mean
    latents = autoencoder.encode(x)
    torch.testing.assert_close(latents[0], mean * SCALING_FACTOR)
    wanted = autoencoder.inner.decode(mean).sample.clamp(-1, 1)
    torch.testing.assert_close(autoencoder.decode(latents)[0], wanted, atol=1e-5, rtol=1e-4)


def test_a_folder_and_an_identity_give_the_same_model(autoencoder, folder):
    change_config(folder, scaling_factor=0.2)
    loaded = KLAutoencoder.load(folder, 64)
    assert loaded.scaling_factor == 0.2
    again = KLAutoencoder.of_identity(loaded.identity, 64)
    again.load_state_dict(loaded.state_dict())
    x = frames()
    torch.testing.assert_close(again.encode(x), autoencoder.encode(x) * 0.2 / SCALING_FACTOR)


def test_scaling_factors_are_told_apart(autoencoder, folder):
    change_config(folder, scaling_factor=0.2)
    other = KLAutoencoder.load(folder, 64)
    assert fingerprint(other.inner) == fingerprint(autoencoder.inner)
    assert fingerprint(other) != fingerprint(autoencoder)


def test_the_published_shape_has_84_million_parameters():
    with torch.device("meta"):
        inner = KLAutoencoder.random().inner
    assert sum(p.numel() for p in inner.parameters()) == 83_653_863


@pytest.mark.parametrize(
    "values, message",
    [
        ({"latent_channels": 16}, "is SD-VAE f8c16, expected f8c4"),
        ({"block_out_channels": [8] * 3}, "is SD-VAE f4c4, expected f8c4"),
        ({"shift_factor": 0.1}, "shifts its latents"),
        ({"_class_name": "AutoencoderDC"}, "holds AutoencoderDC, expected AutoencoderKL"),
    ],
)
def test_another_autoencoder_is_refused(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(WeightsError, match=message):
        KLAutoencoder.load(folder, 64)


def test_the_autoencoders_of_the_two_versions_are_not_taken_for_each_other(folder):
    with pytest.raises(WeightsError, match="holds AutoencoderKL, expected AutoencoderDC"):
        DCAutoencoder.load(folder, 64)
