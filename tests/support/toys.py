"""Toys of the large presets, with autoencoder and speech model as folders in their formats."""

from dataclasses import replace
from pathlib import Path

import torch

from letstalk_rt.models.audio_encoder.causal import AudioEncoderConfig
from letstalk_rt.models.audio_encoder.projector import AudioProjectorConfig
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoderConfig
from letstalk_rt.models.audio_encoder.wav2vec_stream import Wav2Vec2StreamConfig
from letstalk_rt.models.autoencoder.dc_ae import DCAutoencoder
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.presets import DCAutoencoderConfig, Preset
from letstalk_rt.paper.presets import PaperPreset
from support.small_model import PRESET, stir
from support.small_paper_model import make_preset as make_paper_preset

IMAGE_SIZE = 64
LAYERS, WIDTH = 2, 16
DC_LAYOUT = {"widths": (32,) * 6, "encoder_layers": (1,) * 6, "decoder_layers": (1,) * 6}

TOY_B = replace(
    PRESET,
    name="toy-b",
    autoencoder=DCAutoencoderConfig(IMAGE_SIZE),
    audio=AudioEncoderConfig(width=16, token_width=8, dilations=(1, 2), dropout=0.0),
    denoiser=replace(
        PRESET.denoiser,
        channels=32,
        side=IMAGE_SIZE // 32,
        memory=8,
        cached=True,
        second_time=True,
        guidance_input=True,
        dropout=0.1,
    ),
    guidance=2.0,
    parts=("denoiser.landmarks",),
)
"""`b` in small: the causal audio encoder, DC-AE, memory that is kept as keys and values, mean
velocities, guidance as an input."""

STREAM = Wav2Vec2StreamConfig(
    layers=LAYERS, width=WIDTH, heads=2, ffn=24, conv_width=16, context_frames=8
)

TOY_B_WAV2VEC2: Preset = replace(
    TOY_B,
    name="toy-b-wav2vec2",
    audio=Wav2VecEncoderConfig(stream=STREAM, hidden=16, tokens=3, token_width=16),
    denoiser=replace(TOY_B.denoiser, audio_tokens=3, audio_width=16),
)
"""`b-wav2vec2` in small."""

TOY_S = PaperPreset(
    "toy-s",
    make_paper_preset(channels=32, side=IMAGE_SIZE // 32).denoiser,
    AudioProjectorConfig(
        reach=2, layers=LAYERS, feature_width=WIDTH, hidden=16, tokens=3, token_width=16
    ),
    steps=3,
)
"""`faithful-s` in small; its name on the command line is `faithful-toy-s`."""


def write_autoencoder(folder: Path) -> Path:
    """Write a small DC-AE of random weights in diffusers' format."""
    torch.manual_seed(0)
    DCAutoencoder.random(IMAGE_SIZE, **DC_LAYOUT).inner.save_pretrained(folder)  # type: ignore[arg-type]
    return folder


def make_film_model(image_size: int = IMAGE_SIZE, seed: int = 0) -> AvatarModel:
    """Make a toy of `b` of random weights that is told of films, none of them zero."""
    torch.manual_seed(seed)
    inner = DCAutoencoder.random(image_size, **DC_LAYOUT)  # type: ignore[arg-type]
    shape = DCAutoencoderConfig(image_size, inner.identity)
    denoiser = replace(TOY_B.denoiser, side=image_size // 32)
    preset = replace(TOY_B, autoencoder=shape, denoiser=denoiser, parts=("denoiser.landmarks",))
    model = AvatarModel(preset)
    stir(model)
    return model.eval().requires_grad_(False)


def write_wav2vec(folder: Path, **shape: int) -> Path:
    """Write a small wav2vec 2.0 of random weights in transformers' format."""
    import transformers

    wanted = {
        "num_hidden_layers": STREAM.layers,
        "hidden_size": STREAM.width,
        "num_attention_heads": STREAM.heads,
        "intermediate_size": STREAM.ffn,
    }
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(**wanted | shape, conv_dim=(STREAM.conv_width,) * 7)
    model = transformers.Wav2Vec2Model(config).eval()
    stir(model)
    model.save_pretrained(folder)
    return folder
