"""Clips in the form that audio encoders are trained on: features, mouth targets and a weight."""

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
        features: Log-mel `(64, 4 * (T + L))`, with L frames of look-ahead at its end; or what
            another `SoundInput` computes.
        targets: Mouth targets `(T, 11)`.
        weight: How reliable its lips are, from 0.
        is_grid: Whether it belongs to the GRID corpus.
        is_real: Whether it was filmed by a camera.
        shift: By how many frames the features are to be moved to fit the lips, later if positive.
    """

    name: str
    features: Tensor
    targets: Tensor
    weight: float
    is_grid: bool
    is_real: bool
    shift: int = 0

    @property
    def lookahead_frames(self) -> int:
        """Frames of log-mel beyond the targets, L."""
        return self.features.shape[1] // MEL_PER_FRAME - len(self.targets)


def audio_clip(clip: Clip, lookahead_frames: int = LOOKAHEAD_FRAMES) -> AudioClip:
    """Convert a clip to log-mel; its weight is that of its kind, and 0 without audio."""
    return AudioClip(
        clip.name,
        clip_mel(clip.pcm, lookahead_frames),
        mouth_targets(clip),
        clip_weight(clip),
        clip.is_grid,
        clip.kind == "real",
    )


def clip_weight(clip: Clip) -> float:
    """Return the weight of a clip's kind; 0 without audio."""
    return KIND_WEIGHT[clip.kind] * clip.has_audio
