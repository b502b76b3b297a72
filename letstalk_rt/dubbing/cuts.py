"""Notices where a film cuts from one shot to the next."""

import cv2
import numpy as np

_CUT_LEVEL, _CUT_RATIO = 16.0, 4.0
_SAMPLES = 128  # pixels along the shorter side of a frame that are looked at


class CutDetector:
    """Notices cuts: a frame that differs far more from the one before than frames lately do."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None
        self._usual = 0.0

    def is_cut(self, rgb: np.ndarray) -> bool:
        """Return whether the next frame, `(H, W, 3)` uint8, begins a new shot."""
        step = max(1, min(rgb.shape[:2]) // _SAMPLES)
        rgb = np.ascontiguousarray(rgb[::step, ::step])
        small = cv2.resize(rgb, (32, 18), interpolation=cv2.INTER_AREA).astype(np.float32)
        if self._last is None:
            self._last = small
            return False
        change = float(np.abs(small - self._last).mean())
        self._last = small
        found = change > max(_CUT_LEVEL, _CUT_RATIO * self._usual)
        if not found:
            self._usual += 0.2 * (change - self._usual)
        return found
