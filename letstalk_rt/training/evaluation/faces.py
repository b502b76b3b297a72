"""Measures of faces in frames, by an independent landmarker and not by the model's own networks.

Lengths are in units of the distance between the outer eye corners, or ratios, so that figures of
large and small faces can be compared.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from letstalk_rt.models.geometry.landmarks import SUBSET, eye_openings, mouth_opening
from letstalk_rt.types import FPS

Landmarks = Callable[[np.ndarray], np.ndarray | None]
"""A function from an image to landmarks `(478, 2)`, px, or None without a face."""

_RIGHT_CORNER, _LEFT_CORNER, _NOSE = 33, 263, 1
_OUTER_UPPER, _OUTER_LOWER, _MOUTH_RIGHT, _MOUTH_LEFT = 0, 17, 61, 291

SHUT = 0.6
"""Share of the median opening below which an eye counts as closed."""

_LONGEST_BLINK = 15


@dataclass(frozen=True)
class FaceTrack:
    """The face in each frame of a video.

    Attributes:
        points: `(T, 478, 2)` float32, px; without a face, the points of the nearest frame.
        found: Whether a face was found, `(T,)` bool.
    """

    points: np.ndarray
    found: np.ndarray

    @property
    def missing(self) -> float:
        """The share of frames without a face."""
        return float(1 - self.found.mean())

    @property
    def opening(self) -> np.ndarray:
        """The lip gap over mouth width, `(T,)`."""
        return mouth_opening(self.points[:, SUBSET])

    @property
    def lip_height(self) -> np.ndarray:
        """The height of the lips, gap included, over mouth width, `(T,)`."""
        height: np.ndarray = _distance(self.points, _OUTER_UPPER, _OUTER_LOWER) / self.mouth_width
        return height

    @property
    def mouth_width(self) -> np.ndarray:
        """The distance between the mouth corners, `(T,)` px."""
        width: np.ndarray = np.maximum(_distance(self.points, _MOUTH_RIGHT, _MOUTH_LEFT), 1e-6)
        return width

    @property
    def mouth_spread(self) -> np.ndarray:
        """The mouth width over the distance between the outer eye corners, `(T,)`."""
        eyes = np.maximum(_distance(self.points, _RIGHT_CORNER, _LEFT_CORNER), 1e-6)
        spread: np.ndarray = self.mouth_width / eyes
        return spread

    @property
    def eye_opening(self) -> np.ndarray:
        """The lid gap over eye width, mean of both eyes, `(T,)`."""
        both: np.ndarray = eye_openings(self.points[:, SUBSET]).mean(-1)
        return both


def read_faces(landmarker: Landmarks, frames: Iterable[np.ndarray]) -> FaceTrack:
    """Detect the face in each frame; points are zeros if no frame has a face."""
    detected = [landmarker(frame) for frame in frames]
    found = np.array([points is not None for points in detected], bool)
    if not found.any():
        return FaceTrack(np.zeros((len(detected), 478, 2), np.float32), found)
    known = np.flatnonzero(found)
    nearest = known[np.abs(np.arange(len(detected))[:, None] - known).argmin(1)]
    return FaceTrack(np.stack([np.asarray(detected[i], np.float32) for i in nearest]), found)


def blink_rate(track: FaceTrack) -> float:
    """Return blinks per minute: short dips of the eye opening below 60 % of its median."""
    return len(blinks(track)) / (len(track.points) / FPS / 60)


def blinks(track: FaceTrack) -> list[tuple[int, int]]:
    """Return the first frame of each blink, and the first frame after it."""
    opening = track.eye_opening
    shut = np.concatenate([[False], opening < SHUT * np.median(opening), [False]])
    edges = np.flatnonzero(np.diff(shut.astype(int)))
    spans = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return [(a, b) for a, b in spans if b - a <= _LONGEST_BLINK]


def head_pose(track: FaceTrack) -> np.ndarray:
    """Return the head pose, `(T, 4)`: position x and y, yaw, and roll in radians.

    The position is that of the midpoint of the eyes; yaw is the nose's sideways offset from it.
    """
    right, left = track.points[:, _RIGHT_CORNER], track.points[:, _LEFT_CORNER]
    across, middle = left - right, (left + right) / 2
    width = np.maximum(np.linalg.norm(across, axis=1), 1e-6)
    usual = np.median(width)
    turn = ((track.points[:, _NOSE] - middle) * across).sum(1) / width**2
    tilt = np.arctan2(across[:, 1], across[:, 0])
    return np.stack([middle[:, 0] / usual, middle[:, 1] / usual, turn, tilt], 1)


def head_range(track: FaceTrack) -> float:
    """Return the mean range of the four pose values, 5th to 95th percentile."""
    return pose_range(head_pose(track))


def pose_range(pose: np.ndarray) -> float:
    """Return the same for a head pose `(T, 4)`."""
    low, high = np.percentile(pose, (5, 95), axis=0)
    return float((high - low).mean())


def aligned_mouth(points: np.ndarray, chosen: tuple[int, ...]) -> np.ndarray:
    """Return chosen points `(T, P, 2)` with the outer eye corners moved to fixed positions.

    This removes head motion, which also correlates with speech.
    """
    right, left = points[:, _RIGHT_CORNER], points[:, _LEFT_CORNER]
    across = left - right
    scale = np.maximum((across**2).sum(1), 1e-6)[:, None, None]
    moved = points[:, chosen] - ((left + right) / 2)[:, None]
    x = (moved * across[:, None]).sum(-1, keepdims=True)
    y = (moved * np.stack([-across[:, 1], across[:, 0]], 1)[:, None]).sum(-1, keepdims=True)
    aligned: np.ndarray = (np.concatenate([x, y], -1) / scale).astype(np.float32)
    return aligned


def _distance(points: np.ndarray, a: int, b: int) -> np.ndarray:
    distance: np.ndarray = np.linalg.norm(points[:, a] - points[:, b], axis=-1)
    return distance
