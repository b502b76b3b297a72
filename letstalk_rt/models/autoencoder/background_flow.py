"""The background flow: how hair, neck, shoulders and background move, on a coarse grid.

Landmarks describe the face only. So a part of the latent is a small flow, which is added to the
landmarks' flow where no landmark is near. For training it is measured between the portrait and a
frame by optical flow; the background flow of a portrait is zero.

Source of the optical flow: dense inverse search, arXiv:1603.03590, as implemented in OpenCV.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from letstalk_rt.models.geometry.landmark_warp import proximity_map, upsample, warp

CELLS = 8
"""Height and width of the grid, in cells."""

CHANNELS = 8
"""Channels of the latent: two offsets for each of the 2x2 grid cells at one latent position."""

SIZE = CHANNELS * 4 * 4

GAIN = 20.0
"""Factor from flow to latent, which gives the latent about unit variance."""

_NEAR_PX = 12.0
"""Nearer than about this to a landmark, the landmarks' flow is used alone."""


def flow_from_latent(latent: Tensor, points: Tensor, size: int = 128) -> Tensor:
    """Return the background flow, which is added to the landmarks' flow.

    Args:
        latent: the background part of the latent, `(B, 8, 4, 4)`, minus that of the portrait.
        points: landmarks of the frame, `(B, L, 2)`.
        size: height and width of the flow, in cells.

    Returns:
        Offsets as `face_flow` returns them, `(B, 2, size, size)`.
    """
    grid = rearrange(latent.float(), "b (c i j) h w -> b c (h i) (w j)", i=2, j=2) / GAIN
    return upsample(grid, size, "bicubic") * _distance_mask(points, size)


@torch.no_grad()
def measure_background_flow(
    frames: Tensor, portraits: Tensor, points: Tensor, coarse: Tensor
) -> Tensor:
    """Measure the background flow from portraits to frames, as a part of the latent.

    The flow of a cell is set to zero where it does not reduce the error of the warped portrait:
    disocclusions and occlusions have no flow.

    Args:
        frames: `(B, 3, 256, 256)` in [-1, 1].
        portraits: the portrait of each frame, likewise.
        points: landmarks of the frames, `(B, L, 2)`.
        coarse: flow by landmarks alone, see `face_flow`.

    Returns:
        The background part of the latents, `(B, 8, 4, 4)`.
    """
    warped = warp(portraits.float(), coarse)
    flow = _optical_flow(frames, warped)
    mask = _distance_mask(points, frames.shape[-1])
    share = F.adaptive_avg_pool2d(mask, CELLS)
    grid = F.adaptive_avg_pool2d(flow * mask, CELLS) / (share + 1e-2)
    latent = _fold(grid)
    better = warp(portraits.float(), coarse + flow_from_latent(latent, points, coarse.shape[-1]))
    helps = _error(better, frames) < _error(warped, frames)
    return _fold(grid * helps)


def _fold(grid: Tensor) -> Tensor:
    return GAIN * rearrange(grid, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)


def _distance_mask(points: Tensor, size: int) -> Tensor:
    """Return a soft mask `(B, 1, size, size)`: 1 far from all landmarks, 0 in the face."""
    return 1 - proximity_map(points.float(), size, _NEAR_PX)


def _error(output: Tensor, target: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(((output - target) ** 2).mean(1, keepdim=True), CELLS)


def _optical_flow(frames: Tensor, warped: Tensor) -> Tensor:
    """Return the offset in `warped` of each pixel of `frames`, `(B, 2, H, W)` in [-1, 1] units."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    begin = np.zeros((*frames.shape[-2:], 2), np.float32)
    flows = [
        search.calc(_grey(a), _grey(b), begin.copy()) for a, b in zip(frames, warped, strict=True)
    ]
    flow = torch.from_numpy(np.stack(flows)).permute(0, 3, 1, 2).to(frames.device)
    return flow / (frames.shape[-1] / 2)


def _grey(image: Tensor) -> np.ndarray:
    return ((image.float().mean(0) + 1) * 127.5).clamp(0, 255).byte().cpu().numpy()
