"""The running mean of log-mel, which makes the tone of a voice or microphone matter little."""

from dataclasses import dataclass

import torch
from torch import Tensor

from letstalk_rt.models.audio_encoder.mel import STEP
from letstalk_rt.types import SAMPLES_PER_FRAME

MEL_PER_FRAME = SAMPLES_PER_FRAME // STEP

VOICED_LEVEL = -1.2
"""Mean log-mel above which a frame enters the running mean; digital silence is -1.55."""

PRIOR_FRAMES = 25
"""Weight of the initial mean in the running mean, in frames."""

MEAN_FRAMES = 750
"""Number of frames from which on the running mean forgets the oldest exponentially."""

FEATURE_SCALE = 4 / 3
"""Scales log-mel minus its mean to about unit variance."""


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


def subtract_running_mean(
    mel: Tensor, state: RunningMeanState, voiced_level: float = VOICED_LEVEL
) -> Tensor:
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
