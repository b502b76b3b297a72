"""The subset of the 478-point face mesh that the model uses, and measures on it.

The training data holds the full mesh, in MediaPipe's order. About 150 of its points are enough for
the warp: all of lips, eyes and outline, and a tenth of the others.
"""

import numpy as np

LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375,
              291, 409, 270, 269, 267, 0, 37, 39, 40, 185)  # fmt: skip
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324,
              308, 415, 310, 311, 312, 13, 82, 81, 80, 191)  # fmt: skip
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
IRISES = tuple(range(468, 478))
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
        152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103,
        67, 109)  # fmt: skip

MESH_POINTS = 478
_NAMED = frozenset(LIPS_OUTER + LIPS_INNER + RIGHT_EYE + LEFT_EYE + IRISES + OVAL)
SUBSET = tuple(sorted(_NAMED | set(range(0, 468, 10))))
"""Mesh indices of the points the model works with, ascending."""

NUM_LANDMARKS = len(SUBSET)
_INDEX = {mesh_index: index for index, mesh_index in enumerate(SUBSET)}


def landmark_indices(mesh_indices: tuple[int, ...]) -> list[int]:
    """Return the indices in `SUBSET` of points with these mesh indices."""
    return [_INDEX[i] for i in mesh_indices]


LIPS = landmark_indices(LIPS_OUTER + LIPS_INNER)
INNER_UPPER_LIP = landmark_indices((191, 80, 81, 82, 13, 312, 311, 310, 415))
INNER_LOWER_LIP = landmark_indices((95, 88, 178, 87, 14, 317, 402, 318, 324))
UPPER_LIP_ONLY = landmark_indices((409, 270, 269, 267, 0, 37, 39, 40, 185)) + INNER_UPPER_LIP
LOWER_LIP_ONLY = landmark_indices((146, 91, 181, 84, 17, 314, 405, 321, 375)) + INNER_LOWER_LIP
"""Lips without the corners of the mouth, which move with both lips."""

_LOWER_FACE = frozenset(LIPS_OUTER + LIPS_INNER) | {
    58, 90, 132, 136, 140, 148, 149, 150, 152, 170, 172, 176, 180, 200, 210, 288, 320, 361, 365,
    370, 377, 378, 379, 397, 400, 410, 430,
}  # fmt: skip
REST = [_INDEX[i] for i in SUBSET if i not in _LOWER_FACE]
"""The face without what speech moves: no lips, jaw, chin, nor the skin around the mouth."""

INNER_CORNERS = landmark_indices((78, 308))
EYES = landmark_indices(RIGHT_EYE + LEFT_EYE)
UPPER_LIP, LOWER_LIP, MOUTH_LEFT, MOUTH_RIGHT = landmark_indices((13, 14, 61, 291))
RIGHT_LID = landmark_indices((159, 145, 33, 133))
LEFT_LID = landmark_indices((386, 374, 263, 362))


def mouth_opening(points: np.ndarray) -> np.ndarray:
    """Return the lip gap over the mouth width, `(...,)`, of landmarks `(..., L, 2)`."""
    gap = np.linalg.norm(points[..., UPPER_LIP, :] - points[..., LOWER_LIP, :], axis=-1)
    width = np.linalg.norm(points[..., MOUTH_LEFT, :] - points[..., MOUTH_RIGHT, :], axis=-1)
    opening: np.ndarray = gap / np.maximum(width, 1e-6)
    return opening


def eye_openings(points: np.ndarray) -> np.ndarray:
    """Return the lid gaps of the right and the left eye over their widths, `(..., 2)`.

    Args:
        points: landmarks `(..., L, 2)`.
    """
    openings = []
    for upper, lower, right, left in (RIGHT_LID, LEFT_LID):
        gap = np.linalg.norm(points[..., upper, :] - points[..., lower, :], axis=-1)
        width = np.linalg.norm(points[..., right, :] - points[..., left, :], axis=-1)
        openings.append(gap / np.maximum(width, 1e-6))
    return np.stack(openings, -1)
