"""Audio features of training: log-mel of clips, augmentation of log-mel, mouth targets."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES, CausalAudioEncoder
from letstalk_rt.models.audio_encoder.mel import NUM_BANDS, StreamingMel
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.models.motion.speech_encoder import SpeechEncoder
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.types import SAMPLES_PER_FRAME

MEL_PER_FRAME = 4
WARM_UP_FRAMES = 12
"""First frames of an item, which lack past audio and are left out of the loss."""
MOUTH_BLENDSHAPES = (
    (25,), (27,), (32,), (34, 35), (36, 37), (38,), (40,), (41,), (44, 45), (48, 49),
)  # fmt: skip
"""Indices of MediaPipe's blendshapes that speech moves, left and right averaged: jaw open, mouth
close, funnel, lower lip down, press, pucker, roll lower, roll upper, smile, upper lip up."""

NUM_MOUTH_TARGETS = 1 + len(MOUTH_BLENDSHAPES)


@torch.no_grad()
def clip_mel(pcm: np.ndarray, lookahead_frames: int = LOOKAHEAD_FRAMES) -> Tensor:
    """Return log-mel `(64, 4 * (T + L))` of a clip's audio, followed by L frames of silence."""
    tail = np.zeros(lookahead_frames * SAMPLES_PER_FRAME, np.float32)
    mel: Tensor = StreamingMel()(torch.from_numpy(np.concatenate([pcm, tail]))[None])[0]
    return mel


def silence_mel() -> Tensor:
    """Return the log-mel of digital silence, `(64, 1)`."""
    mel: Tensor = StreamingMel()(torch.zeros(1, 160))[0]
    return mel


def augment_mel(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Augment log-mel `(B, 64, S)`: level, spectral tilt, reverberation, bandwidth, noise, masking.

    The level changes by up to 12 dB either way. Some items get the reverberation of a room or the
    bandwidth of a telephone. Noise (another item of the batch, or hiss) is added 6 to 40 dB below
    the speech, and a few bands are masked by the mean.
    """
    batch = mel.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    power = torch.exp(4 * mel - 3)
    tilt = uniform(-1.0, 1.0, 1, 1) * torch.linspace(-1, 1, NUM_BANDS)[None, :, None]
    bend = uniform(-0.7, 0.7, 1, 1) * torch.cos(torch.linspace(0, 6.3, NUM_BANDS))[None, :, None]
    power = power * torch.exp(uniform(-2.8, 2.8, 1, 1) + tilt + bend)
    wet = (torch.rand(batch, 1, 1, generator=generator) < 0.3) * uniform(0.1, 0.6, 1, 1)
    power = power + wet * _reverberation(power, uniform(2.0, 10.0))
    level = power.mean((1, 2), keepdim=True)
    other = power.roll(1, 0)
    hiss = torch.exp(uniform(-2, 2, 1, 1) * torch.linspace(-1, 1, NUM_BANDS)[None, :, None])
    babble = (torch.rand(batch, 1, 1, generator=generator) < 0.4).float()
    noise = babble * other / (other.mean((1, 2), keepdim=True) + 1e-6)
    noise = noise + (1 - babble) * hiss * torch.rand(power.shape, generator=generator)
    power = power + noise * level * 10 ** uniform(-4.0, -0.6, 1, 1)
    cutoff = torch.where(torch.rand(batch, generator=generator) < 0.1, uniform(0.6, 0.9), 1.0)
    passed = torch.arange(NUM_BANDS)[None] < cutoff[:, None] * NUM_BANDS
    mel = (torch.log(power * passed[..., None] + 1e-4) + 3) / 4
    start = torch.randint(NUM_BANDS, (batch, 1), generator=generator)
    width = torch.randint(10, (batch, 1), generator=generator)
    bands = torch.arange(NUM_BANDS)[None]

    masked = (bands >= start) & (bands < start + width)
    return torch.where(masked[..., None], mel.mean((1, 2), keepdim=True), mel)


def _reverberation(power: Tensor, decay: Tensor, length: int = 24) -> Tensor:
    """Return the past of `(B, 64, S)`, decaying by e in `decay` steps, `(B,)`: reverberation."""
    batch, bands, _ = power.shape
    weights = torch.exp(-torch.arange(length, 0, -1) / decay[:, None])
    kernel = (weights / weights.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None]
    past = F.pad(power, (length, 0))[..., :-1].reshape(1, batch * bands, -1)
    return F.conv1d(past, kernel, groups=batch * bands).view_as(power)


def mouth_targets(clip: Clip) -> Tensor:
    """Return the mouth targets of a clip, `(T, 11)`: the mouth opening, then blendshapes.

    Each column is relative to its 20th percentile in the clip, so that a constant smile is not
    taken for speech.
    """
    opening = mouth_opening(clip.points)[:, None] * 3
    shapes = [clip.blendshapes[:, list(pair)].mean(1, keepdims=True) for pair in MOUTH_BLENDSHAPES]
    columns = np.concatenate([opening, *shapes], 1)
    return torch.from_numpy((columns - np.percentile(columns, 20, axis=0)).astype(np.float32))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's r; 0 if one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 1e-9 else 0.0


def best_lag(generated: np.ndarray, true: np.ndarray, reach: int = 6) -> tuple[int, float]:
    """Return the lag in frames at which `generated` fits `true` best, and r at that lag.

    A positive lag means that `generated` is late.
    """
    scores = {}
    for lag in range(-reach, reach + 1):
        a = generated[max(lag, 0) : len(generated) + min(lag, 0)]
        b = true[max(-lag, 0) : len(true) + min(-lag, 0)]
        scores[lag] = correlation(a, b)
    lag = max(scores, key=lambda k: scores[k])
    return lag, scores[lag]


def mel_encoder(model: AvatarModel) -> CausalAudioEncoder:
    """Return the audio encoder of a model, which takes log-mel.

    Raises:
        ConfigError: The model's audio encoder is wav2vec 2.0, which takes PCM.
    """
    if not isinstance(model.audio, CausalAudioEncoder):
        raise ConfigError(
            f"preset {model.preset.name!r} uses wav2vec 2.0 as its audio encoder, which takes no "
            "log-mel; choose a preset with the causal audio encoder, such as 'tiny'"
        )
    return model.audio


@torch.no_grad()
def mean_voiced_mel(pcms: Iterable[np.ndarray], speech: SpeechEncoder) -> Tensor:
    """Return the mean log-mel of voiced frames of 16 kHz audio, `(M,)`."""
    mel = torch.cat([speech.mel(torch.from_numpy(pcm)[None])[0] for pcm in pcms], 1)
    return mel[:, mel.mean(0) > speech.config.voiced_level].mean(1)
