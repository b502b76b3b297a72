"""A dense warp from sparse face landmarks by a fixed formula.

Source: kernel regression of displacements (Nadaraya, 1964; Watson, 1964); regression of what it
leaves at the lips: twicing (Tukey, 1977).
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import (
    INNER_CORNERS,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LIPS,
    LOWER_LIP_ONLY,
    NUM_LANDMARKS,
    UPPER_LIP_ONLY,
)

NEAR_PX, FAR_PX = 7.0, 26.0
"""Widths of the flow's kernels, in pixels of a 256x256 frame."""

_FAR_WEIGHT = 1e-3
_REST = 2e-3
"""Weight of zero displacement: far from the face the flow fades to zero."""

_EXACT = LIPS
"""Landmarks at which `face_flow` is exact."""

_EXACT_PX, _EXACT_REST, _EXACT_ROUNDS = 2.0, 0.3, 2
"""Width of the kernel that makes it so, weight of zero in it, and rounds of twicing."""

_LIP_PX = 3.0
"""Width of the kernel that interpolates a lip's edge between its landmarks."""

_EDGE_PX, _CUT_PX = 1.5, 0.5
"""Softness of the edges between the lips, and of the discontinuity there."""


def coarse_flow(
    source: Tensor,
    target: Tensor,
    grid_size: int = 64,
    *,
    near_px: float = NEAR_PX,
    far_px: float = FAR_PX,
) -> Tensor:
    """Return the flow from each cell of the target frame to the source image.

    The flow of a cell is the Gaussian-weighted mean of the displacements of nearby landmarks. A
    second, wide and weak Gaussian moves hair and neck along; far from the face the flow fades to
    zero. A Gaussian separates into factors in x and in y, so the sum over all pairs of cell and
    landmark is two small matrix products.

    Args:
        source: landmarks of the portrait, `(B, L, 2)`, x and y in [-1, 1].
        target: landmarks of the frame, same shape.
        grid_size: height and width of the flow, in cells.
        near_px: width of the near kernel, in pixels of a 256x256 frame.
        far_px: width of the far kernel, likewise.

    Returns:
        Offsets `(B, 2, grid_size, grid_size)` to add to the identity grid of `grid_sample`, in
        [-1, 1] units.
    """
    weights = source.new_ones(1, source.shape[1])
    return _flows(source, target, weights, grid_size, near_px, far_px)[:, 0]


def _flows(
    source: Tensor, target: Tensor, weights: Tensor, size: int, near_px: float, far_px: float
) -> Tensor:
    """Return `coarse_flow` for each row of landmark weights `(K, L)`, `(B, K, 2, size, size)`."""
    columns, rows = _gaussians(target, size, (near_px, far_px))
    values = torch.cat([source - target, torch.ones_like(source[..., :1])], -1)
    values = (values.transpose(1, 2)[:, None] * weights[:, None]).flatten(1, 2)  # (B, 3 K, L)
    values = torch.cat([values, _FAR_WEIGHT * values], -1)  # for the near and the far kernel
    weighted = (values[:, :, None] * rows[:, None]).flatten(1, 2)
    total = (weighted @ columns).to(source).unflatten(1, (-1, 3, size))  # dx, dy and weight
    flow: Tensor = total[:, :, :2] / (total[:, :, 2:] + _REST)
    return flow


