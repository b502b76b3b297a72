"""A dense warp from sparse face landmarks, with nothing learned.

Source: kernel regression of displacements (Nadaraya, 1964; Watson, 1964).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import (
    INNER_CORNERS,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LOWER_LIP_ONLY,
    NUM_LANDMARKS,
    UPPER_LIP_ONLY,
)

NEAR_PX, FAR_PX = 7.0, 26.0
"""Widths of the flow's kernels, in pixels of a 256x256 picture."""

_FAR_WEIGHT = 1e-3
_REST = 2e-3
"""Weight of "no displacement": far from the face the flow fades to zero."""

_LIP_PX = 3.0
"""Width over which landmarks of a lip are joined to its edge."""

_EDGE_PX = 1.5
"""How soft edges between lips are."""


def coarse_flow(
    source: Tensor,
    target: Tensor,
    grid_size: int = 64,
    *,
    near_px: float = NEAR_PX,
    far_px: float = FAR_PX,
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
    followed = source.new_ones(1, source.shape[1])
    return _flows(source, target, followed, grid_size, near_px, far_px)[:, 0]


def _flows(
    source: Tensor, target: Tensor, followed: Tensor, size: int, near_px: float, far_px: float
) -> Tensor:
    """As `coarse_flow`, once for each row of `followed`, `(K, L)`: `(B, K, 2, size, size)`.

    A row says how much each landmark counts.
    """
    columns, rows = _bells(target, size, (near_px, far_px))
    values = torch.cat([source - target, torch.ones_like(source[..., :1])], -1)
    values = (values.transpose(1, 2)[:, None] * followed[:, None]).flatten(1, 2)  # (B, 3 K, L)
    values = torch.cat([values, _FAR_WEIGHT * values], -1)  # of the near kernel and of the far
    weighted = (values[:, :, None] * rows[:, None]).flatten(1, 2)
    total = (weighted @ columns).to(source).unflatten(1, (-1, 3, size))  # dx, dy and weight
    flow: Tensor = total[:, :, :2] / (total[:, :, 2:] + _REST)
    return flow


def face_flow(source: Tensor, target: Tensor, size: int = 128) -> Tensor:
    """As `coarse_flow`, for a whole face: along the mouth it is torn, as lips part there.

    What lies above the line between the lips follows all landmarks but the lower lip's, what lies
    below all but the upper lip's; else a mouth that opens would drag both lips over the gap. Beside
    the mouth, where there is no gap, the two are mixed.

    Returns:
        Offsets `(B, 2, size, size)`.
    """
    flows = _flows(source, target, _sides(source.device), size // 2, NEAR_PX, FAR_PX)
    flows = F.interpolate(flows.flatten(1, 2), scale_factor=2.0, mode="bilinear")
    above, below = flows.chunk(2, 1)
    upper, lower, within = _lip_lines(target, size)
    distance_px = ((upper + lower) / 2)[:, None] - _axis_px(size, target.device)[:, None]
    side = within[:, None] * (distance_px / _EDGE_PX).clamp(-1, 1)  # 1 above the line, -1 below
    return torch.lerp(below, above, (0.5 + 0.5 * side)[:, None])


@functools.cache
def _sides(device: torch.device) -> Tensor:
    """Give what follows which landmarks, `(2, L)`: what is above the line between the lips, and
    what is below.
    """
    with torch.inference_mode(False):
        sides = torch.ones(2, NUM_LANDMARKS)
        sides[0, LOWER_LIP_ONLY] = 0
        sides[1, UPPER_LIP_ONLY] = 0
        return sides.to(device)


def mouth_gap(points: Tensor, size: int = 128) -> Tensor:
    """Give where the open mouth is: `(B, 1, size, size)`, 1 between parted lips and 0 elsewhere."""
    upper, lower, within = _lip_lines(points, size)
    y = _axis_px(size, points.device)[:, None]
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
    columns = _axis_px(size, points.device)
    edges = []
    for inner in (INNER_UPPER_LIP, INNER_LOWER_LIP):
        x, y = (128 * points[:, INNER_CORNERS + inner]).unbind(-1)
        near = _bell(columns - x[..., None], _LIP_PX)  # (B, points, columns)
        edges.append((near * y[..., None]).sum(1) / near.sum(1))
    ends = 128 * points[:, INNER_CORNERS, 0]
    left, right = ends.amin(1, keepdim=True), ends.amax(1, keepdim=True)
    within = ((columns - left) / _LIP_PX).clamp(0, 1) * ((right - columns) / _LIP_PX).clamp(0, 1)
    return edges[0], edges[1], within


@functools.cache
def _axis_px(size: int, device: torch.device) -> Tensor:
    """Give the centres of cells in pixels of a 256x256 picture, from its middle."""
    with torch.inference_mode(False):
        return ((torch.arange(size, device=device) + 0.5) / size * 2 - 1) * 128


def proximity_map(points: Tensor, size: int, width_px: float) -> Tensor:
    """Give a soft map `(B, 1, size, size)` that is 1 near points `(B, L, 2)` and 0 far from them.

    `width_px` is of a 256x256 picture.
    """
    return proximity_maps(points.new_ones(1, points.shape[1]), points, size, width_px)


def proximity_maps(groups: Tensor, points: Tensor, size: int, width_px: float) -> Tensor:
    """As `proximity_map`, for groups of the points: `(G, L)` of 0 and 1 to `(B, G, size, size)`."""
    columns, rows = _bells(points, size, (width_px,))
    grouped = (groups[:, None] * rows[:, None]).flatten(1, 2)  # (B, G size, L)
    near: Tensor = (grouped @ columns).clamp(max=1).unflatten(1, (-1, size))
    return near


def _bells(points: Tensor, size: int, widths_px: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Give the Gaussians around points `(B, L, 2)`, repeated for each of K widths.

    Returns:
        Along x, `(B, K L, size)`, and along y, `(B, size, K L)`: their product is two-dimensional.
    """
    axis = _axis_px(size, points.device)
    x, y = (128 * points).unbind(-1)
    across, down = axis - x[..., None], axis[:, None] - y[:, None]
    columns = torch.cat([_bell(across, width_px) for width_px in widths_px], 1)
    return columns, torch.cat([_bell(down, width_px) for width_px in widths_px], 2)


def _bell(distance_px: Tensor, width_px: float) -> Tensor:
    """Give the Gaussian of distances.

    It ends at 4e-18: products of two are then still ordinary numbers. Below those, a processor
    takes seven times as long (docs/log.md).
    """
    return torch.exp((distance_px * distance_px * (-0.5 / width_px**2)).clamp(min=-40))


def warp(picture: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Read `picture`, `(B, C, H, W)`, at the identity grid plus `flow`, `(B, 2, h, w)`.

    Reading between pixels blurs a picture: `bicubic` keeps a quarter more of its sharpness than
    `bilinear`, at three times the cost (docs/log.md).
    """
    height, width = picture.shape[-2:]
    if flow.shape[-2:] != (height, width):
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
    return read_at(picture, sampling_grid(flow), mode)


def sampling_grid(flow: Tensor) -> Tensor:
    """Give where to read, as `grid_sample` wants it, `(B, h, w, 2)`: identity plus flow."""
    x, y = flow.unbind(1)
    x = x + _axis_px(x.shape[2], x.device) / 128
    y = y + (_axis_px(y.shape[1], y.device) / 128)[:, None]
    return torch.stack([x, y], -1)


def read_at(picture: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Read `(B, C, H, W)` at the places `(B, h, w, 2)`; beyond its border, its border."""
    return F.grid_sample(picture, grid, mode, padding_mode="border", align_corners=False)
