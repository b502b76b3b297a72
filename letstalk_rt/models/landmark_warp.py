"""A dense warp from sparse face landmarks, with nothing learned.

Source: kernel regression of displacements (Nadaraya, 1964; Watson, 1964).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_FAR_WEIGHT = 1e-3
_REST = 2e-3
"""Weight of "no displacement": far from the face the flow fades to zero."""


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
