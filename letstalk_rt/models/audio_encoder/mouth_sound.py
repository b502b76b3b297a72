"""What the mouth painter hears of a frame: a few bands of the audio around it.

The motion denoiser hears speech in 160 values a frame and decides the shape of the lips. The inside
of a mouth needs less: whether there is a hiss, and whether a vowel is bright or dark.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BANDS, SLOTS = 10, 2
"""Averaged bands, and parts of a frame."""

CONTEXT_FRAMES = 3
"""The frame before, the frame itself and the next one."""

MOUTH_SOUND = CONTEXT_FRAMES * SLOTS * BANDS
"""Values per frame, `S`."""


def mouth_sound(features: Tensor, past: Tensor) -> Tensor:
    """Return the sound around each frame.

    Args:
        features: normalised log-mel of `n` frames, `(B, n, 4 M)`, see `SpeechEncoder.normalize`.
        past: the features of the `L + 1` frames before, `(B, L + 1, 4 M)`, where L is the
            look-ahead.

    Returns:
        `(B, n, S)`; entry `i` is the sound around frame `i - L`. Without look-ahead the next frame
        is not known, and the frame itself takes its place.
    """
    count = features.shape[1]
    whole = torch.cat([past, features], 1)
    if past.shape[1] < CONTEXT_FRAMES - 1:
        whole = torch.cat([whole, whole[:, -1:]], 1)
    slots = 2 * SLOTS
    frames = whole.reshape(-1, 1, slots, whole.shape[-1] // slots)
    pooled = F.adaptive_avg_pool2d(frames, (SLOTS, BANDS)).view(*whole.shape[:2], -1)
    return torch.cat([pooled[:, lag : lag + count] for lag in range(CONTEXT_FRAMES)], -1)