def face_flow(source: Tensor, target: Tensor, size: int = 128) -> Tensor:
    """Return `coarse_flow`, exact at the lips, with a discontinuity where the lips part.

    Cells above the line between the lips follow all landmarks but the lower lip's, cells below it
    all but the upper lip's; otherwise an opening mouth would drag both lips over the gap. Beside
    the mouth, where there is no gap, the two flows are mixed. A mean of displacements moves the
    edge of a lip less far than its landmarks, so that lips which should meet leave teeth between
    them: what is missing there is added by a narrow kernel.

    Returns:
        Offsets `(B, 2, size, size)`.
    """
    weights = _side_weights(source.device)
    flows = _flows(source, target, weights, size // 2, NEAR_PX, FAR_PX)
    flows = upsample(flows, size)
    flows = flows + _missing_flows(flows, source - target, target, weights)
    above, below = flows.unbind(1)
    upper, lower, within = _lip_lines(target, size)
    distance_px = ((upper + lower) / 2)[:, None] - _axis_px(size, target.device)[:, None]
    side = within[:, None] * (distance_px / _CUT_PX).clamp(-1, 1)  # 1 above the line, -1 below
    return torch.lerp(below, above, (0.5 + 0.5 * side)[:, None])


def _missing_flows(flows: Tensor, moved: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return what flows lack at the landmarks that they should follow exactly.

    Args:
        flows: `(B, K, 2, size, size)`.
        moved: displacements of the landmarks, `(B, L, 2)`.
        target: landmarks of the frame, `(B, L, 2)`.
        weights: weights of landmarks in each of the flows, `(K, L)`.

    Returns:
        Offsets to add, same shape as `flows`.
    """
    size, points = flows.shape[-1], target[:, _EXACT]
    grid = points[:, None].expand(-1, flows.shape[1], -1, -1).flatten(0, 1)[:, :, None]
    found = F.grid_sample(flows.flatten(0, 1), grid, padding_mode="border", align_corners=False)
    missing = moved[:, None, _EXACT] - found[..., 0].transpose(1, 2).unflatten(0, (len(flows), -1))
    shared = _gaussian(128 * torch.cdist(points, points), _EXACT_PX)[:, None]
    shared = shared * weights[:, None, _EXACT]  # (B, K, E, E)
    shared = shared / (shared.sum(-1, keepdim=True) + _EXACT_REST)
    values = missing
    for _ in range(_EXACT_ROUNDS - 1):
        values = values + missing - shared @ values
    columns, rows = _gaussians(points, size, (_EXACT_PX,))
    values = torch.cat([values, torch.ones_like(values[..., :1])], -1)
    values = (values * weights[:, _EXACT, None]).transpose(2, 3).flatten(1, 2)  # (B, 3 K, E)
    total = ((values[:, :, None] * rows[:, None]).flatten(1, 2) @ columns).to(flows)
    total = total.unflatten(1, (-1, 3, size))
    added: Tensor = total[:, :, :2] / (total[:, :, 2:] + _EXACT_REST)
    return added


def upsample(maps: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    """Return square maps `(..., s, s)` at another size, `(..., size, size)`.

    It is `interpolate` as two small matrix products, which take a tenth of the time on a CPU.
    """
    weights = _upsampling(maps.shape[-1], size, mode, maps.device)
    with torch.autocast(maps.device.type, enabled=False):  # positions need all 32 bits
        upsampled: Tensor = weights @ maps.float() @ weights.T
    return upsampled


@functools.cache
def _upsampling(source: int, target: int, mode: str, device: torch.device) -> Tensor:
    """Return the weights of upsampling along one axis, `(target, source)`."""
    with torch.inference_mode(False):
        cells = torch.eye(source, device=device)[None, None]
        return F.interpolate(cells, (target, source), mode=mode, align_corners=False)[0, 0]


@functools.cache
def _side_weights(device: torch.device) -> Tensor:
    """Return landmark weights `(2, L)` for cells above and below the line between the lips."""
    with torch.inference_mode(False):
        sides = torch.ones(2, NUM_LANDMARKS)
        sides[0, LOWER_LIP_ONLY] = 0
        sides[1, UPPER_LIP_ONLY] = 0
        return sides.to(device)


def mouth_gap(points: Tensor, size: int = 128) -> Tensor:
    """Return a mask of the open mouth, `(B, 1, size, size)`: 1 between parted lips, else 0."""
    upper, lower, within = _lip_lines(points, size)
    y = _axis_px(size, points.device)[:, None]
    under = ((y - upper[:, None]) / _EDGE_PX + 0.5).clamp(0, 1)
    over = ((lower[:, None] - y) / _EDGE_PX + 0.5).clamp(0, 1)
    parted = ((lower - upper) / _EDGE_PX).clamp(0, 1) * within
    return (under * over * parted[:, None])[:, None]


def _lip_lines(points: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inner edges of the lips in each column, and a mask of the mouth's columns.

    Returns:
        y coordinates of upper and lower lip in pixels of a 256x256 frame, `(B, size)`; and 1 for
        columns inside the mouth, 0 outside.
    """
    columns = _axis_px(size, points.device)
    edges = []
    for inner in (INNER_UPPER_LIP, INNER_LOWER_LIP):
        x, y = (128 * points[:, INNER_CORNERS + inner]).unbind(-1)
        near = _gaussian(columns - x[..., None], _LIP_PX)  # (B, points, columns)
        edges.append((near * y[..., None]).sum(1) / near.sum(1))
    ends = 128 * points[:, INNER_CORNERS, 0]
    left, right = ends.amin(1, keepdim=True), ends.amax(1, keepdim=True)
    within = ((columns - left) / _LIP_PX).clamp(0, 1) * ((right - columns) / _LIP_PX).clamp(0, 1)
    return edges[0], edges[1], within


@functools.cache
def _axis_px(size: int, device: torch.device) -> Tensor:
    """Return the centres of cells in pixels of a 256x256 frame, from its middle."""
    with torch.inference_mode(False):
        return ((torch.arange(size, device=device) + 0.5) / size * 2 - 1) * 128


def proximity_map(points: Tensor, size: int, width_px: float) -> Tensor:
    """Return a soft map `(B, 1, size, size)` that is 1 near points `(B, L, 2)` and 0 far from them.

    `width_px` is in pixels of a 256x256 frame.
    """
    return proximity_maps(points.new_ones(1, points.shape[1]), points, size, width_px)


def proximity_maps(groups: Tensor, points: Tensor, size: int, width_px: float) -> Tensor:
    """Return a `proximity_map` for each group, `(G, L)` of 0 and 1, as `(B, G, size, size)`."""
    columns, rows = _gaussians(points, size, (width_px,))
    grouped = (groups[:, None] * rows[:, None]).flatten(1, 2)  # (B, G size, L)
    proximity: Tensor = (grouped @ columns).clamp(max=1).unflatten(1, (-1, size))
    return proximity


def _gaussians(points: Tensor, size: int, widths_px: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the factors of Gaussians around points `(B, L, 2)`, repeated for each of K widths.

    Returns:
        The factors along x, `(B, K L, size)`, and along y, `(B, size, K L)`.
    """
    axis = _axis_px(size, points.device)
    x, y = (128 * points).unbind(-1)
    across, down = axis - x[..., None], axis[:, None] - y[:, None]
    columns = torch.cat([_gaussian(across, width_px) for width_px in widths_px], 1)
    return columns, torch.cat([_gaussian(down, width_px) for width_px in widths_px], 2)


def _gaussian(distance_px: Tensor, width_px: float) -> Tensor:
    """Return the Gaussian of distances, clamped at 4e-18.

    The clamp prevents denormal numbers in products of two, which take seven times as long
    (docs/log.md).
    """
    return torch.exp((distance_px * distance_px * (-0.5 / width_px**2)).clamp(min=-40))


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample an image `(B, C, H, W)` at the identity grid plus `flow`, `(B, 2, h, w)`.

    Interpolation blurs: `bicubic` retains a quarter more of the sharpness than `bilinear`, at three
    times the cost (docs/log.md).
    """
    height, width = image.shape[-2:]
    if flow.shape[-2:] != (height, width):
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
    return sample_at(image, sampling_grid(flow), mode)


def sampling_grid(flow: Tensor) -> Tensor:
    """Return the grid for `grid_sample`, `(B, h, w, 2)`: identity plus flow."""
    x, y = flow.unbind(1)
    x = x + _axis_px(x.shape[2], x.device) / 128
    y = y + (_axis_px(y.shape[1], y.device) / 128)[:, None]
    return torch.stack([x, y], -1)


def sample_at(image: Tensor, grid: Tensor, mode: str = "bilinear") -> Tensor:
    """Sample `(B, C, H, W)` at a grid `(B, h, w, 2)`; beyond the border the border is repeated."""
    return F.grid_sample(image, grid, mode, padding_mode="border", align_corners=False)
