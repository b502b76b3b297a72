"""Cuts aligned crops from frames, and blends what was painted in them back.

Only the part of a frame that a crop covers is touched.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.mouth_crop import CropTransform, resample


def cut_crop(frame: Tensor, transform: CropTransform, size: tuple[int, int]) -> Tensor:
    """Cut a crop from a frame `(H, W, 3)` uint8: `(1, 3, *size)` in [-1, 1]."""
    rows, columns = _extent(frame, transform, (0, 0, *size))
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
    rows, columns = _extent(frame, transform, _visible_part(alpha[0, 0]))
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


def _visible_part(alpha: Tensor) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of what is above 0 in `(h, w)`, with a margin."""
    down, across = (alpha > 0).any(1).nonzero(), (alpha > 0).any(0).nonzero()
    if not len(down):
        return 0, 0, *alpha.shape
    return int(down[0]) - 1, int(across[0]) - 1, int(down[-1]) + 2, int(across[-1]) + 2


def _extent(
    frame: Tensor, transform: CropTransform, part: tuple[int, int, int, int]
) -> tuple[slice, slice]:
    """Return the rows and columns of a frame that a part of a crop covers.

    Args:
        frame: `(H, W, 3)`.
        transform: from the frame to the crop.
        part: top, left, bottom and right in the crop.
    """
    top, left, bottom, right = part
    corners = transform.shift.new_tensor(
        [[[left, top], [right, top], [left, bottom], [right, bottom]]]
    )
    found = transform.inverse()(corners.float())[0]
    low, high = found.amin(0).floor().tolist(), found.amax(0).ceil().tolist()
    height, width = frame.shape[:2]
    rows = slice(min(max(int(low[1]), 0), height - 1), max(min(int(high[1]), height), 1))
    columns = slice(min(max(int(low[0]), 0), width - 1), max(min(int(high[0]), width), 1))
    return rows, columns


def _from_part(transform: CropTransform, rows: slice, columns: slice) -> CropTransform:
    """Return the transform for pixels counted from the corner of a part of the frame."""
    corner = transform.shift.new_tensor([[[columns.start, rows.start]]])
    return CropTransform(transform.rotation, transform(corner)[:, 0])
