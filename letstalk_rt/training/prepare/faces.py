"""Finds the face in each frame of a video, and follows one of them through a shot.

Two landmarkers: MediaPipe's, which yields the whole mesh, blendshapes and pose (extra `eval`), and
the package's own tracker, which yields the points that the models use and needs nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from letstalk_rt.errors import ConfigError
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.face.detector import head_yaw
from letstalk_rt.models.face.face_tracker import EncoderReader, FaceTracker, TrackState
from letstalk_rt.models.geometry.landmarks import (
    LEFT_LID,
    MESH_POINTS,
    RIGHT_LID,
    SUBSET,
)
from letstalk_rt.models.loading import EMBEDDED, load_model

LANDMARKERS = ("mediapipe", "own")
NUM_BLENDSHAPES = 52

_LARGEST_PX = 1280
"""Longer side of the frames in which our own tracker works; larger ones are made smaller."""

_LOST = 0.35
"""Share of a face's height by which it may move from one frame to the next."""


@dataclass(frozen=True)
class FoundFace:
    """A face in one frame.

    Attributes:
        landmarks: `(478, 2)` float32, px of the frame; our own finder repeats the points it knows
            in the places of those it does not.
        blendshapes: `(52,)` float32 in MediaPipe's order; zeros from our own finder.
        pose: `(4, 4)` float32, the face's transformation.
        beside: Height of the largest other face over this one's; 0 without another. Our own
            tracker only tells that there is one: 1.
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    pose: np.ndarray
    beside: float = 0.0

    @property
    def height(self) -> float:
        """Height of the landmarks' bounding box, px."""
        return float(np.ptp(self.landmarks[:, 1]))

    @property
    def middle(self) -> np.ndarray:
        """Middle of the landmarks' bounding box, `(2,)` px."""
        middle: np.ndarray = (self.landmarks.min(0) + self.landmarks.max(0)) / 2
        return middle


class FrameLandmarker(Protocol):
    """Finds faces in the frames of one segment, in order."""

    def __call__(self, rgb: np.ndarray) -> list[FoundFace]:
        """Return the faces in a frame `(H, W, 3)` uint8, largest first."""
        ...


def make_landmarker(
    name: str, device: str = "cpu", model: Path | None = None
) -> Callable[[], FrameLandmarker]:
    """Return a function that makes a landmarker for each segment.

    Args:
        name: `mediapipe` or `own`.
        device: Where our own finder runs.
        model: MediaPipe's `face_landmarker.task`; that of the extra `eval` when None.

    Raises:
        ConfigError: The name is unknown.
        DependencyError: MediaPipe is not installed.
    """
    if name == "mediapipe":
        from letstalk_rt.training.prepare.mediapipe_faces import MediaPipeFaces

        return lambda: MediaPipeFaces(model)
    if name != "own":
        raise ConfigError(f"unknown landmarker {name!r}; known: {', '.join(LANDMARKERS)}")
    face = load_model(EMBEDDED).to(choose_device(device)).face
    assert face is not None, "the embedded model has a face detector"
    tracker = FaceTracker(face.detector, EncoderReader(face.autoencoder))
    return lambda: OwnFaces(tracker)


class OwnFaces:
    """The package's face tracker: it follows the largest face, and looks for others now and then.

    Args:
        tracker: The tracker.
    """

    def __init__(self, tracker: FaceTracker) -> None:
        self._tracker, self._state = tracker, TrackState()

    def __call__(self, rgb: np.ndarray) -> list[FoundFace]:
        """Return the face that is followed, or nothing where it cannot be seen."""
        scale = min(1.0, _LARGEST_PX / max(rgb.shape[:2]))
        if scale < 1:
            rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        face = self._tracker.track(rgb, self._state)
        return [] if face is None else [_own_face(face.landmarks / scale, self._state.others)]


def _own_face(points: np.ndarray, others: bool) -> FoundFace:
    mesh = points[_NEAREST_KNOWN].astype(np.float32)
    beside = 1.0 if others else 0.0
    return FoundFace(mesh, np.zeros(NUM_BLENDSHAPES, np.float32), _flat_pose(points), beside)


def _flat_pose(points: np.ndarray) -> np.ndarray:
    """Return a pose from the position, size, tilt and turn of landmarks; no nod."""
    across = points[LEFT_LID].mean(0) - points[RIGHT_LID].mean(0)
    roll = float(np.arctan2(across[1], across[0]))
    yaw = 0.5 * np.pi * head_yaw(points) / 2
    turned = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilted = np.array(
        [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]]
    )
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = tilted @ turned
    pose[:2, 3] = points.mean(0)
    return pose


def follow_one(shot: list[list[FoundFace]]) -> tuple[list[FoundFace | None], float]:
    """Follow one face through the frames of a shot.

    The face is the one that is largest over the shot; in each frame the nearest one to where it was
    is taken, and none where all have moved too far.

    Returns:
        The face in each frame, or None; and the height of the largest other face over its own, in
        the median of the frames with a face.
    """
    best: list[FoundFace | None] = [None] * len(shot)
    best_size = 0.0
    for seed in _starts(shot):
        track = _track(shot, *seed)
        size = sum(face.height for face in track if face is not None)
        if size > best_size:
            best, best_size = track, size
    others = [
        max([face.beside, *(o.height / face.height for o in faces if o is not face)])
        for faces, face in zip(shot, best, strict=True)
        if face is not None
    ]
    return best, float(np.median(others)) if others else 0.0


def _starts(shot: list[list[FoundFace]]) -> list[tuple[int, FoundFace]]:
    """Return the faces that tracks may begin with: those of the frame with the most of them."""
    if not any(shot):
        return []
    frame = max(range(len(shot)), key=lambda i: len(shot[i]))
    return [(frame, face) for face in shot[frame]]


def _track(shot: list[list[FoundFace]], frame: int, face: FoundFace) -> list[FoundFace | None]:
    track: list[FoundFace | None] = [None] * len(shot)
    track[frame] = face
    for order in (range(frame + 1, len(shot)), range(frame - 1, -1, -1)):
        last, gap = face, 1
        for index in order:
            near = min(
                shot[index],
                key=lambda f: float(np.linalg.norm(f.middle - last.middle)),
                default=None,
            )
            if near is None or not _same(near, last, gap):
                gap += 1
                continue
            track[index] = last = near
            gap = 1
    return track


def _same(face: FoundFace, last: FoundFace, gap: int) -> bool:
    """Return whether a face can be the one of `gap` frames ago."""
    reach = _LOST * min(gap, 4) * last.height
    distance = float(np.linalg.norm(face.middle - last.middle))
    return distance < reach and 0.6 < face.height / max(last.height, 1e-6) < 1.6


def _nearest_known() -> np.ndarray:
    """Return for each point of the mesh the index in `SUBSET` of the one nearest by number."""
    known = np.asarray(SUBSET)
    nearest: np.ndarray = np.abs(np.arange(MESH_POINTS)[:, None] - known[None]).argmin(1)
    return nearest


_NEAREST_KNOWN = _nearest_known()
