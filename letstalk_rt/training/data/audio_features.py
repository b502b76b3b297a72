"""What training does to sound: log-mel of clips, augmentation in the mel domain, mouth targets."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.errors import ConfigError
from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES, CausalAudioEncoder
from letstalk_rt.models.audio_encoder.mel import NUM_BANDS, StreamingMel
from letstalk_rt.models.avatar_model import AvatarModel
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.types import SAMPLES_PER_FRAME

MEL_PER_FRAME = 4
MOUTH_BLENDSHAPES = (
    (25,), (27,), (32,), (34, 35), (36, 37), (38,), (40,), (41,), (44, 45), (48, 49),
)  # fmt: skip
"""Blendshapes that speech moves, in MediaPipe's order, left and right as one: jaw open, mouth
close, funnel, lower lip down, press, pucker, roll lower, roll upper, smile, upper lip up."""

NUM_MOUTH_TARGETS = 1 + len(MOUTH_BLENDSHAPES)


@torch.no_grad()
def clip_mel(pcm: np.ndarray, lookahead_frames: int = LOOKAHEAD_FRAMES) -> Tensor:
    """Give log-mel `(64, 4 * (T + L))` of a clip's sound, the look-ahead L filled by silence."""
    tail = np.zeros(lookahead_frames * SAMPLES_PER_FRAME, np.float32)
    mel: Tensor = StreamingMel()(torch.from_numpy(np.concatenate([pcm, tail]))[None])[0]
    return mel


def silence_mel() -> Tensor:
    """Give the log-mel of digital silence, `(64, 1)`."""
    mel: Tensor = StreamingMel()(torch.zeros(1, 160))[0]
    return mel


def augment_mel(mel: Tensor, generator: torch.Generator) -> Tensor:
    """Change level, tone, room and noise of log-mel `(B, 64, S)`, and hide a few bands.

    The level moves by up to 12 dB either way, the tone tilts, some items are heard in a room or
    through a telephone, and noise (another item of the batch, or plain hiss) comes in 6 to 40 dB
    below the speech.
    """
    batch = mel.shape[0]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    power = torch.exp(4 * mel - 3)
    tilt = uniform(-1.0, 1.0, 1, 1) * torch.linspace(-1, 1, NUM_BANDS)[None, :, None]
    bend = uniform(-0.7, 0.7, 1, 1) * torch.cos(torch.linspace(0, 6.3, NUM_BANDS))[None, :, None]
    power = power * torch.exp(uniform(-2.8, 2.8, 1, 1) + tilt + bend)
    echo = (torch.rand(batch, 1, 1, generator=generator) < 0.3) * uniform(0.1, 0.6, 1, 1)
    power = power + echo * _smeared(power, uniform(2.0, 10.0))
    level = power.mean((1, 2), keepdim=True)
    other = power.roll(1, 0)
    hiss = torch.exp(uniform(-2, 2, 1, 1) * torch.linspace(-1, 1, NUM_BANDS)[None, :, None])
    pick = (torch.rand(batch, 1, 1, generator=generator) < 0.4).float()
    noise = pick * other / (other.mean((1, 2), keepdim=True) + 1e-6)
    noise = noise + (1 - pick) * hiss * torch.rand(power.shape, generator=generator)
    power = power + noise * level * 10 ** uniform(-4.0, -0.6, 1, 1)
    cut = torch.where(torch.rand(batch, generator=generator) < 0.1, uniform(0.6, 0.9), 1.0)
    heard = torch.arange(NUM_BANDS)[None] < cut[:, None] * NUM_BANDS
    mel = (torch.log(power * heard[..., None] + 1e-4) + 3) / 4
    start = torch.randint(NUM_BANDS, (batch, 1), generator=generator)
    width = torch.randint(10, (batch, 1), generator=generator)
    bands = torch.arange(NUM_BANDS)[None]
    hidden = (bands >= start) & (bands < start + width)
    return torch.where(hidden[..., None], mel.mean((1, 2), keepdim=True), mel)


def _smeared(power: Tensor, fall: Tensor, reach: int = 24) -> Tensor:
    """Give what a room adds: the past of `(B, 64, S)`, falling by e in `fall` steps, `(B,)`."""
    batch, bands, _ = power.shape
    shares = torch.exp(-torch.arange(reach, 0, -1) / fall[:, None])
    kernel = (shares / shares.sum(1, keepdim=True)).repeat_interleave(bands, 0)[:, None]
    past = F.pad(power, (reach, 0))[..., :-1].reshape(1, batch * bands, -1)
    return F.conv1d(past, kernel, groups=batch * bands).view_as(power)


def mouth_targets(clip: Clip) -> Tensor:
    """Give what the mouth does, `(T, 11)`: its opening relative to rest, then blendshapes.

    Each column is relative to the clip's own quiet level, so that a face that always smiles does
    not look like speech.
    """
    opening = mouth_opening(clip.points)[:, None] * 3
    shapes = [clip.blendshapes[:, list(pair)].mean(1, keepdims=True) for pair in MOUTH_BLENDSHAPES]
    columns = np.concatenate([opening, *shapes], 1)
    return torch.from_numpy((columns - np.percentile(columns, 20, axis=0)).astype(np.float32))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Give Pearson's r; 0 where one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 1e-9 else 0.0


def best_lag(made: np.ndarray, true: np.ndarray, reach: int = 6) -> tuple[int, float]:
    """Give the lag in frames at which `made` fits `true` best, and r there.

    A positive lag means that `made` is late.
    """
    scores = {}
    for lag in range(-reach, reach + 1):
        a = made[max(lag, 0) : len(made) + min(lag, 0)]
        b = true[max(-lag, 0) : len(true) + min(-lag, 0)]
        scores[lag] = correlation(a, b)
    lag = max(scores, key=lambda k: scores[k])
    return lag, scores[lag]


def mel_encoder(model: AvatarModel) -> CausalAudioEncoder:
    """Return the audio encoder of a model, to be trained on log-mel.

    Raises:
        ConfigError: the model hears by wav2vec 2.0, which takes the sound itself.
    """
    if not isinstance(model.audio, CausalAudioEncoder):
        raise ConfigError(
            f"preset {model.preset.name!r} hears by wav2vec 2.0; only the audio encoder of our own "
            "is trained"
        )
    return model.audio
