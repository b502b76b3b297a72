"""The driver: a person before a camera, and how their face moves from its neutral look."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from letstalk_rt.models.face import face_motion as motion_of
from letstalk_rt.models.face.face_motion import NUM_MOTION, OneEuroFilter
from letstalk_rt.models.face.face_tracker import TrackedFace
from letstalk_rt.models.face.head_pose import (
    HeadShape,
    angles,
    average_head,
    opened_between,
    turn_between,
)
from letstalk_rt.models.face.lip_values import GAPS, LIP_VALUES, lip_values
from letstalk_rt.models.geometry.landmarks import (
    IRISES,
    landmark_indices,
)

NEUTRAL_FRAMES = 10
"""Frames whose median is the neutral look of a driver who has just come."""

_RETAKE_FRAMES = 4  # of a look that the driver has declared neutral
_RESTING_GAP = 0.08  # smaller lip gaps of the neutral look count as closed lips
_SHUT_FROM, _SHUT_RANGE = 0.22, 0.26  # of the opening, below that of the open eyes
_OPENS, _NARROWS = 0.08, 0.02  # how fast the level of open eyes follows wider and narrower ones
_SMILE_FROM, _SMILE_RANGE, _SMILE_SHARE = 0.08, 0.3, 0.15  # likewise; and how fast it follows
_EASE = 0.75  # share of a jump that is left in the next frame
_BROW_GAIN, _SMILE_GAIN = 5.0, 3.0  # of landmarks in face sizes, to the size of blendshapes

_LANDMARK_SHARE = np.array([0.65, 0.5])  # of yaw and pitch: fitted to people held out
_READER_SHARE = np.array([0.35, 0.55])

_IRISES = (landmark_indices(IRISES[:5]), landmark_indices(IRISES[5:]))
_CORNERS = (landmark_indices((33, 133)), landmark_indices((263, 362)))
_BROWS, _MOUTH = landmark_indices((70, 300)), landmark_indices((61, 291))
(_NOSE,) = landmark_indices((10,))
_WIDTH, _CORNER_HEIGHT = LIP_VALUES.index("width"), LIP_VALUES.index("corners")


@dataclass(frozen=True)
class Neutral:
    """The neutral look of a driver.

    Attributes:
        shape: the head.
        points: landmarks, `(L, 2)`.
        turns: what the pose reader says of it, `(2,)`; empty without one.
        to_front: how the head is turned from the front, `(3, 3)`.
    """

    shape: HeadShape
    points: np.ndarray
    turns: np.ndarray
    to_front: np.ndarray


class Driver:
    """Turns tracked faces of one person into face motion.

    The first frames of a driver who has just come are their neutral look. Head pose is relative to
    it, or absolute: then a driver who faces the camera turns the portrait to the viewer.
    """

    def __init__(self) -> None:
        cutoff, gain = np.full(NUM_MOTION, 3.0), np.full(NUM_MOTION, 10.0)
        cutoff[motion_of.LIPS], gain[motion_of.LIPS] = 5.0, 20.0
        cutoff[motion_of.SHUT] = 50.0  # blinks are as short as a frame
        self._filter = OneEuroFilter(cutoff, gain)
        self.reset()

    def reset(self) -> None:
        """Forget the person."""
        self._neutral: Neutral | None = None
        self._looks: deque[TrackedFace] = deque(maxlen=NEUTRAL_FRAMES)
        self._wanted = NEUTRAL_FRAMES
        self._smile = np.zeros(2)
        self._open = 0.0  # opening of the open eyes, relative to the neutral look
        self._offset = np.zeros(NUM_MOTION)
        self._last: np.ndarray | None = None
        self._filter.reset()

    def take_neutral(self) -> None:
        """Take the look of the next frames as the neutral one."""
        self._looks.clear()
        self._wanted = _RETAKE_FRAMES

    def lose(self) -> None:
        """Note that the face cannot be seen; the neutral look is kept."""
        self._filter.reset()
        self._last = None

    def motion(self, face: TrackedFace, at_s: float, *, absolute: bool) -> np.ndarray | None:
        """Return the face motion, `(NUM_MOTION,)`; None until the neutral look is known.

        Args:
            face: the face in this frame.
            at_s: when the frame was captured, increasing.
            absolute: whether the head pose is absolute.
        """
        self._learn(face)
        if self._neutral is None:
            return None
        raw = self._filter(self._measure(self._neutral, face, absolute), at_s)
        self._offset = _EASE * self._offset
        self._last = raw + self._offset
        return np.asarray(self._last, np.float32)

    def _learn(self, face: TrackedFace) -> None:
        """Take the neutral look once there are enough frames."""
        if not self._wanted:
            return
        self._looks.append(face)
        if len(self._looks) < self._wanted:
            return
        looks = [self._looks[i] for i in range(len(self._looks))]
        points = np.median([look.landmarks for look in looks], 0)
        turns = np.median([look.turns for look in looks], 0)
        shape = HeadShape.of(points)
        to_front = average_head().view(points)[0]
        self._neutral = Neutral(shape, points, turns, to_front)
        self._wanted = 0
        if self._last is not None:  # the motion goes on from where it is
            self._offset = self._last.copy()
        self._filter.reset()

    def _measure(self, neutral: Neutral, face: TrackedFace, absolute: bool) -> np.ndarray:
        out = np.zeros(NUM_MOTION)
        points = face.landmarks.astype(np.float64)
        pose = neutral.shape.pose(points)
        still = neutral.shape.unposed(points, pose)
        turned = _turned(face, neutral)
        pose[:3] = turned + angles(neutral.to_front) if absolute else turned
        out[motion_of.POSE] = pose
        moved = (still - neutral.points) / neutral.shape.size
        out[motion_of.SHUT] = self._shut(opened_between(neutral.points, face.landmarks))
        out[motion_of.BROWS] = _brows(moved)
        out[motion_of.GAZE] = _gaze(moved)
        lips = _lips(still, neutral.points)
        out[motion_of.LIPS] = lips
        smiling = np.clip((_smile(moved) - _SMILE_FROM) / _SMILE_RANGE, 0, 1)
        target = smiling * lips[[_WIDTH, _CORNER_HEIGHT]]
        self._smile = self._smile + _SMILE_SHARE * (target - self._smile)
        out[motion_of.SMILE] = self._smile
        return out

    def _shut(self, opening: float) -> float:
        """Return how far the eyes are shut, given their opening relative to the neutral look.

        What counts as open follows the person, who may look down or squint. Nearly closed lids
        count as closed: landmarks stay behind lids that are as fast as a blink.
        """
        below = self._open - opening
        self._open -= (_OPENS if below < 0 else _NARROWS) * below
        share = float(np.clip((below - _SHUT_FROM) / _SHUT_RANGE, 0, 1))
        return share * share * (3 - 2 * share)


def _turned(face: TrackedFace, neutral: Neutral) -> np.ndarray:
    """Return by which yaw, pitch and roll the head has turned from the neutral look, `(3,)`.

    Landmarks and pose reader are both noisy; where there are both, each has its share.
    """
    turned = turn_between(neutral.points, face.landmarks)
    if face.turns.size:
        read = face.turns - neutral.turns
        turned[:2] = _LANDMARK_SHARE * turned[:2] + _READER_SHARE * read
    return turned


def _brows(moved: np.ndarray) -> float:
    """Return how far the brows are raised above the eyes, in the size of blendshapes."""
    corners = np.array(_CORNERS).ravel()
    return float(_BROW_GAIN * (moved[corners, 1].mean() - moved[_BROWS, 1].mean()))


def _smile(moved: np.ndarray) -> float:
    """Return how far the corners of the mouth are raised, in the size of blendshapes."""
    return float(_SMILE_GAIN * (moved[_NOSE, 1] - moved[_MOUTH, 1].mean()))


def _gaze(moved: np.ndarray) -> np.ndarray:
    """Return how far the irises have moved in their eyes, `(2,)`."""
    pairs = zip(_IRISES, _CORNERS, strict=True)
    gaze: np.ndarray = np.mean([moved[i].mean(0) - moved[c].mean(0) for i, c in pairs], 0)
    return gaze


def _lips(still: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Return the lip values `(Q,)` of landmarks without head motion; resting lips count as shut."""
    points, at_rest = torch.from_numpy(still).float(), torch.from_numpy(rest).float()
    values = lip_values(torch.stack([points, at_rest]), at_rest).numpy()
    gaps, resting = values[0, GAPS], np.minimum(values[1, GAPS], _RESTING_GAP)
    values[0, GAPS] = np.maximum(gaps - resting, 0)
    out: np.ndarray = values[0]
    return out
