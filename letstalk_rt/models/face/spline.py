"""Uniform cubic B-splines over windows of frames: motion that cannot jump or tremble.

Window `k` of a stream is one span of the spline; its frames depend on four coefficients, of which
the last is new in each window. Position, velocity and acceleration are continuous.

Source: de Boor, A Practical Guide to Splines, 1978.
"""

import torch
from torch import Tensor

SPAN = 4
"""Frames per span, the window of the denoiser."""

COEFFICIENTS = 4
"""Coefficients that the frames of a span depend on."""


def span_weights() -> Tensor:
    """Return the weights of the four coefficients in each frame of a span, `(SPAN, 4)`."""
    u = (torch.arange(SPAN) + 0.5) / SPAN
    weights = [
        (1 - u) ** 3,
        3 * u**3 - 6 * u**2 + 4,
        -3 * u**3 + 3 * u**2 + 3 * u + 1,
        u**3,
    ]
    return torch.stack(weights, 1) / 6


def design_matrix(spans: int) -> Tensor:
    """Return the matrix from coefficients to frames, `(SPAN * spans, spans + 3)`."""
    matrix = torch.zeros(spans, SPAN, spans + COEFFICIENTS - 1)
    for index, weights in enumerate(span_weights().expand(spans, -1, -1)):
        matrix[index, :, index : index + COEFFICIENTS] = weights
    return matrix.flatten(0, 1)


def fit_spline(course: Tensor, ridge: float = 1e-3) -> Tensor:
    """Return the coefficients `(T / SPAN + 3, D)` of the spline next to a course `(T, D)`."""
    matrix = design_matrix(len(course) // SPAN)
    square = matrix.T @ matrix + ridge * torch.eye(matrix.shape[1])
    coefficients: Tensor = torch.linalg.solve(square, matrix.T @ course)
    return coefficients


def continue_from(last: Tensor) -> Tensor:
    """Return the first three coefficients of a spline that continues a course smoothly.

    Args:
        last: the last three frames, `(B, 3, D)`.

    Returns:
        Coefficients with which position, velocity and acceleration go on, `(B, 3, D)`.
    """
    acceleration = last[:, 2] - 2 * last[:, 1] + last[:, 0]
    velocity = (3 * last[:, 2] - 4 * last[:, 1] + last[:, 0]) / 2
    # The next span begins half a frame after the last frame.
    start = last[:, 2] + velocity / 2 + acceleration / 8
    velocity = SPAN * (velocity + acceleration / 2)
    acceleration = SPAN**2 * acceleration
    middle = start - acceleration / 6
    return torch.stack(
        [
            middle + acceleration / 2 - velocity,
            middle,
            middle + acceleration / 2 + velocity,
        ],
        1,
    )
