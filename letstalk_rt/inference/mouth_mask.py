"""The part of a frame that dubbing replaces: from the nose to below the chin, with a soft edge."""

import cv2
import numpy as np

from letstalk_rt.models.autoencoder.latents import IMAGE_SIZE
from letstalk_rt.models.geometry.landmarks import LIPS, OVAL, landmark_indices

FEATHER_PX = 13.0
"""Width of the soft edge, in pixels of a crop."""

_NOSE_PX = 9.0
"""How far the mask extends above the base of the nose, so that it covers a raised upper lip."""

_CHIN_PX = 20.0
"""How far the mask extends below the chin, its soft edge included."""

_SIDE_PX = 5.0
"""How far the mask stays inside the side of a face, which may border on anything."""

_LIPS_PX = 7.0
"""Nearer to the lips than this, colours of old and new frame are not compared."""

_NOSE = landmark_indices((60, 290, 20, 250))
_LOWER_OVAL = [
    i
    for i in landmark_indices(OVAL)
    if i
    in landmark_indices(
        (361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132)
    )
]


def mouth_mask(*faces: np.ndarray) -> np.ndarray:
    """Return the mask `(256, 256)` float32 in [0, 1] that covers the lower faces of several shapes.

    Args:
        faces: landmarks `(L, 2)` in pixels of a crop: the frame as it was, and as it will be.
    """
    corners = []
    for points in faces:
        top = float(points[_NOSE, 1].mean()) - _NOSE_PX
        side = points[_LOWER_OVAL].astype(np.float64)
        centre = float(side[:, 0].mean())
        below = np.clip((side[:, 1] - top) / max(np.ptp(side[:, 1]), 1.0), 0, 1)
        side[:, 0] -= np.sign(side[:, 0] - centre) * _SIDE_PX * (1 - below)
        side[:, 1] += _CHIN_PX * below**3
        side[:, 1] = np.maximum(side[:, 1], top)
        corners.append(side)
    hull = cv2.convexHull(np.concatenate(corners).astype(np.float32))
    solid = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    cv2.fillConvexPoly(solid, np.round(hull).astype(np.int32), 1)
    solid[0] = solid[-1] = solid[:, 0] = solid[:, -1] = 0
    depth = cv2.distanceTransform(solid, cv2.DIST_L2, 3)
    rise = np.clip((depth - 1) / FEATHER_PX, 0, 1)
    mask: np.ndarray = (rise * rise * (3 - 2 * rise)).astype(np.float32)
    return mask


def lips_mask(*faces: np.ndarray) -> np.ndarray:
    """Return a mask `(256, 256)` uint8 that is 1 on the lips of several shapes and near them."""
    solid = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for points in faces:
        hull = cv2.convexHull(points[LIPS].astype(np.float32))
        cv2.fillConvexPoly(solid, np.round(hull).astype(np.int32), 1)
    size = 2 * round(_LIPS_PX) + 1
    near: np.ndarray = cv2.dilate(solid, np.ones((size, size), np.uint8))
    return near
