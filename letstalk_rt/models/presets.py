"""The named model configurations. A preset holds every shape; none is derived from a file name.

`tiny` is the embedded model. `b` and `l` are LetsTalk's sizes in streaming form: 512x512 frames
through DC-AE, keys and values of memory cached from window to window, few sampling steps by mean
velocities, guidance as an input. No weights of these two exist; `letstalk train` trains them.
`b-wav2vec2` and `l-wav2vec2` have the paper's audio path.
"""

from dataclasses import dataclass, replace

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.causal import TOKENS_PER_FRAME, AudioEncoderConfig
from letstalk_rt.models.audio_encoder.wav2vec_encoder import Wav2VecEncoderConfig
from letstalk_rt.models.autoencoder.latents import LATENT_SHAPE
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainterConfig
from letstalk_rt.models.autoencoder.networks import AutoencoderConfig
from letstalk_rt.models.autoencoder.region_painter import RegionPainterConfig
from letstalk_rt.models.denoiser import DenoiserConfig
from letstalk_rt.models.geometry.eye_region import EYE_MAPS
from letstalk_rt.models.motion.denoiser import MotionDenoiserConfig

EYE_PAINTER = RegionPainterConfig(maps=EYE_MAPS)


@dataclass(frozen=True)
class DCAutoencoderConfig:
    """The paper's autoencoder, DC-AE f32c32, for frames of one size.

    Attributes:
        image_size: height and width of the frames, in pixels.
        identity: see `DCAutoencoder.identity`; None for the layout and the factor of SANA's.
    """

    image_size: int = 512
    identity: str | None = None


@dataclass(frozen=True)
class Preset:
    """Shapes and sampling defaults of one model.

    Attributes:
        name: name of the preset.
        autoencoder: shape of the autoencoder: ours, or the paper's.
        audio: shape of the audio encoder: ours, or the paper's wav2vec 2.0 with its projector.
        denoiser: shape of the denoiser.
        steps: sampling steps per window.
        guidance: weight of the audio against no audio.
        noise_correlation: correlation of the noise of neighbouring frames.
        temperature: standard deviation of the noise.
        denoiser_follows: on a GPU the denoiser runs in the decoder's number format, which a small
            denoiser does not gain from.
        parts: names of its parts, see `models/parts.py`: most need landmarks in the latents, which
            those of the paper's autoencoder have not; less while others are trained.
        mouth_painter: shape of the mouth painter.
        eye_painter: shape of the eye painter.
        motion: shape of the motion denoiser.
    """

    name: str
    autoencoder: AutoencoderConfig | DCAutoencoderConfig
    audio: AudioEncoderConfig | Wav2VecEncoderConfig
    denoiser: DenoiserConfig
    steps: int
    guidance: float
    noise_correlation: float
    temperature: float
    denoiser_follows: bool = False
    parts: tuple[str, ...] = ()
    mouth_painter: MouthPainterConfig = MouthPainterConfig()
    eye_painter: RegionPainterConfig = EYE_PAINTER
    motion: MotionDenoiserConfig = MotionDenoiserConfig()


def with_lookahead(preset: Preset, lookahead_ms: int) -> Preset:
    """Return a copy of the preset with another look-ahead of the audio encoder."""
    audio = preset.audio
    if isinstance(audio, Wav2VecEncoderConfig):
        return replace(preset, audio=audio.with_lookahead(lookahead_ms))
    audio = replace(audio, lookahead_ms=lookahead_ms)
    return replace(preset, audio=audio, motion=preset.motion.with_lookahead(lookahead_ms))


def _paper_scale(
    name: str, width: int, depth: int, audio: AudioEncoderConfig | Wav2VecEncoderConfig
) -> Preset:
    tokens = audio.tokens if isinstance(audio, Wav2VecEncoderConfig) else TOKENS_PER_FRAME
    autoencoder = DCAutoencoderConfig()
    return Preset(
        name=name,
        autoencoder=autoencoder,
        audio=audio,
        denoiser=DenoiserConfig(
            channels=32,
            side=autoencoder.image_size // 32,
            width=width,
            depth=depth,
            ffn_ratio=4.0,
            audio_tokens=tokens,
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
        denoiser_follows=True,
        parts=("denoiser.landmarks",),
    )


_TINY_AUDIO = AudioEncoderConfig(mouth_values=11)
_LARGE_AUDIO = AudioEncoderConfig(width=512, token_width=512)
PRESETS = {
    "tiny": Preset(
        name="tiny",
        autoencoder=AutoencoderConfig(reference=(48, 32, 16), decoder=(96, 64, 48)),
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
        guidance=1.0,
        noise_correlation=0.95,
        temperature=0.5,
        parts=(
            "detector",
            "head",
            "mouth_painter",
            "lip_refiner",
            "eye_painter",
            "pose_reader",
            "motion",
            "denoiser.landmarks",
        ),
    ),
    "b": _paper_scale("b", 768, 12, _LARGE_AUDIO),
    "l": _paper_scale("l", 1024, 24, _LARGE_AUDIO),
    "b-wav2vec2": _paper_scale("b-wav2vec2", 768, 12, Wav2VecEncoderConfig()),
    "l-wav2vec2": _paper_scale("l-wav2vec2", 1024, 24, Wav2VecEncoderConfig()),
}


def get_preset(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
