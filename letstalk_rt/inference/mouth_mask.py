"""The part of a frame that dubbing replaces: from the nose to below the chin, with a soft edge."""

import cv2
import numpy as np

from letstalk_rt.models.autoencoder.latents import CELL_PX, IMAGE_SIZE, WHOLE_FRAME, FramePart
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

_PART_CELLS = (32, 38)
"""Height and width of the part of a crop that is decoded, in cells."""

_MARGIN_CELLS = 3
"""How much more than the mask is decoded: what lies beyond would change it by less than is seen."""

_NOSE = landmark_indices((60, 290, 20, 250))
_LOWER_OVAL = [
    i
    for i in landmark_indices(OVAL)
    if i
    in landmark_indices(
        (361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136, 172, 58, 132)
    )
]


def mouth_outline(*faces: np.ndarray) -> np.ndarray:
    """Return the polygon `(N, 2)` around the lower faces of several shapes, in pixels of a crop.

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
    hull: np.ndarray = cv2.convexHull(np.concatenate(corners).astype(np.float32))[:, 0]
    return hull


def part_around(outline: np.ndarray) -> FramePart:
    """Return the part of a crop that has to be decoded for what lies inside of an outline.

    It has one of two sizes, because networks are prepared anew for each size: that which most
    faces need, or the whole crop.
    """
    last = IMAGE_SIZE // CELL_PX
    ranges = []
    for axis, cells in ((1, _PART_CELLS[0]), (0, _PART_CELLS[1])):
        low = max(0, int(outline[:, axis].min() / CELL_PX) - _MARGIN_CELLS)
        high = min(last, int(outline[:, axis].max() / CELL_PX) + 1 + _MARGIN_CELLS)
        if high - low > cells:
            return WHOLE_FRAME
        start = min(max(0, (low + high - cells) // 2), last - cells)
        ranges.append(slice(start, start + cells))
    return FramePart(*ranges)


def mouth_mask(outline: np.ndarray, part: FramePart) -> np.ndarray:
    """Return the mask `(h, w)` float32 in [0, 1] of what is replaced in a part of a crop.

    Args:
        outline: see `mouth_outline`.
        part: a part that contains it.
    """
    solid = _filled(outline, part)
    solid[0] = solid[-1] = solid[:, 0] = solid[:, -1] = 0
    depth = cv2.distanceTransform(solid, cv2.DIST_L2, 3)
    rise = np.clip((depth - 1) / FEATHER_PX, 0, 1)
    mask: np.ndarray = (rise * rise * (3 - 2 * rise)).astype(np.float32)
    return mask


def lips_mask(part: FramePart, *faces: np.ndarray) -> np.ndarray:
    """Return a mask `(h, w)` uint8 that is 1 on the lips of several shapes and near them."""
    solid = _filled(cv2.convexHull(faces[0][LIPS].astype(np.float32))[:, 0], part)
    for points in faces[1:]:
        solid |= _filled(cv2.convexHull(points[LIPS].astype(np.float32))[:, 0], part)
    size = 2 * round(_LIPS_PX) + 1
    near: np.ndarray = cv2.dilate(solid, np.ones((size, size), np.uint8))
    return near


def _filled(polygon: np.ndarray, part: FramePart) -> np.ndarray:
    """Return a mask `(h, w)` uint8 of a convex polygon in a part of a crop."""
    rows, columns = part.pixels
    solid = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.uint8)
    corners = np.round(polygon).astype(np.int32) - [columns.start, rows.start]
    cv2.fillConvexPoly(solid, corners.astype(np.int32), 1)
    return solid
