"""Moves the brows of composited frames, at the sharpness of the canvas."""

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.brow_flow import brow_extent, brow_flow

_LEAST_MOTION = 2e-3
"""Motion in widths of an eye below which brows are left as they are: a tenth of a pixel."""


def move_brows(frames: Tensor, points: Tensor, motion: Tensor) -> None:
    """Move the brows of frames, in place.

    Args:
        frames: `(N, H, W, 3)` uint8.
        points: their landmarks, `(N, L, 2)` in their pixels.
        motion: `(N, 3)`: see `BROW_MOTION`.
    """
    for frame, at, moved in zip(frames, points, motion, strict=True):
        if float(moved.abs().amax()) >= _LEAST_MOTION:
            _move(frame, at, moved)


def _move(frame: Tensor, points: Tensor, motion: Tensor) -> None:
    height, width = frame.shape[:2]
    left, top, right, bottom = brow_extent(points)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return
    part = frame[top:bottom, left:right]
    x = torch.arange(left, right, device=frame.device) + 0.5
    y = torch.arange(top, bottom, device=frame.device) + 0.5
    positions = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
    source = positions + brow_flow(points, motion, positions)
    corner, size = source.new_tensor([left, top]), source.new_tensor([len(x), len(y)])
    grid = ((source - corner) / size * 2 - 1)[None]
    pixels = part.permute(2, 0, 1)[None].float()
    moved = F.grid_sample(pixels, grid, "bicubic", padding_mode="border", align_corners=False)
    part.copy_((moved[0].permute(1, 2, 0) + 0.5).clamp_(0, 255))
