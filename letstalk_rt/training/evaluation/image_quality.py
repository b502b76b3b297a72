"""Figures of image quality: SSIM, sharpness, and seam flicker."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.interfaces import Autoencoder
from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter
from letstalk_rt.models.geometry.landmarks import SUBSET
from letstalk_rt.training.data.dataset import Clip, to_unit
from letstalk_rt.training.evaluation.reconstruction import (
    face_slices,
    frames_tensor,
    mouth_box,
    psnr,
    reconstruct,
    sharpness,
)


def ssim_map(generated: Tensor, true: Tensor) -> Tensor:
    """Return the map of structural similarity of the grey images, `(B, 1, H - 10, W - 10)`.

    Args:
        generated: `(B, 3, H, W)` in [-1, 1].
        true: as `generated`.

    Source: Wang et al. 2004: Gaussian window of 11 px, sigma 1.5, K1 0.01, K2 0.03.
    """
    steps = torch.arange(11, dtype=torch.float32) - 5
    line = torch.exp(-(steps**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    a, b = generated.float().mean(1, keepdim=True), true.float().mean(1, keepdim=True)
    parts = torch.cat([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = F.conv2d(parts, window).chunk(5)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    shared = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    spread = (mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2)
    return shared / spread


@torch.no_grad()
def ssim_of(
    model: Autoencoder, clip: Clip, every: int = 12, *, painter: MouthPainter | None = None
) -> tuple[float, float] | None:
    """Return SSIM of the frame and of the mouth for a reconstructed clip; None if it is short."""
    chosen = list(range(every, clip.num_frames, every))
    if not chosen:
        return None
    generated = reconstruct(model, clip, chosen, painter=painter)
    found = ssim_map(generated, frames_tensor(clip, chosen))
    mouths = []
    for place, index in zip(found, chosen, strict=True):
        points = to_unit(clip.landmarks[index][list(SUBSET)], clip.size_px)
        left, top, right, bottom = mouth_box(points, clip.size_px)
        mouths.append(place[:, max(top - 5, 0) : bottom - 5, max(left - 5, 0) : right - 5].mean())
    return float(found.mean()), float(torch.stack(mouths).mean())


def evaluate_ssim(
    model: Autoencoder, clips: list[Clip], *, painter: MouthPainter | None = None
) -> dict[str, float]:
    """Return SSIM of reconstruction through the latent, portrait = first frame, mean of clips."""
    found = (ssim_of(model, clip, painter=painter) for clip in clips)
    whole, mouth = np.array([row for row in found if row is not None]).mean(0)
    return {"ssim": float(whole), "ssim_mouth": float(mouth)}


def face_sharpness(frames: np.ndarray) -> float:
    """Return the mean absolute Laplacian of the face in frames of a clip `(T, S, S, 3)`."""
    return float(sharpness(_tensor(frames[:, *face_slices(frames.shape[1])])).mean())


def likeness_to_true(generated: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return PSNR in dB and SSIM of whole frames `(T, S, S, 3)` uint8; NaN without frames."""
    count = min(len(generated), len(true))
    if count == 0:
        return float("nan"), float("nan")
    a, b = _tensor(generated[:count]), _tensor(true[:count])
    return float(psnr(a, b).mean()), float(ssim_map(a, b).mean())


def _tensor(frames: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(np.array(frames))  # a copy: frames of clips are maps of files
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def seam_flicker(frames: np.ndarray, window: int, lookahead: int) -> float:
    """Return the change between frames at seams over the change within windows.

    Args:
        frames: `(T, H, W, 3)` uint8, from the first frame of a session's speech on.
        window: Frames per window.
        lookahead: Frames of the session before the first of `frames`.

    Returns:
        1 without visible seams; NaN for a still or very short video.
    """
    change = np.array(
        [np.abs(b.astype(np.int16) - a).mean() for a, b in zip(frames, frames[1:], strict=False)]
    )
    at_seam = (np.arange(1, len(frames)) + lookahead) % window == 0
    if not at_seam.any() or at_seam.all() or change[~at_seam].mean() == 0:
        return float("nan")
    return float(change[at_seam].mean() / change[~at_seam].mean())
