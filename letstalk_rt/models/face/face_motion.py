"""Face motion: how a face differs from the same face at rest, in numbers that fit any face.

The numbers hold no proportions, so what a camera sees of one person can move the portrait of
another without a trace of the first. Nothing here imports torch.
"""

from dataclasses import dataclass

import numpy as np

from letstalk_rt.models.face.head_pose import NUM_POSE
from letstalk_rt.types import LipDrive

NUM_LIPS = 8  # `lip_values.LIP_VALUES`
POSE = slice(0, NUM_POSE)
SHUT, BROWS = NUM_POSE, NUM_POSE + 1
GAZE = slice(NUM_POSE + 2, NUM_POSE + 4)
SMILE = slice(NUM_POSE + 4, NUM_POSE + 6)
LIPS = slice(NUM_POSE + 6, NUM_POSE + 6 + NUM_LIPS)
NUM_MOTION = NUM_POSE + 6 + NUM_LIPS
"""Values of a face motion: the head pose (`head_pose`); how far the eyes are shut, from 0 to 1;
brows raised minus lowered; offset of the irises, in face sizes; how far a smile moves the corners
of the mouth outwards and down, in face sizes; and the lip values (`lip_values`)."""


@dataclass(frozen=True, slots=True)
class DriveWindow:
    """How a camera moves the face in the frames of one window.

    Attributes:
        weights: share of the camera in each frame, `(N,)` from 0 to 1; the rest is the avatar's
            own life.
        motion: face motion in each frame, `(N, NUM_MOTION)`.
        lips: what moves the lips.
    """

    weights: np.ndarray
    motion: np.ndarray
    lips: LipDrive

    def part(self, first: int, count: int) -> "DriveWindow":
        """Return `count` frames of the window from number `first` on."""
        chosen = slice(first, first + count)
        return DriveWindow(self.weights[chosen], self.motion[chosen], self.lips)


class OneEuroFilter:
    """A low-pass filter whose cutoff rises with speed: calm when still, prompt when moving.

    Args:
        cutoff_hz: cutoff at rest, of each value.
        gain: how fast the cutoff rises with speed, per unit of each value.

    Source: Casiez et al. 2012, doi:10.1145/2207676.2208639.
    """

    def __init__(self, cutoff_hz: np.ndarray, gain: np.ndarray) -> None:
        self._cutoff_hz, self._gain = cutoff_hz, gain
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next values pass unchanged."""
        self._last: np.ndarray | None = None
        self._speed = np.zeros_like(self._cutoff_hz)
        self._at_s = 0.0

    def __call__(self, values: np.ndarray, at_s: float) -> np.ndarray:
        """Return the filtered values at a time, which must not go back."""
        if self._last is None:
            self._last, self._at_s = values, at_s
            return values
        step_s = max(1e-3, at_s - self._at_s)
        speed = (values - self._last) / step_s
        self._speed = self._speed + _share(1.0, step_s) * (speed - self._speed)
        cutoff_hz = self._cutoff_hz + self._gain * np.abs(self._speed)
        self._last = self._last + _share(cutoff_hz, step_s) * (values - self._last)
        self._at_s = at_s
        return np.asarray(self._last)


def _share(cutoff_hz: np.ndarray | float, step_s: float) -> np.ndarray | float:
    """Return the weight of a new value in a first-order low-pass filter."""
    turn = 2 * np.pi * cutoff_hz * step_s
    return turn / (turn + 1)
