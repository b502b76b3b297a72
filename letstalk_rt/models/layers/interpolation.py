"""Piecewise linear functions of single numbers."""

from torch import Tensor


def interpolate(knots: Tensor, levels: Tensor, x: Tensor) -> Tensor:
    """Interpolate linearly between knots, each number by a function of its own.

    Args:
        knots: increasing, `(Q, K)`.
        levels: values at these, `(Q, K)`; they stay constant beyond the knots.
        x: `(..., Q)`.

    Returns:
        `(..., Q)`.
    """
    width = knots.diff(dim=1).clamp(min=1e-6)
    inside = (x[..., None] - knots[:, :-1]).clamp(min=0).minimum(width)
    return levels[:, 0] + (inside * (levels.diff(dim=1) / width)).sum(-1)
