"""Streaming log-mel spectrogram, the input of the audio encoder."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.types import SAMPLE_RATE

NUM_BANDS = 64
FLOOR = 1e-4
"""Power that is added before the logarithm."""

STEP = 160
"""Samples between two mel frames: 10 ms."""

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
