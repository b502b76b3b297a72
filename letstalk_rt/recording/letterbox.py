"""Fits images into the size of a sink, which stays as it is when the portrait changes."""

import numpy as np
from PIL import Image, ImageOps


def fit(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale an image to fit into `size` (width, height) on black, keeping its aspect ratio."""
    rgb = np.ascontiguousarray(rgb)
    if rgb.shape[1::-1] == size:
        return rgb
    image = Image.fromarray(rgb)
    return np.array(ImageOps.pad(image, size, Image.Resampling.BILINEAR, "black"))
