"""What is passed to the model with each window: how the sampled motion is changed."""

from dataclasses import dataclass

import numpy as np

CHANNELS = (
    "yaw",
    "pitch",
    "roll",
    "x",
    "y",
    "scale",
    "brow_inner",
    "brow_outer",
    "brow_down",
    "gaze_x",
    "gaze_y",
    "shut",
    "squint",
    "smile",
    "frown",
)
"""What can be directed: all of the motion code but the lips, which follow speech; see
`models.motion.code`."""

NUM_CHANNELS = len(CHANNELS)

EYES = ("left", "right")
"""As the viewer sees them."""


def channel(name: str) -> int:
    """Return the place of a named channel."""
    return CHANNELS.index(name)


@dataclass(frozen=True, slots=True)
class DirectedWindow:
    """How the motion of one window is changed; small, and sent to the model's process as it is.

    Attributes:
        added: added to each channel in each frame, `(N, 15)` float32.
        kept: share of the sampled motion of each channel that is shown, `(N, 15)` float32.
        closures: how far each eye is closed beyond what the code says, `(N, 2)` float32 in [0, 1];
            the eye on the left of the image first.
        style: style of the denoiser, `(6,)` float32: see `Style`.
        blink_rate: how much more often than otherwise the eyes blink.
    """

    added: np.ndarray
    kept: np.ndarray
    closures: np.ndarray
    style: np.ndarray
    blink_rate: float = 1.0

    def part(self, first: int, count: int) -> "DirectedWindow":
        """Return `count` frames of the window from number `first` on."""
        chosen = slice(first, first + count)
        return DirectedWindow(
            self.added[chosen],
            self.kept[chosen],
            self.closures[chosen],
            self.style,
            self.blink_rate,
        )
