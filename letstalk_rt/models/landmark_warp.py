"""A dense warp from sparse face landmarks, with nothing learned.

Source: kernel regression of displacements (Nadaraya, 1964; Watson, 1964).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.landmarks import (
    INNER_CORNERS,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LOWER_LIP_ONLY,
    NUM_POINTS,
    UPPER_LIP_ONLY,
)

_FAR_WEIGHT = 1e-3
_REST = 2e-3
"""Weight of "no displacement": far from the face the flow fades to zero."""

_ABOVE = [i for i in range(NUM_POINTS) if i not in LOWER_LIP_ONLY]
_BELOW = [i for i in range(NUM_POINTS) if i not in UPPER_LIP_ONLY]
"""Landmarks that what lies above and below the line between the lips follows."""

_LIP_PX = 3.0
"""Width over which landmarks of a lip are joined to its edge."""

_EDGE_PX = 1.5
"""How soft edges between lips are."""


def coarse_flow(
    source: Tensor,
    target: Tensor,
    grid_size: int = 64,
    *,
    near_px: float = 7.0,
    far_px: float = 26.0,
) -> Tensor:
    """Give, for each cell of the target picture, where in the source picture to read.

    Each cell takes the Gaussian-weighted mean of the displacements of the landmarks around it; a
    second, wide and weak Gaussian carries hair and neck along; far from the face the flow fades to
    zero, so the background rests. A Gaussian separates into its x and its y part, so the sum over
    all pairs of cell and landmark is two small matrix products.

    Args:
        source: landmarks of the portrait, `(B, L, 2)`, x and y in [-1, 1].
        target: landmarks of the wanted picture, same shape.
        grid_size: cells a side.
        near_px: width of the near kernel, in pixels of a 256x256 picture.
        far_px: width of the far kernel, likewise.

    Returns:
        Offsets `(B, 2, grid_size, grid_size)` to add to the identity grid of `grid_sample`, in
        [-1, 1] units.
    """
    axis = (torch.arange(grid_size, device=source.device) + 0.5) / grid_size * 2 - 1
    distance_px = (axis - target[..., None]) * 128  # (B, L, 2, cells)
    ones = torch.ones_like(source[..., :1])
    values = torch.cat([source - target, ones], -1).transpose(1, 2)  # (B, 3, L): dx, dy, weight
    total = source.new_zeros(source.shape[0], 3, grid_size, grid_size)
    for width_px, weight in ((near_px, 1.0), (far_px, _FAR_WEIGHT)):
        columns, rows = _bell(distance_px, width_px).unbind(2)
        weighted_rows = weight * values[:, :, None] * rows.transpose(1, 2)[:, None]
        total = total + weighted_rows @ columns[:, None]  # (B, 3, cells, L) @ (B, 1, L, cells)
    return total[:, :2] / (total[:, 2:] + _REST)


def face_flow(source: Tensor, target: Tensor, size: int = 128) -> Tensor:
    """As `coarse_flow`, for a whole face: along the mouth it is torn, as lips part there.

    What lies above the line between the lips follows all landmarks but the lower lip's, what lies
    below all but the upper lip's; else a mouth that opens would drag both lips over the gap. Beside
    the mouth, where there is no gap, the two are mixed.

    Returns:
        Offsets `(B, 2, size, size)`.
    """
    parts = []
    for kept in (_ABOVE, _BELOW):
        flow = coarse_flow(source[:, kept], target[:, kept], size // 2)
        parts.append(F.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False))
    above, below = parts
    upper, lower, within = _lip_lines(target, size)
    distance_px = ((upper + lower) / 2)[:, None] - _axis_px(size, target)[:, None]
    side = within[:, None] * (distance_px / _EDGE_PX).clamp(-1, 1)  # 1 above the line, -1 below
    return torch.lerp(below, above, (0.5 + 0.5 * side)[:, None])


def mouth_gap(points: Tensor, size: int = 128) -> Tensor:
    """Give where the open mouth is: `(B, 1, size, size)`, 1 between parted lips and 0 elsewhere."""
    upper, lower, within = _lip_lines(points, size)
    y = _axis_px(size, points)[:, None]
    under = ((y - upper[:, None]) / _EDGE_PX + 0.5).clamp(0, 1)
    over = ((lower[:, None] - y) / _EDGE_PX + 0.5).clamp(0, 1)
    parted = ((lower - upper) / _EDGE_PX).clamp(0, 1) * within
    return (under * over * parted[:, None])[:, None]


def _lip_lines(points: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Give the inner edges of the lips in each column, and which columns are the mouth's.

    Returns:
        Heights of upper and of lower lip in pixels of a 256x256 picture, `(B, size)`; and 1 for
        columns inside the mouth, 0 outside.
    """
    columns = _axis_px(size, points)
    edges = []
    for inner in (INNER_UPPER_LIP, INNER_LOWER_LIP):
        x, y = (128 * points[:, INNER_CORNERS + inner]).unbind(-1)
        near = _bell(columns - x[..., None], _LIP_PX)  # (B, points, columns)
        edges.append((near * y[..., None]).sum(1) / near.sum(1))
    ends = 128 * points[:, INNER_CORNERS, 0]
    left, right = ends.amin(1, keepdim=True), ends.amax(1, keepdim=True)
    within = ((columns - left) / _LIP_PX).clamp(0, 1) * ((right - columns) / _LIP_PX).clamp(0, 1)
    return edges[0], edges[1], within


def _axis_px(size: int, like: Tensor) -> Tensor:
    """Give the centres of cells in pixels of a 256x256 picture, from its middle."""
    return ((torch.arange(size, device=like.device) + 0.5) / size * 2 - 1) * 128


def nearness(points: Tensor, size: int, width_px: float) -> Tensor:
    """Give a soft map `(B, 1, size, size)` that is 1 near points `(B, L, 2)` and 0 far from them.

    `width_px` is of a 256x256 picture.
    """
    axis = (torch.arange(size, device=points.device) + 0.5) / size * 2 - 1
    distance_px = (axis - points[..., None]) * 128
    columns, rows = _bell(distance_px, width_px).unbind(2)
    return (rows.transpose(1, 2) @ columns).clamp(max=1)[:, None]


def _bell(distance_px: Tensor, width_px: float) -> Tensor:
    """Give the Gaussian of distances.

    It ends at 4e-18: products of two are then still ordinary numbers. Below those, a processor
    takes seven times as long (docs/log.md).
    """
    return torch.exp((-(distance_px**2) / (2 * width_px**2)).clamp(min=-40))


def warp(picture: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Read `picture`, `(B, C, H, W)`, at the identity grid plus `flow`, `(B, 2, h, w)`.

    Reading between pixels blurs a picture: `bicubic` keeps a quarter more of its sharpness than
    `bilinear`, at three times the cost (docs/log.md).
    """
    height, width = picture.shape[-2:]
    if flow.shape[-2:] != (height, width):
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
    identity = torch.eye(2, 3, device=picture.device).expand(picture.shape[0], 2, 3)
    grid = F.affine_grid(identity, list(picture.shape), align_corners=False)
    grid = grid + flow.permute(0, 2, 3, 1)
    return F.grid_sample(picture, grid, mode, padding_mode="border", align_corners=False)
