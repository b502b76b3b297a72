"""The flow that moves brows and the skin around them, by a fixed formula.

Few landmarks of the subset lie on brows, so a warp along landmarks leaves them still. Where brows
are follows well enough from the corners of the eyes: coordinates here are in widths of an eye from
the middle between its corners, along the eye from the outer to the inner corner, and down.
"""

import torch
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import landmark_indices

BROW_MOTION = 3
"""How far the inner and the outer part of both brows are lower, and how far the inner parts are
nearer to each other."""

_CORNERS = landmark_indices((33, 133, 263, 362))
"""Outer and inner corner of the right eye, then of the left one."""

_OUTER, _INNER = -0.88, 0.29  # where the two parts of a brow are: medians of filmed people
_ALONG = (-1.7, -1.0, 0.6, 1.5)  # begins, is whole, is whole no longer, ends
_DOWN = (-2.1, -1.1, -0.5, -0.2)  # from the forehead to the lid


def brow_extent(points: Tensor) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the part of a frame that brows can move.

    Args:
        points: landmarks, `(L, 2)` in its pixels.
    """
    reach = max(-_ALONG[0], -_DOWN[0])
    corners = points[_CORNERS].float()
    width = float((corners[::2] - corners[1::2]).norm(dim=-1).amax())
    low, high = (corners.amin(0) - reach * width).floor(), corners.amax(0).ceil()
    left, top = low.tolist()
    right, bottom = high.tolist()
    return int(left), int(top), int(right + reach * width), int(bottom)


def brow_flow(points: Tensor, motion: Tensor, positions: Tensor) -> Tensor:
    """Return how far from each position a frame shows what is there once its brows have moved.

    Args:
        points: landmarks of a frame, `(L, 2)` in its pixels.
        motion: in widths of an eye, `(3,)`: see `BROW_MOTION`.
        positions: `(h, w, 2)` in pixels of the frame.

    Returns:
        Offsets in pixels, `(h, w, 2)`.
    """
    inner, outer, nearer = motion.float().unbind(-1)
    outside, inside = points[_CORNERS[::2]].float(), points[_CORNERS[1::2]].float()  # (2, 2)
    width = (inside - outside).norm(dim=-1, keepdim=True).clamp(min=1e-6)
    along = (inside - outside) / width
    down = torch.stack([-along[:, 1], along[:, 0]], -1) * along.new_tensor([[1.0], [-1.0]])
    place = (positions[..., None, :] - (inside + outside) / 2) / width  # (h, w, 2, 2)
    u, v = (place * along).sum(-1), (place * down).sum(-1)
    share = _smooth((u - _OUTER) / (_INNER - _OUTER))
    opacity = _plateau(u, _ALONG) * _plateau(v, _DOWN)
    lower = opacity * torch.lerp(outer, inner, share)
    rise: Tensor = lower @ (width * down) + (opacity * share * nearer) @ (width * along)
    return -rise


def _plateau(x: Tensor, edges: tuple[float, float, float, float]) -> Tensor:
    """Return a smooth weight that is 1 between the two middle edges and 0 beyond the outer ones."""
    begins, whole, wanes, ends = edges
    return _smooth((x - begins) / (whole - begins)) * _smooth((ends - x) / (ends - wanes))


def _smooth(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
