"""Shot cuts of a video, by the package scenedetect (extra `train`)."""

from typing import Any

import cv2
import numpy as np

from letstalk_rt.errors import DependencyError
from letstalk_rt.extras import pip_install
from letstalk_rt.types import FPS

_WIDTH_PX = 256


class ShotDetector:
    """Finds the frames at which a new shot begins; frames are given in order.

    A frame begins a shot where it differs much more from the one before than its neighbours do
    (scenedetect's adaptive detector), so that a moving camera is no cut.

    Args:
        shortest: Frames that a shot has at least.

    Raises:
        DependencyError: The extra `train` is not installed.
    """

    def __init__(self, shortest: int = 10) -> None:
        try:
            from scenedetect import FrameTimecode
            from scenedetect.detectors import AdaptiveDetector
        except ImportError as error:
            raise DependencyError(
                f"scenedetect is missing; install it with: {pip_install('train')}"
            ) from error
        self._time: Any = FrameTimecode
        self._detector: Any = AdaptiveDetector(min_scene_len=shortest)
        self._count = 0
        self._cuts: list[int] = []

    def add(self, rgb: np.ndarray) -> None:
        """Look at the next frame, `(H, W, 3)` uint8."""
        height = max(1, round(rgb.shape[0] * _WIDTH_PX / rgb.shape[1]))
        small = cv2.resize(rgb, (_WIDTH_PX, height), interpolation=cv2.INTER_AREA)
        now = self._time(self._count, float(FPS))
        found = self._detector.process_frame(now, np.ascontiguousarray(small[..., ::-1]))
        self._cuts += [int(cut.frame_num) for cut in found]
        self._count += 1

    def shots(self) -> list[tuple[int, int]]:
        """Return first frame and end of each shot among the frames so far."""
        edges = [0, *sorted(set(self._cuts) - {0}), self._count]
        return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]
