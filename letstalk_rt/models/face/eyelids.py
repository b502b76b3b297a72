"""Blinks: draws the upper eyelid of a decoded face down over the eye.

The decoder warps the portrait on a coarse grid, in which an eye is one cell high, and the portrait
shows no closed lid. So a blink is drawn in the frame: in each column the skin between the crease
and the upper lid is stretched down to the new edge of the lid, over an eye that does not move.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from letstalk_rt.models.geometry.eye_crop import LOWER_LIDS, UPPER_LIDS

_CREASE = 1.3  # height of the crease above the upper lid, over the height of the eye
# In pixels of a 256x256 frame:
_LIFT_PX = 1.0  # distance of the skin above the landmarks, on which the lashes are
_OVERLAP_PX = 0.3  # overlap of a closed lid with the lower lid
_LASH_WIDTH_PX = 0.9
_LASH_DARKNESS = 0.45


def close_eyes(
    frames: Tensor, points: Tensor, eye_closures: Sequence[float], *, black: float = -1.0
) -> None:
    """Close the eyes of some frames, in place.

    Args:
        frames: `(N, 3, H, W)` in [-1, 1], or another range from `black`.
        points: landmarks of each frame, `(N, L, 2)` in [-1, 1].
        eye_closures: eye closure of each frame: 0 leaves the eyes unchanged, 1 closes them.
        black: value of black.
    """
    assert len(eye_closures) == len(frames) == len(points), (len(eye_closures), len(frames))
    size = frames.shape[-1]
    for frame, at, closure in zip(frames, points, eye_closures, strict=True):
        if closure > 0:
            _close(frame, ((at.float().cpu().numpy() + 1) * size - 1) / 2, closure, black)


def _close(frame: Tensor, points: np.ndarray, closure: float, black: float) -> None:
    scale = frame.shape[-1] / 256
    upper, lower = lid_lines(points, frame.shape[-1])
    columns = np.flatnonzero(lower > upper)
    if not columns.size:
        return  # the eyes are hidden or already closed
    upper, height = upper[columns], (lower - upper)[columns]
    tallest = float(height.max())
    near = np.clip(height / (0.35 * tallest), 0, 1)  # the corners of the eye do not move
    first = max(0, int(upper.min() - (_CREASE + 1) * tallest))
    last = min(frame.shape[-2], int((upper + height).max() + 4 * scale))
    if last - first < 3:
        return  # outside the frame
    crease, skin = upper - _CREASE * tallest * near, upper - scale * _LIFT_PX * near
    edge = skin + closure * (upper + height + scale * _OVERLAP_PX - skin)
    y = np.arange(first, last, dtype=np.float32)[:, None]
    stretched = crease + (y - crease) * (skin - crease) / np.maximum(edge - crease, 1e-3)
    source = np.where(y < crease, y, stretched)
    covered = np.clip(edge - y + 0.5, 0, 1)
    lash = _LASH_DARKNESS * closure * near * np.exp(-(((y - edge) / (scale * _LASH_WIDTH_PX)) ** 2))
    _draw(frame, columns, (first, last), source, covered, lash, black)


def _draw(
    frame: Tensor,
    columns: np.ndarray,
    rows: tuple[int, int],
    source: np.ndarray,
    covered: np.ndarray,
    lash: np.ndarray,
    black: float,
) -> None:
    """Sample rows at `source`, blend them in by `covered`, and darken by `lash`."""

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(frame.device)

    where = torch.from_numpy(columns).to(frame.device)
    old = frame[:, rows[0] : rows[1], where].float()
    at = tensor(np.clip(source - rows[0], 0, rows[1] - rows[0] - 1.001))
    above = at.long()
    share = at - above
    above = above.expand(3, -1, -1)
    skin = old.gather(1, above) * (1 - share) + old.gather(1, above + 1) * share
    new = torch.lerp(old, skin, tensor(covered))
    new = torch.lerp(new, new.new_tensor(black), tensor(lash))
    frame[:, rows[0] : rows[1], where] = new.to(frame.dtype)


def lid_lines(points: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the y coordinates of upper and lower lid in each column; equal outside the eyes.

    Args:
        points: landmarks, `(L, 2)` in pixels.
        width: width of the frame, in pixels.
    """
    x = np.arange(width, dtype=np.float32)
    upper, lower = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for above, below in zip(UPPER_LIDS, LOWER_LIDS, strict=True):
        top, bottom = (points[p][np.argsort(points[p, 0])] for p in (above, below))
        inside = (x >= top[0, 0]) & (x <= top[-1, 0])
        upper[inside] = np.interp(x[inside], top[:, 0], top[:, 1])
        low = np.interp(x[inside], bottom[:, 0], bottom[:, 1])
        lower[inside] = np.maximum(low, upper[inside])
    return upper, lower
