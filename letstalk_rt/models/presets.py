"""The named models. A preset holds every shape; nothing is guessed from a file name.

`tiny` is the embedded model. `b` and `l` are LetsTalk's sizes in streaming form: 512x512 pictures
through DC-AE, keys and values of memory kept from window to window, few steps by mean velocities,
guidance as an input. No weights of these two exist; `letstalk train` makes them.
"""

from dataclasses import dataclass

from letstalk_rt.audio.encoder import TOKENS_PER_FRAME, AudioEncoderConfig
from letstalk_rt.errors import ConfigError
from letstalk_rt.models.autoencoder import LATENT_SHAPE, AutoencoderConfig
from letstalk_rt.models.transformer import DenoiserConfig


@dataclass(frozen=True)
class DCAutoencoderConfig:
    """The paper's autoencoder, DC-AE f32c32, at one picture size."""

    picture_size: int = 512


@dataclass(frozen=True)
class Preset:
    """Shapes and sampling defaults of one model.

    Attributes:
        name: what it is asked for by.
        autoencoder: ours, or the paper's.
        audio: of the audio encoder.
        denoiser: of the denoiser.
        steps: of the sampler, per window.
        guidance: weight of the sound against none.
        noise_correlation: of neighbouring frames.
        temperature: deviation of the noise.
        seam: shares of the jump between windows that are taken out, see `seams.ease_seam`.
    """

    name: str
    autoencoder: AutoencoderConfig | DCAutoencoderConfig
    audio: AudioEncoderConfig
    denoiser: DenoiserConfig
    steps: int
    guidance: float
    noise_correlation: float
    temperature: float
    seam: tuple[float, ...] = ()


def _paper_scale(name: str, width: int, depth: int) -> Preset:
    audio = AudioEncoderConfig(width=512, token_width=512)
    picture = DCAutoencoderConfig()
    return Preset(
        name=name,
        autoencoder=picture,
        audio=audio,
        denoiser=DenoiserConfig(
            channels=32,
            side=picture.picture_size // 32,
            width=width,
            depth=depth,
            ffn_ratio=4.0,
            audio_tokens=TOKENS_PER_FRAME,
            audio_width=audio.token_width,
            window=4,
            memory=16,
            time_head_width=64,
            cached=True,
            second_time=True,
            guidance_input=True,
        ),
        steps=2,
        guidance=2.0,
        noise_correlation=0.0,
        temperature=1.0,
    )


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
        guidance=2.5,
        noise_correlation=0.95,
        temperature=0.5,
        seam=(0.6, 0.35, 0.15, 0.05),
    ),
    "b": _paper_scale("b", width=768, depth=12),
    "l": _paper_scale("l", width=1024, depth=24),
}


def get_preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
