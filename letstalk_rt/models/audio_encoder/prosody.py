"""Prosody: how loud, bright and high a voice is, from moment to moment; it has no trained weights.

All is relative to the running mean of the voice, so that a loud voice or a close microphone does
not make a lively face.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from letstalk_rt.models.audio_encoder.lip_reader import (
    MEL_PER_FRAME,
    VOICED_LEVEL,
    RunningMeanState,
    subtract_running_mean,
)
from letstalk_rt.models.audio_encoder.lookahead import lookahead_in_frames
from letstalk_rt.models.audio_encoder.mel import NUM_BANDS, MelState, StreamingMel
from letstalk_rt.types import SAMPLES_PER_FRAME

LOUDNESS = slice(0, 8)
"""The values that are loudness, each in eight neighbouring bands."""

NUM_PROSODY_VALUES = 11
"""Eight of loudness; onsets; a proxy of pitch; voice activity."""

_PITCH_BANDS = 10  # from 60 to 450 Hz: the fundamental and its first harmonics
_PITCH_CENTRE, _PITCH_SPREAD = 4.0, 2.0  # usual mean and scale of their centroid, in bands
_ONSET_SCALE = 4.0
_ACTIVITY_SLOPE = 8.0


@dataclass
class ProsodyState:
    """The state of the prosody of one stream, updated in place.

    Attributes:
        mel: state of the log-mel.
        mean: the running mean.
        latest: the last log-mel frame minus its running mean, `(B, 64)`.
    """

    mel: MelState
    mean: RunningMeanState
    latest: Tensor

    def reset(self) -> None:
        """Return to the initial state."""
        self.mel.reset()
        self.mean.reset()
        self.latest.zero_()


class ProsodyReader(nn.Module):
    """Computes prosody from audio.

    Args:
        lookahead_ms: 0, 40, 80 or 160.

    Attributes:
        lookahead_frames: the values returned with audio frame `n` belong to frame
            `n - lookahead_frames`.
        usual: initial mean of log-mel, `(64,)`.

    Raises:
        ConfigError: the look-ahead is none of 0, 40, 80 and 160 ms.
    """

    usual: Tensor

    def __init__(self, lookahead_ms: int = 80) -> None:
        super().__init__()
        self.lookahead_frames = lookahead_in_frames(lookahead_ms)
        self.mel = StreamingMel()
        self.register_buffer("usual", torch.zeros(NUM_BANDS))

    def init_state(self, batch_size: int) -> ProsodyState:
        """Create the state of new sessions."""
        return ProsodyState(
            self.mel.init_state(batch_size),
            RunningMeanState.starting_at(self.usual, batch_size),
            self.usual.new_zeros(batch_size, NUM_BANDS),
        )

    def forward(self, pcm: Tensor, state: ProsodyState | None = None) -> Tensor:
        """Return the prosody of the next part of a stream, or of a whole one without `state`.

        Args:
            pcm: `(B, n)` in [-1, 1] at 16 kHz, `n` a positive multiple of 640.
            state: updated in place.

        Returns:
            `(B, n / 640, P)`; entry `i` of the stream belongs to frame `i - lookahead_frames`.
        """
        assert pcm.ndim == 2 and pcm.shape[1] % SAMPLES_PER_FRAME == 0, pcm.shape
        state = state or self.init_state(len(pcm))
        mel = self.mel(pcm, state.mel)
        relative = subtract_running_mean(mel, state.mean)  # (B, n, 4, 64)
        loudness = relative.mean(2).unflatten(2, (LOUDNESS.stop, -1)).mean(3)
        steps = relative.flatten(1, 2)
        rise = torch.cat([state.latest[:, None], steps], 1).diff(dim=1).clamp(min=0).mean(2)
        state.latest.copy_(steps[:, -1])
        onset = _ONSET_SCALE * rise.unflatten(1, (-1, MEL_PER_FRAME)).amax(2, keepdim=True)
        level = mel.mean(1).unflatten(1, (-1, MEL_PER_FRAME)).mean(2, keepdim=True)
        activity = torch.sigmoid(_ACTIVITY_SLOPE * (level - VOICED_LEVEL))
        return torch.cat([loudness, onset, _pitch(mel) * activity, activity], 2)


def _pitch(mel: Tensor) -> Tensor:
    """Return the centroid of the lowest bands of log-mel `(B, 64, 4 n)`, `(B, n, 1)`."""
    lowest = mel[:, :_PITCH_BANDS].unflatten(2, (-1, MEL_PER_FRAME)).mean(3).transpose(1, 2)
    power = torch.exp(4 * lowest - 3)
    bands = torch.arange(_PITCH_BANDS, dtype=mel.dtype, device=mel.device)
    centroid = (power * bands).sum(2, keepdim=True) / power.sum(2, keepdim=True)
    return (centroid - _PITCH_CENTRE) / _PITCH_SPREAD
