"""A small model in the form of `b`, with a DC-AE of random weights: the real code, quick."""

from dataclasses import replace

import torch

from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.presets import DCAutoencoderConfig, Preset
from support.small_model import DENOISER, PRESET, stir

IMAGE_SIZE = 64
SCALING_FACTOR = 0.3189
"""Another than that of SANA's autoencoder."""


def make_dc_autoencoder(width: int = 32, seed: int = 0) -> DCAutoencoder:
    """Make an f32c32 autoencoder of another layout than SANA's."""
    torch.manual_seed(seed)
    layers = (1,) * 6
    made = DCAutoencoder.random(
        IMAGE_SIZE, widths=(width,) * 6, encoder_layers=layers, decoder_layers=layers
    )
    made.inner.register_to_config(scaling_factor=SCALING_FACTOR)  # type: ignore[operator]
    made.scaling_factor = SCALING_FACTOR
    return made


def make_dc_preset(name: str = "small-dc", identity: str | None = None) -> Preset:
    """Return the preset; without an identity its autoencoder would be as large as SANA's."""
    denoiser = replace(DENOISER, channels=32, side=IMAGE_SIZE // 32, guidance_input=True)
    autoencoder = DCAutoencoderConfig(IMAGE_SIZE, identity or make_dc_autoencoder().identity)
    return replace(PRESET, name=name, autoencoder=autoencoder, denoiser=denoiser, parts=())


def make_dc_model(seed: int = 0) -> AvatarModel:
    """Make the model with random weights, none of them zero, in eval mode."""
    torch.manual_seed(seed)
    model = AvatarModel(make_dc_preset())
    stir(model)
    return model.eval().requires_grad_(False)
