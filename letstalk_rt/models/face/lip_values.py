"""Lip values: eight numbers that describe a mouth relative to the same face with closed lips.

They are linear in the landmarks, so a mouth with given values is found by linear algebra
(`inference/lip_control.py`). Head motion is removed first.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from letstalk_rt.models.face.head_motion import face_size, rigid_projection
from letstalk_rt.models.geometry.landmarks import NUM_LANDMARKS, landmark_indices

LIP_VALUES = ("gap", "side_gap", "width", "corners", "upper", "outer_upper", "outer_lower", "chin")
"""Names of the values. The first two are the gap of the inner lips in its middle and at its sides,
in mouth widths. The others are in face sizes: the distance of the mouth's corners, and the heights
of the corners, the inner upper lip, both outer lips and the chin. Heights grow downwards."""

NUM_LIP_VALUES = len(LIP_VALUES)
GAPS = slice(0, 2)
"""The absolute values: 0 where the lips touch. The others are relative to the face at rest."""

_CORNERS = landmark_indices((61, 291))
_PAIRS = (landmark_indices((13, 14)), landmark_indices((81, 178)), landmark_indices((311, 402)))
_UPPER, _LOWER, _OUTER_UPPER, _OUTER_LOWER, _CHIN = landmark_indices((13, 14, 0, 17, 152))


def lip_value_matrix(points: Tensor) -> Tensor:
    """Return the matrix that maps landmarks, or their displacements, to lip values, `(Q, 2L)`.

    Args:
        points: landmarks of the face at rest, `(L, 2)`, for the direction and size of its mouth.
    """
    right, left = points[_CORNERS]
    along = (left - right) / (left - right).norm().clamp(min=1e-6)
    down = torch.stack([-along[1], along[0]])
    rows = points.new_zeros(NUM_LIP_VALUES, NUM_LANDMARKS, 2)
    size, width = face_size(points), (left - right).norm().clamp(min=1e-6)
    _write_gap(rows[0], _PAIRS[:1], down * size / width)
    _write_gap(rows[1], _PAIRS[1:], down * size / width)
    rows[2, _CORNERS[1]], rows[2, _CORNERS[0]] = along, -along
    rows[3, _CORNERS] = down / 2
    for row, point in zip(rows[4:], (_UPPER, _OUTER_UPPER, _OUTER_LOWER, _CHIN), strict=True):
        row[point] = down
    return rows.flatten(1) / size


def _write_gap(row: Tensor, pairs: Sequence[Sequence[int]], down: Tensor) -> None:
    """Write the mean distance of lower and upper lip along `down` into a row `(L, 2)`."""
    for upper, lower in pairs:
        row[lower] += down / len(pairs)
        row[upper] -= down / len(pairs)


def lip_values(points: Tensor, rest: Tensor) -> Tensor:
    """Return the lip values `(T, Q)` of landmarks `(T, L, 2)` relative to the face at rest.

    Args:
        points: landmarks of each frame.
        rest: landmarks of the same face at rest, `(L, 2)`.
    """
    moved = (points - rest).flatten(1)
    moved = moved - moved @ rigid_projection(rest).T
    matrix = lip_value_matrix(rest)
    values = moved @ matrix.T
    values[:, GAPS] += matrix[GAPS] @ rest.flatten()
    return values
