"""What moves around the face: hair, neck, shoulders and background, on a coarse grid.

Landmarks say where the face is and nothing of what is around it. So a part of the latent is a small
flow, added to the landmarks' own where no landmark is near. What is measured is how a frame differs
from its portrait; a portrait's own surroundings are at rest.

Source of the measured flow: dense inverse search, arXiv:1603.03590, by OpenCV.
"""

import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from letstalk_rt.models.geometry.landmark_warp import proximity_map, warp

CELLS = 8
"""Cells a side of the grid."""

CHANNELS = 8
"""Of the latent: two numbers for each of the 2x2 cells of the grid that one of its places holds."""

SIZE = CHANNELS * 4 * 4

GAIN = 20.0
"""Size at which they stand in the latent: it gives them about unit variance."""

_NEAR_PX = 12.0
"""Nearer than about this to a landmark, the landmarks know better."""


def flow_from_latent(latent: Tensor, points: Tensor, size: int = 128) -> Tensor:
    """Give the flow that the surroundings add to the landmarks' own.

    Args:
        latent: the surroundings' part, `(B, 8, 4, 4)`, less the portrait's.
        points: landmarks of the wanted picture, `(B, L, 2)`.
        size: cells a side.

    Returns:
        Offsets as of `face_flow`, `(B, 2, size, size)`.
    """
    grid = rearrange(latent.float(), "b (c i j) h w -> b c (h i) (w j)", i=2, j=2) / GAIN
    rise = _rise(size, grid.device)
    return (rise @ grid @ rise.T) * _away(points, size)


@functools.cache
def _rise(size: int, device: torch.device) -> Tensor:
    """Give the weights of cells in a bicubic enlargement along one axis, `(size, CELLS)`.

    As two small matrix products that is a tenth of the work.
    """
    with torch.inference_mode(False):
        cells = torch.eye(CELLS, device=device)[None, None]
        return F.interpolate(cells, (size, CELLS), mode="bicubic", align_corners=False)[0, 0]


@torch.no_grad()
def measure_background_flow(
    frames: Tensor, pictures: Tensor, points: Tensor, coarse: Tensor
) -> Tensor:
    """Measure how the surroundings of frames differ from their portraits', as a part of the latent.

    A cell whose flow does not bring the portrait nearer to the frame stays at rest: what appears or
    disappears has no flow.

    Args:
        frames: `(B, 3, 256, 256)` in [-1, 1].
        pictures: the portrait of each, likewise.
        points: landmarks of the frames, `(B, L, 2)`.
        coarse: flow by landmarks alone, see `face_flow`.

    Returns:
        `(B, 8, 4, 4)`.
    """
    moved = warp(pictures.float(), coarse)
    flow = _search(frames, moved)
    away = _away(points, frames.shape[-1])
    share = F.adaptive_avg_pool2d(away, CELLS)
    grid = F.adaptive_avg_pool2d(flow * away, CELLS) / (share + 1e-2)
    latent = _fold(grid)
    better = warp(pictures.float(), coarse + flow_from_latent(latent, points, coarse.shape[-1]))
    helps = _error(better, frames) < _error(moved, frames)
    return _fold(grid * helps)


def _fold(grid: Tensor) -> Tensor:
    return GAIN * rearrange(grid, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)


def _away(points: Tensor, size: int) -> Tensor:
    """Give where landmarks are far, `(B, 1, size, size)`: 1 there, 0 in the face."""
    return 1 - proximity_map(points.float(), size, _NEAR_PX)


def _error(made: Tensor, true: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(((made - true) ** 2).mean(1, keepdim=True), CELLS)


def _search(frames: Tensor, moved: Tensor) -> Tensor:
    """Give where in `moved` each pixel of `frames` is, `(B, 2, H, W)` offsets in [-1, 1] units."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    begin = np.zeros((*frames.shape[-2:], 2), np.float32)
    flows = [
        search.calc(_grey(a), _grey(b), begin.copy()) for a, b in zip(frames, moved, strict=True)
    ]
    flow = torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(frames.device)
    return flow / (frames.shape[-1] / 2)


def _grey(picture: Tensor) -> np.ndarray:
    return ((picture.float().mean(0) + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()
