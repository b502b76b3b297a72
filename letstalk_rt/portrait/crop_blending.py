"""Cuts aligned crops from frames, and blends what was painted in them back.

Only the part of a frame that a crop covers is touched. On a CPU, OpenCV resamples it in 8-bit
integers; torch, which is used if frames are on a GPU, takes twice as long there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.mouth_crop import CropTransform, resample

_LINEAR = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def cut_crop(frame: Tensor, transform: CropTransform, size: tuple[int, int]) -> Tensor:
    """Cut a crop from a frame `(H, W, 3)` uint8: `(1, 3, *size)` in [-1, 1]."""
    if frame.device.type == "cpu":
        pixels = _cut_pixels(frame.numpy(), _Similarity.of(transform), size)
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    rows, columns = _Similarity.of(transform).extent(frame.shape, (0, 0, *size))
    part = frame[rows, columns].permute(2, 0, 1)[None].float() / 127.5 - 1
    transform = _from_part(transform, rows, columns)
    factor = int(1 / float(transform.scale))
    if factor > 1:  # average first: sampling single pixels of a larger frame would flicker
        part = F.avg_pool2d(part, factor, ceil_mode=True)
        transform = CropTransform(transform.rotation * factor, transform.shift)
    return resample(part, transform, size)


def blend_crop(
    frame: Tensor, colours: Tensor, alpha: Tensor, transform: CropTransform, fine: int
) -> None:
    """Blend what was painted into a frame, in place.

    Args:
        frame: `(H, W, 3)` uint8.
        colours: `(1, 3, h, w)` in [-1, 1].
        alpha: their opacity, `(1, 1, h, w)`.
        transform: from pixels of the frame to those of the colours.
        fine: how many of these there are per pixel of the crop, along each side.
    """
    if frame.device.type == "cpu":
        _blend_pixels(
            frame.numpy(), colours[0], alpha[0, 0].numpy(), _Similarity.of(transform), fine
        )
        return
    visible = _visible_part(alpha[0, 0].numpy(force=True))
    rows, columns = _Similarity.of(transform).extent(frame.shape, visible)
    part = frame[rows, columns]
    painted = torch.cat([colours, alpha], 1)
    transform = _from_part(transform, rows, columns)
    if float(transform.scale) > fine - 0.5:  # the frame has fewer pixels: average first, as above
        painted = F.avg_pool2d(painted, fine)
        transform = transform.scaled(1 / fine)
    size = (part.shape[0], part.shape[1])
    shown = resample(painted, transform.inverse(), size)[0].permute(1, 2, 0)
    pixels = torch.lerp(part.float(), shown[..., :3] * 127.5 + 127.5, shown[..., 3:])
    part.copy_((pixels + 0.5).clamp_(0, 255))


def _cut_pixels(frame: np.ndarray, to_crop: "_Similarity", size: tuple[int, int]) -> np.ndarray:
    """Return a crop of a frame `(H, W, 3)` uint8: `(*size, 3)` uint8."""
    rows, columns = to_crop.extent(frame.shape, (0, 0, *size))
    part, to_crop = frame[rows, columns], to_crop.seen_from(columns.start, rows.start)
    factor = int(1 / to_crop.scale)
    if factor > 1:  # average first: sampling single pixels of a larger frame would flicker
        part, to_crop = _averaged(part, factor), to_crop.after_averaging(factor)
    return _warped(part, to_crop, size)


def _blend_pixels(
    frame: np.ndarray, colours: Tensor, alpha: np.ndarray, to_crop: "_Similarity", fine: int
) -> None:
    """Blend colours `(3, h, w)` in [-1, 1] of an opacity `(h, w)` into a frame, in place."""
    top, left, bottom, right = visible = _visible_part(alpha)
    rows, columns = to_crop.extent(frame.shape, visible)
    part, to_part = frame[rows, columns], to_crop.seen_from(columns.start, rows.start).inverse
    to_part = to_part.seen_from(left, top)
    bytes_ = (colours[:, top:bottom, left:right].float() * 127.5 + 128).clamp_(0, 255).byte()
    painted, alpha = bytes_.permute(1, 2, 0).contiguous().numpy(), alpha[top:bottom, left:right]
    if to_crop.scale > fine - 0.5:  # the frame has fewer pixels: average first, as above
        painted, alpha = _averaged(painted, fine), _averaged(alpha, fine)
        to_part = to_part.after_averaging(fine)
    size = (part.shape[0], part.shape[1])
    opacity = _warped(np.ascontiguousarray(alpha), to_part, size, cv2.BORDER_CONSTANT)
    shown = _warped(painted, to_part, size)
    part[:] = cv2.blendLinear(shown, np.ascontiguousarray(part), opacity, 1 - opacity)


@dataclass(frozen=True)
class _Similarity:
    """One transform of `CropTransform`, in numbers: a vector is turned and scaled, then moved."""

    cos: float
    sin: float
    x: float
    y: float

    @classmethod
    def of(cls, transform: CropTransform) -> "_Similarity":
        (cos, sin), (x, y) = transform.rotation[0].tolist(), transform.shift[0].tolist()
        return cls(cos, sin, x, y)

    @property
    def scale(self) -> float:
        return math.hypot(self.cos, self.sin)

    @property
    def inverse(self) -> "_Similarity":
        square = self.cos**2 + self.sin**2
        cos, sin = self.cos / square, -self.sin / square
        return _Similarity(cos, sin, sin * self.y - cos * self.x, -sin * self.x - cos * self.y)

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self.cos * x - self.sin * y + self.x, self.sin * x + self.cos * y + self.y

    def seen_from(self, x: float, y: float) -> "_Similarity":
        """Return the transform of points that are counted from another origin."""
        return _Similarity(self.cos, self.sin, *self(x, y))

    def after_averaging(self, factor: float) -> "_Similarity":
        """Return the transform of points in an image whose pixels are larger by a factor."""
        return _Similarity(self.cos * factor, self.sin * factor, self.x, self.y)

    def extent(self, shape: Sequence[int], part: tuple[int, int, int, int]) -> tuple[slice, slice]:
        """Return the rows and columns of a frame that a part of a crop covers.

        Args:
            shape: of the frame, `(H, W, 3)`.
            part: top, left, bottom and right in the crop.
        """
        top, left, bottom, right = part
        back = self.inverse
        corners = [back(x, y) for x in (left, right) for y in (top, bottom)]
        xs, ys = zip(*corners, strict=True)
        return _within(ys, shape[0]), _within(xs, shape[1])


def _within(values: Sequence[float], side: int) -> slice:
    """Return the pixels that values span, at least one, of a side of an image."""
    low, high = math.floor(min(values)), math.ceil(max(values))
    return slice(min(max(low, 0), side - 1), max(min(high, side), 1))


def _visible_part(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of what is above 0 in `(h, w)`, with a margin."""
    shown = alpha > 0
    down, across = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    if not len(down):
        return 0, 0, *alpha.shape
    top, left = max(int(down[0]) - 1, 0), max(int(across[0]) - 1, 0)
    return top, left, int(down[-1]) + 2, int(across[-1]) + 2


