"""The named models. A preset holds every shape; nothing is guessed from a file name."""

from dataclasses import dataclass

from letstalk_rt.audio.encoder import TOKENS_PER_FRAME, AudioEncoderConfig
from letstalk_rt.errors import ConfigError
from letstalk_rt.models.autoencoder import LATENT_SHAPE, AutoencoderConfig
from letstalk_rt.models.transformer import DenoiserConfig


@dataclass(frozen=True)
class Preset:
    """Shapes and sampling defaults of one model."""

    name: str
    autoencoder: AutoencoderConfig
    audio: AudioEncoderConfig
    denoiser: DenoiserConfig
    steps: int
    guidance: float
    noise_correlation: float
    temperature: float


_TINY_AUDIO = AudioEncoderConfig()
PRESETS = {
    "tiny": Preset(
        name="tiny",
        autoencoder=AutoencoderConfig(),
        audio=_TINY_AUDIO,
        denoiser=DenoiserConfig(
            channels=LATENT_SHAPE[0],
            side=LATENT_SHAPE[1],
            width=192,
            depth=5,
            ffn_ratio=2.5,
            audio_tokens=TOKENS_PER_FRAME,
            audio_width=_TINY_AUDIO.token_width,
            window=4,
            memory=8,
            dropout=0.1,
        ),
        steps=1,
        guidance=2.0,
        noise_correlation=0.95,
        temperature=0.5,
    )
}


def get_preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
