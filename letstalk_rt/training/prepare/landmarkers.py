"""Finds the faces in the frames of a video, one after the other.

Two landmarkers: MediaPipe's in video mode, which yields the whole mesh, blendshapes and pose (extra
`eval`, for training targets only), and the package's own tracker, which yields the points that the
models use and needs nothing else.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.inference.devices import choose_device
from letstalk_rt.models.face.detector import head_yaw
from letstalk_rt.models.face.face_tracker import EncoderReader, FaceTracker, TrackState
from letstalk_rt.models.geometry.landmarks import LEFT_LID, MESH_POINTS, RIGHT_LID, SUBSET
from letstalk_rt.models.loading import EMBEDDED, load_model
from letstalk_rt.training.data.dataset import packaged_landmarker
from letstalk_rt.training.prepare.faces import FoundFace
from letstalk_rt.types import FPS

LANDMARKERS = ("mediapipe", "own")
NUM_BLENDSHAPES = 52

_MOST_FACES = 3
_LARGEST_PX = 1280
"""Longer side of the frames in which our own tracker works; larger ones are made smaller."""


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
        return lambda: MediaPipeFaces(model)
    if name != "own":
        raise ConfigError(f"unknown landmarker {name!r}; known: {', '.join(LANDMARKERS)}")
    face = load_model(EMBEDDED).to(choose_device(device)).face
    assert face is not None, "the embedded model has a face detector"
    tracker = FaceTracker(face.detector, EncoderReader(face.autoencoder))
    return lambda: OwnFaces(tracker)


class MediaPipeFaces:
    """Finds up to three faces per frame, with blendshapes and pose, and follows them.

    Args:
        model: `face_landmarker.task`; that of the extra `eval` when None.

    Raises:
        DependencyError: MediaPipe is not installed.
    """

    def __init__(self, model: Path | None = None) -> None:
        try:
            import mediapipe as mp
            from mediapipe.tasks.python import BaseOptions, vision
        except ImportError as error:
            raise DependencyError(
                f"mediapipe is missing; install it with: {pip_install('eval')}, or use "
                "the package's own landmarks: --landmarks own"
            ) from error
        self._mp, self._frames = mp, 0
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model or packaged_landmarker())),
            running_mode=vision.RunningMode.VIDEO,
            num_faces=_MOST_FACES,
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        self._detector = vision.FaceLandmarker.create_from_options(options)

    def __call__(self, rgb: np.ndarray) -> list[FoundFace]:
        """Return the faces in the next frame, largest first."""
        image = self._mp.Image(
            image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(rgb)
        )
        result = self._detector.detect_for_video(image, round(self._frames * 1000 / FPS))
        self._frames += 1
        height, width = rgb.shape[:2]
        faces = [
            FoundFace(
                np.array([(p.x * width, p.y * height) for p in points], np.float32)[:MESH_POINTS],
                np.array([shape.score for shape in shapes], np.float32),
                np.asarray(pose, np.float32),
            )
            for points, shapes, pose in zip(
                result.face_landmarks,
                result.face_blendshapes,
                result.facial_transformation_matrixes,
                strict=True,
            )
        ]
        return sorted(faces, key=lambda face: -face.height)


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


def _nearest_known() -> np.ndarray:
    """Return for each point of the mesh the index in `SUBSET` of the one nearest by number."""
    known = np.asarray(SUBSET)
    nearest: np.ndarray = np.abs(np.arange(MESH_POINTS)[:, None] - known[None]).argmin(1)
    return nearest


_NEAREST_KNOWN = _nearest_known()