def _averaged(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Return pixels averaged over squares; what is missing of the last ones is repeated."""
    rows, columns = (math.ceil(side / factor) for side in pixels.shape[:2])
    below, right = rows * factor - pixels.shape[0], columns * factor - pixels.shape[1]
    whole = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA))


def _warped(
    pixels: np.ndarray,
    to: _Similarity,
    size: tuple[int, int],
    border: int = cv2.BORDER_REPLICATE,
) -> np.ndarray:
    """Return pixels `(h, w)` or `(h, w, C)` seen through a transform, `(H, W)` or `(H, W, C)`."""
    back = to.inverse
    # OpenCV counts from the middle of the first pixel, a transform from its corner.
    x, y = back(0.5, 0.5)
    matrix = np.array([[back.cos, -back.sin, x - 0.5], [back.sin, back.cos, y - 0.5]])
    shape = size[1], size[0]
    return np.asarray(cv2.warpAffine(pixels, matrix, shape, flags=_LINEAR, borderMode=border))


def _from_part(transform: CropTransform, rows: slice, columns: slice) -> CropTransform:
    """Return the transform for pixels counted from the corner of a part of the frame."""
    corner = transform.shift.new_tensor([[[columns.start, rows.start]]])
    return CropTransform(transform.rotation, transform(corner)[:, 0])
