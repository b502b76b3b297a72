"""Landmarks of a frontal face with a given lip gap, and images of skin."""

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import (
    INNER_CORNERS,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    NUM_LANDMARKS,
    SUBSET,
)
from letstalk_rt.models.geometry.mouth_crop import RIGID

TEETH = (200, 30, 90)
"""A colour that nothing else in these images has."""


def frontal_face(
    lip_gap_px: float, *, scale: float = 1.0, at: tuple[float, float] = (0, 0)
) -> Tensor:
    """Return landmarks `(1, L, 2)` of a face with a mouth 60 px wide, centred at `at`."""
    points = torch.zeros(1, NUM_LANDMARKS, 2)
    points[0, RIGID] = torch.tensor(RIGID_PX)
    for lip, side in ((INNER_UPPER_LIP, -1), (INNER_LOWER_LIP, 1)):
        x = torch.linspace(-24, 24, len(lip))
        points[0, lip] = torch.stack([x, side * lip_gap_px / 2 * (1 - (x / 30) ** 2)], 1)
    points[0, INNER_CORNERS] = torch.tensor([[-28.0, 0.0], [28.0, 0.0]])
    points[0, [MOUTH_LEFT, MOUTH_RIGHT]] = torch.tensor([[-30.0, 0.0], [30.0, 0.0]])
    return points * scale + torch.tensor(at)


def rotated(points: Tensor, radians: float) -> Tensor:
    """Rotate landmarks about the origin."""
    cos, sin = np.cos(radians), np.sin(radians)
    return points @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float32)


def mesh(points: Tensor) -> np.ndarray:
    """Return landmarks `(T, L, 2)` as the full mesh, `(T, 478, 2)`."""
    whole = np.zeros((len(points), 478, 2), np.float32)
    whole[:, SUBSET] = points.numpy()
    return whole


def skin(size: int = 256) -> np.ndarray:
    """Return an image with a smooth pattern, `(S, S, 3)` uint8."""
    y, x = np.mgrid[:size, :size] / size
    channels = (140 + 40 * np.sin(7 * x), 120 + 30 * np.cos(5 * y), 110 + 20 * np.sin(6 * (x + y)))
    return np.stack(channels, -1).astype(np.uint8)


RIGID_PX = [
    [-57.57, -90.99], [-22.43, -88.86], [22.43, -88.86], [57.57, -90.99], [-7.23, -34.87],
    [-12.13, -34.76], [-19.21, -34.68], [7.23, -34.87], [12.13, -34.76], [19.21, -34.68],
]  # fmt: skip
