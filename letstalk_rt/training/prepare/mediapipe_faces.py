"""MediaPipe's face landmarker in video mode, for training targets only (extra `eval`)."""

from pathlib import Path

import numpy as np

from letstalk_rt.errors import DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.models.geometry.landmarks import MESH_POINTS
from letstalk_rt.training.data.dataset import packaged_landmarker
from letstalk_rt.training.prepare.faces import FoundFace
from letstalk_rt.types import FPS

_MOST_FACES = 3


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
