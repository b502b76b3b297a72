"""In which image of an upload faces are looked for: not in more pixels than the model looks at.

The model's process has no time for sessions while it reads an image, and 40 million pixels would
hold all of them up.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from letstalk_rt.types import Face

SEARCH_PX = 2048
"""Longer side of the image. The detector finds faces from about an eighth of that on, and the crops
of 256 px in which landmarks are then found have no more detail."""


def search_image(rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """Return an image for the search of faces, and how much larger the given one is.

    Args:
        rgb: `(H, W, 3)` uint8.
    """
    high, wide = rgb.shape[:2]
    scale = max(high, wide) / SEARCH_PX
    if scale <= 1:
        return rgb, 1.0
    size = max(1, round(wide / scale)), max(1, round(high / scale))
    small = Image.fromarray(rgb).resize(size, Image.Resampling.BOX)
    return np.asarray(small), scale


@dataclass(frozen=True, slots=True)
class FoundFaces:
    """A finder of faces that have been found; see `image.Finder`.

    Args:
        faces: largest first, with landmarks in pixels of the image in which they were looked for.
        scale: see `search_image`.
        crop_px: side in pixels of the crops that the model animates.
    """

    faces: list[Face]
    scale: float
    crop_px: int

    def fingerprint(self) -> str:
        """Return nothing: it finds no faces by itself."""
        return ""

    def find_faces(self, rgb: np.ndarray) -> list[Face]:
        """Return them, with landmarks in pixels of the given image."""
        return [replace(face, landmarks=face.landmarks * self.scale) for face in self.faces]
