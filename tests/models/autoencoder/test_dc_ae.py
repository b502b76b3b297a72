"""The paper's autoencoder through diffusers, with a small random one in its place."""

import json
import sys

import pytest
import torch

from letstalk_rt.errors import ConfigError, DependencyError, InputError, WeightsError
from letstalk_rt.models.autoencoder.dc_ae import SCALING_FACTOR, DCAutoencoder
from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.autoencoder.published import PlainPortraitFeatures
from letstalk_rt.models.autoencoder.reference import ReferenceAutoencoder

pytest.importorskip("diffusers", reason="the extra `paper` is not installed")

SMALL = {"widths": (32,) * 6, "encoder_layers": (1,) * 6, "decoder_layers": (1,) * 6}


@pytest.fixture(scope="module")
def autoencoder():
    torch.manual_seed(0)
    return DCAutoencoder.random(64, **SMALL)


@pytest.fixture
def folder(autoencoder, tmp_path):
    autoencoder.inner.save_pretrained(tmp_path / "dc")
    return tmp_path / "dc"


def frames(batch=1, count=2, size=64):
    return torch.rand(batch, count, 3, size, size) * 2 - 1


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class TestUse:
    def test_a_frame_becomes_32_channels_at_a_32nd_of_its_size(self, autoencoder):
        assert autoencoder.latent_shape == (32, 2, 2) and autoencoder.image_size == 64
        latents = autoencoder.encode(frames(2, 3))
        assert latents.shape == (2, 3, 32, 2, 2)
        decoded = autoencoder.decode(latents)
        assert decoded.shape == (2, 3, 3, 64, 64) and decoded.abs().amax() <= 1

    def test_latents_are_scaled_and_scaled_back(self, autoencoder):
        x = frames()
        plain = autoencoder.inner.encode(x[0]).latent
        latents = autoencoder.encode(x)
        torch.testing.assert_close(latents[0], plain * SCALING_FACTOR)
        wanted = autoencoder.inner.decode(plain).sample.clamp(-1, 1)
        torch.testing.assert_close(autoencoder.decode(latents)[0], wanted, atol=1e-5, rtol=1e-4)

    def test_frames_decoded_singly_equal_the_window(self, autoencoder):
        latents, portrait = (
            autoencoder.encode(frames()),
            autoencoder.encode_portrait(frames()[:, 0]),
        )
        layout = autoencoder.prepare_decoder(latents[0], portrait.repeat(2))
        singly = [autoencoder.run_decoder(layout[i : i + 1], portrait) for i in range(2)]
        whole = autoencoder.decode_layers(latents, portrait)[0]
        torch.testing.assert_close(torch.cat(singly), whole, atol=1e-5, rtol=1e-4)

    def test_frames_do_not_mix(self, autoencoder):
        x = frames(2, 2)
        torch.testing.assert_close(autoencoder.encode(x)[1:, 1:], autoencoder.encode(x[1:, 1:]))

    def test_a_portrait_is_its_latent(self, autoencoder):
        picture = frames()[:, 0]
        portrait = autoencoder.encode_portrait(picture)
        assert isinstance(portrait, PlainPortraitFeatures)
        torch.testing.assert_close(portrait.latent, autoencoder.encode(picture[:, None])[:, 0])

    def test_it_is_frozen(self, autoencoder):
        assert not any(p.requires_grad for p in autoencoder.parameters())
        assert not autoencoder.inner.training

    def test_both_autoencoders_have_one_interface(self, autoencoder):
        def round_trip(a: Autoencoder) -> torch.Size:
            picture = frames(1, 1, a.image_size)
            portrait = a.encode_portrait(picture[:, 0])
            assert portrait.latent.shape == (1, *a.latent_shape)
            latents = a.encode(picture)
            assert latents.shape == (1, 1, *a.latent_shape)
            return a.decode(latents, portrait).shape

        assert round_trip(autoencoder) == (1, 1, 3, 64, 64)
        with torch.no_grad():
            assert round_trip(ReferenceAutoencoder().eval()) == (1, 1, 3, 256, 256)

    def test_the_published_shape_has_312_million_parameters(self):
        with torch.device("meta"):
            inner = DCAutoencoder.random().inner
        assert sum(p.numel() for p in inner.parameters()) == 312_250_275


