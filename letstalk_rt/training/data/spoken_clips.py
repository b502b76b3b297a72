"""Clips as the audio encoder sees them: log-mel, mouth targets and a weight."""

from dataclasses import dataclass

from torch import Tensor

from letstalk_rt.models.audio_encoder.causal import LOOKAHEAD_FRAMES
from letstalk_rt.training.data.audio_features import MEL_PER_FRAME, clip_mel, mouth_targets
from letstalk_rt.training.data.dataset import Clip

KIND_WEIGHT = {"real": 1.0, "generated": 0.5}
"""How far lips are trusted, by what made the clip."""


@dataclass(frozen=True)
class AudioClip:
    """A clip as the audio encoder sees it.

    Attributes:
        name: of the clip.
        mel: `(64, 4 * (T + L))`, L frames of look-ahead at its end.
        targets: `(T, 11)`.
        weight: how far its lips are trusted.
        is_grid: whether it is of the GRID corpus.
        is_real: whether a camera saw it.
    """

    name: str
    mel: Tensor
    targets: Tensor
    weight: float
    is_grid: bool
    is_real: bool

    @property
    def lookahead_frames(self) -> int:
        """How much further than the targets the sound goes, L."""
        return self.mel.shape[1] // MEL_PER_FRAME - len(self.targets)


def audio_clip(clip: Clip, lookahead_frames: int = LOOKAHEAD_FRAMES) -> AudioClip:
    """Prepare a clip; its weight is that of its kind, and 0 without sound."""
    weight = KIND_WEIGHT[clip.kind] * clip.has_sound
    return AudioClip(
        clip.name,
        clip_mel(clip.pcm, lookahead_frames),
        mouth_targets(clip),
        weight,
        clip.is_grid,
        clip.kind == "real",
    )
