"""Measures lips in decoded frames, for autoencoders whose latents hold no landmarks.

The embedded model's encoder finds the landmarks, and its motion denoiser hears the lip gap.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.face.face_tracker import EncoderReader
from letstalk_rt.models.face.heatmaps import LEAST_CERTAINTY
from letstalk_rt.models.geometry.landmarks import mouth_opening
from letstalk_rt.models.loading import EMBEDDED, load_model
from letstalk_rt.models.parts import MOTION
from letstalk_rt.training.data.dataset import Clip
from letstalk_rt.types import SAMPLES_PER_FRAME

_FRAMES = 8
"""Frames that are decoded at once."""


class DecodedLips:
    """Reads the mouth opening in frames that latents decode to.

    Args:
        device: Where frames are read.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        face = load_model(EMBEDDED).to(device).face
        assert face is not None, "the embedded model has landmarks"
        self._reader = EncoderReader(face.autoencoder)

    @torch.no_grad()
    def __call__(self, autoencoder: Autoencoder, latents: Tensor) -> np.ndarray:
        """Return the mouth opening in each frame of latents `(T, C, h, w)`, `(T,)`.

        It is NaN in all frames if no face is found in half of them.
        """
        openings, sure = [], []
        for part in latents.split(_FRAMES):
            frames = autoencoder.decode(part[None], None)[0].float()
            opening, certainty = self.read(frames)
            openings.append(opening)
            sure.append(certainty)
        found = np.concatenate(sure) >= LEAST_CERTAINTY
        opening = np.concatenate(openings)
        return opening if found.mean() >= 0.5 else np.full_like(opening, np.nan)

    @torch.no_grad()
    def read(self, frames: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return mouth opening and certainty of frames `(T, 3, S, S)`, framed as clips are."""
        size = self._reader.crop_px
        if frames.shape[-1] != size:
            frames = F.interpolate(frames, (size, size), mode="bicubic", antialias=True)
        reading = self._reader(frames.clamp(-1, 1))
        return mouth_opening(reading.points.cpu().numpy()), reading.certainty.cpu().numpy()


class HeardGap:
    """Predicts the lip gap from a clip's audio, by the embedded model's motion denoiser."""

    def __init__(self) -> None:
        self._motion = load_model(EMBEDDED).part(MOTION)

    @torch.no_grad()
    def __call__(self, clip: Clip) -> np.ndarray:
        """Return the lip gap that can be heard in each frame, `(T,)`."""
        ahead = self._motion.speech.lookahead_frames
        tail = np.zeros(ahead * SAMPLES_PER_FRAME, np.float32)
        sound = torch.from_numpy(np.concatenate([clip.pcm, tail]))
        heard: np.ndarray = self._motion.lip_values(sound[None])[0, ahead:, 0].numpy()
        return heard
