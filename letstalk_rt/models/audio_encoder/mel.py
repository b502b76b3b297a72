"""Streaming log-mel spectrogram, the input of the audio encoder, and its running mean.

With the mean subtracted, the tone of a voice or microphone matters little.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.types import SAMPLE_RATE, SAMPLES_PER_FRAME

NUM_BANDS = 64
FLOOR = 1e-4
"""Power that is added before the logarithm."""

STEP = 160
"""Samples between two mel frames: 10 ms."""

MEL_PER_FRAME = SAMPLES_PER_FRAME // STEP

PRIOR_FRAMES = 25
"""Weight of the initial mean in the running mean, in frames."""

MEAN_FRAMES = 750
"""Number of frames from which on the running mean forgets the oldest exponentially."""

FEATURE_SCALE = 4 / 3
"""Scales log-mel minus its mean to about unit variance."""

WINDOW = 512
_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7600.0


@dataclass
class MelState:
    """The last samples, which the next analysis windows overlap.

    Attributes:
        past: `(B, WINDOW - STEP)`; zeros before the first input.
    """

    past: Tensor

    def reset(self) -> None:
        """Return to the state of a new session."""
        self.past.zero_()


def mel_filters(bands: int = NUM_BANDS) -> Tensor:
    """Return triangular filters `(WINDOW // 2 + 1, bands)`, evenly spaced in mel.

    Source: mel(f) = 2595 log10(1 + f / 700), O'Shaughnessy 1987.
    """

    def mel(hz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hz / 700)

    limits = mel(torch.tensor([_LOWEST_HZ, _HIGHEST_HZ]))
    corners = torch.linspace(float(limits[0]), float(limits[1]), bands + 2)
    bins = mel(torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1))[:, None]
    rise = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(rise, fall).clamp(min=0)


class StreamingMel(nn.Module):
    """Log-mel frames of 16 kHz audio; frame `j` ends with sample `160 (j + 1)`: it is causal.

    Args:
        bands: number of bands, `M`.
        floor: power that is added before the logarithm.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, bands: int = NUM_BANDS, floor: float = FLOOR) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("filters", mel_filters(bands), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def init_state(self, batch_size: int) -> MelState:
        """Return the state of new sessions."""
        return MelState(self.window.new_zeros(batch_size, WINDOW - STEP))

    def forward(self, pcm: Tensor, state: MelState | None = None) -> Tensor:
        """Compute log-mel of a stream's next chunk, or of a whole recording when `state` is None.

        Args:
            pcm: `(B, n)` in [-1, 1], `n` a positive multiple of 160.
            state: updated in place.

        Returns:
            `(B, M, n / 160)`, about zero mean and unit size for speech.
        """
        assert pcm.ndim == 2 and pcm.shape[1] > 0 and pcm.shape[1] % STEP == 0, pcm.shape
        if state is None:
            state = self.init_state(pcm.shape[0])
        pcm = torch.cat([state.past, pcm], 1)
        state.past.copy_(pcm[:, -(WINDOW - STEP) :])
        spectrum = torch.fft.rfft(pcm.unfold(1, WINDOW, STEP) * self.window)
        power = spectrum.real**2 + spectrum.imag**2
        bands = F.linear(power, self.filters.T)
        return ((torch.log(bands + self.floor) + 3) / 4).transpose(1, 2)


@dataclass
class RunningMeanState:
    """The running mean of log-mel.

    Attributes:
        mean: `(B, M)` log-mel.
        count: voiced frames in the mean, `(B, 1)`, at most `MEAN_FRAMES`.
        initial: the mean before any voiced frame, `(B, M)`.
    """

    mean: Tensor
    count: Tensor
    initial: Tensor

    @classmethod
    def starting_at(cls, usual: Tensor, batch_size: int) -> "RunningMeanState":
        """Create the state of new streams, whose mean is `usual`, `(M,)`."""
        initial = usual.repeat(batch_size, 1)
        return cls(initial.clone(), initial.new_zeros(batch_size, 1), initial)

    def reset(self) -> None:
        """Return to the initial mean."""
        self.mean.copy_(self.initial)
        self.count.zero_()


def subtract_running_mean(mel: Tensor, state: RunningMeanState, voiced_level: float) -> Tensor:
    """Subtract the running mean from log-mel `(B, M, 4 n)`; return `(B, n, 4, M)`.

    Args:
        mel: log-mel of the next `n` frames.
        state: updated in place; frames without voice do not enter it.
        voiced_level: mean log-mel above which a frame is voiced.
    """
    split = mel.reshape(*mel.shape[:2], -1, MEL_PER_FRAME)
    frames = split.permute(0, 2, 3, 1)  # (B, n, 4, M)
    means, relative = frames.mean(2), []
    voiced = (means.mean(2, keepdim=True) > voiced_level).to(mel.dtype)
    for index in range(frames.shape[1]):
        share = voiced[:, index] / (state.count + 1 + PRIOR_FRAMES)
        state.mean.add_(share * (means[:, index] - state.mean))
        state.count.add_(voiced[:, index]).clamp_(max=MEAN_FRAMES)
        relative.append(frames[:, index] - state.mean[:, None])
    return torch.stack(relative, 1)
