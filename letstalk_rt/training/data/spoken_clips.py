"""Clips in the form that the audio encoder is trained on: log-mel, mouth targets and a weight."""

from dataclasses import dataclass

from torch import Tensor

from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES
from letstalk_rt.training.data.audio_features import MEL_PER_FRAME, clip_mel, mouth_targets
from letstalk_rt.training.data.dataset import Clip

KIND_WEIGHT = {"real": 1.0, "generated": 0.5}
"""Training weight of a clip's lips, by the kind of clip."""


@dataclass(frozen=True)
class AudioClip:
    """A clip in the form that the audio encoder is trained on.

    Attributes:
        name: The clip's name.
        mel: Log-mel `(64, 4 * (T + L))`, with L frames of look-ahead at its end.
        targets: Mouth targets `(T, 11)`.
        weight: How reliable its lips are, from 0.
        is_grid: Whether it belongs to the GRID corpus.
        is_real: Whether it was filmed by a camera.
    """

    name: str
    mel: Tensor
    targets: Tensor
    weight: float
    is_grid: bool
    is_real: bool

    @property
    def lookahead_frames(self) -> int:
        """Frames of audio beyond the targets, L."""
        return self.mel.shape[1] // MEL_PER_FRAME - len(self.targets)


def audio_clip(clip: Clip, lookahead_frames: int = LOOKAHEAD_FRAMES) -> AudioClip:
    """Convert a clip; its weight is that of its kind, and 0 without audio."""
    weight = KIND_WEIGHT[clip.kind] * clip.has_audio
    return AudioClip(
        clip.name,
        clip_mel(clip.pcm, lookahead_frames),
        mouth_targets(clip),
        weight,
        clip.is_grid,
        clip.kind == "real",
    )
