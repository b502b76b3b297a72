"""Fits images into the size of a sink, which stays as it is when the portrait changes."""

import numpy as np
from PIL import Image


def fit(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to fit into `size` (width, height) on black, keeping its aspect ratio."""
    height, width = rgb.shape[:2]
    if (width, height) == size:
        return np.ascontiguousarray(rgb)
    scale = min(size[0] / width, size[1] / height)
    inner = min(size[0], round(width * scale)), min(size[1], round(height * scale))
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if inner != (width, height):
        image = image.resize(inner, Image.Resampling.BILINEAR)
    padded = Image.new("RGB", size)
    padded.paste(image, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return np.array(padded)
