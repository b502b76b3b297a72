"""Moves the brows of composited frames, at the sharpness of the canvas.

The flow is smooth, so it is computed for cells of several pixels and enlarged. On a CPU the pixels
are moved by OpenCV in 8-bit integers, as in `compositor`.
"""

import cv2
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.brow_flow import brow_extent, brow_flow

_LEAST_MOTION = 2e-3
"""Motion in widths of an eye below which brows are left as they are: a tenth of a pixel."""

_CELL = 4
"""Pixels along each side of a cell."""


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
    height, width = part.shape[:2]
    down, across = (
        _CELL * (torch.arange(-1, -(-side // _CELL) + 1, device=frame.device) + 0.5)
        for side in (height, width)
    )
    cells = torch.stack([across.expand(len(down), -1), down[:, None].expand(-1, len(across))], -1)
    source = cells + brow_flow(points - points.new_tensor([left, top]), motion, cells)
    moved = _moved_pixels if frame.device.type == "cpu" else _moved
    part.copy_(moved(part, source))


def _moved_pixels(part: Tensor, source: Tensor) -> Tensor:
    """Return a part `(h, w, 3)` uint8, moved; `source`, `(h / 4 + 2, w / 4 + 2, 2)`, is where
    its cells come from, and those around it."""
    rows, columns = source.shape[:2]
    # OpenCV counts from the middle of the first pixel.
    fine = cv2.resize(source.numpy() - 0.5, (_CELL * columns, _CELL * rows))
    here = fine[_CELL : _CELL + part.shape[0], _CELL : _CELL + part.shape[1]]
    pixels = cv2.remap(part.numpy(), here, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(pixels)


def _moved(part: Tensor, source: Tensor) -> Tensor:
    """Return the same for a part on a GPU."""
    height, width = part.shape[:2]
    coarse = source.permute(2, 0, 1)[None]
    fine = F.interpolate(coarse, scale_factor=_CELL, mode="bilinear", align_corners=False)
    source = fine[0, :, _CELL : _CELL + height, _CELL : _CELL + width].permute(1, 2, 0)
    grid = (source / source.new_tensor([width, height]) * 2 - 1)[None]
    pixels = part.permute(2, 0, 1)[None].float()
    moved = F.grid_sample(pixels, grid, "bicubic", padding_mode="border", align_corners=False)
    return (moved[0].permute(1, 2, 0) + 0.5).clamp_(0, 255).to(torch.uint8)