class TestRefusals:
    def test_a_wrong_size_is_refused(self, autoencoder):
        with pytest.raises(InputError, match=r"frames must have shape \(B, T, 3, 64, 64\)"):
            autoencoder.encode(frames(size=32))

    def test_bytes_are_refused(self, autoencoder):
        with pytest.raises(InputError, match="frames must be floating point, got uint8"):
            autoencoder.encode(frames().to(torch.uint8))
        with pytest.raises(InputError, match="must be in"):
            autoencoder.encode(frames() * 127 + 128)

    def test_nan_is_refused(self, autoencoder):
        x = frames()
        x[0, 1, 2, 3, 4] = float("nan")
        with pytest.raises(InputError, match="NaN"):
            autoencoder.encode(x)

    def test_other_latents_are_refused(self, autoencoder):
        with pytest.raises(InputError, match="latents must have shape"):
            autoencoder.decode(torch.zeros(1, 1, 16, 4, 4))

    @pytest.mark.parametrize("size", [0, 100])
    def test_a_size_that_32_does_not_divide_is_refused(self, size):
        with pytest.raises(ConfigError, match="multiple of 32"):
            DCAutoencoder.random(size, **SMALL)


class TestLoading:
    def test_a_folder_gives_the_same_model(self, autoencoder, folder):
        x = frames()
        loaded = DCAutoencoder.load(folder, 64)
        assert loaded.scaling_factor == SCALING_FACTOR
        torch.testing.assert_close(loaded.encode(x), autoencoder.encode(x))

    def test_a_subfolder_can_be_named(self, folder):
        assert DCAutoencoder.load(folder.parent, 64, subfolder="dc").image_size == 64

    def test_a_checkpoint_keeps_its_own_scale(self, folder):
        change_config(folder, scaling_factor=0.5)
        assert DCAutoencoder.load(folder, 64).scaling_factor == 0.5

    def test_a_missing_checkpoint_is_reported(self, tmp_path):
        with pytest.raises(WeightsError, match="no DC-AE checkpoint"):
            DCAutoencoder.load(tmp_path / "none")

    def test_another_model_is_refused(self, folder):
        change_config(folder, _class_name="AutoencoderKL")
        with pytest.raises(WeightsError, match="holds AutoencoderKL, expected AutoencoderDC"):
            DCAutoencoder.load(folder)

    @pytest.mark.parametrize(
        "values, name",
        [
            ({"latent_channels": 128}, "f32c128"),
            ({"encoder_block_out_channels": [32] * 7}, "f64c32"),
        ],
    )
    def test_a_dc_ae_of_another_shape_is_refused(self, folder, values, name):
        change_config(folder, **values)
        with pytest.raises(WeightsError, match=f"is DC-AE {name}, expected f32c32"):
            DCAutoencoder.load(folder)

    def test_weights_of_another_shape_are_refused(self, folder):
        change_config(folder, encoder_layers_per_block=[2] * 6)
        with pytest.raises(WeightsError, match="do not fit its config"):
            DCAutoencoder.load(folder)

    def test_damaged_weights_are_refused(self, folder):
        next(folder.glob("*.safetensors")).write_bytes(b"nonsense")
        with pytest.raises(WeightsError, match="cannot be read"):
            DCAutoencoder.load(folder)

    def test_without_diffusers_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "diffusers", None)
        with pytest.raises(DependencyError, match=r"pip install '\.\[paper\]'"):
            DCAutoencoder.random(64, **SMALL)
