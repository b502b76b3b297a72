"""The mouth compositor: inpaints the open mouths of a session's frames, on the canvas.

After the faces are composited, the mouth of each frame is cropped along its landmarks, the region
between the lips is inpainted by the mouth painter, and the result is blended back with soft edges.
Frames with closed lips are left as they are and take no time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, is_inner, masked_teeth
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_HEIGHT,
    CROP_WIDTH,
    CropTransform,
    align_mouths,
    aligned_centre,
    lip_gap_px,
    opening_mask,
    resample,
)

CLOSED_PX, OPEN_PX = 0.7, 1.7
"""Lip gaps in pixels of a crop: up to the first nothing is inpainted, and from the second on the
inpainted mouth is fully visible. A mouth is 68 px wide."""

TEETH_PX = 4.0
"""Lip gap from which a portrait's mouth shows its inside."""

_DILATION_PX = 1.0
"""How far inpainting extends onto the lips, which is the accuracy of landmarks."""


class MouthCompositor:
    """Inpaints the mouths of one session; prepared once per portrait, never changed by a frame.

    Args:
        painter: the network.
        portrait: `(H, W, 3)` uint8, on the painter's device.
        points: its landmarks, `(1, L, 2)` in its pixels.
        seed: determines the teeth of a portrait with closed lips.
    """

    def __init__(self, painter: MouthPainter, portrait: Tensor, points: Tensor, seed: int) -> None:
        self._painter = painter
        self._centre = aligned_centre(points)
        self._teeth = painter.banked_teeth(seed)
        transform = align_mouths(points, self._centre)
        crop_points = transform(points)
        if float(lip_gap_px(crop_points)) >= TEETH_PX:
            opening = opening_mask(crop_points)
            self._teeth = masked_teeth(_crop(portrait, transform), opening)

    def __call__(self, frames: Tensor, points: Tensor) -> None:
        """Inpaint the open mouths of frames.

        Args:
            frames: `(N, H, W, 3)` uint8, changed in place.
            points: landmarks `(N, L, 2)` in their pixels.
        """
        transform = align_mouths(points, self._centre)
        crop_points = transform(points)
        visibility = ((lip_gap_px(crop_points) - CLOSED_PX) / (OPEN_PX - CLOSED_PX)).clamp(0, 1)
        is_open = [i for i, share in enumerate(visibility.tolist()) if share > 0]
        if not is_open:
            return
        transform, crop_points = transform[is_open], crop_points[is_open]
        each = [(frames[i], transform[[n]]) for n, i in enumerate(is_open)]
        crops = torch.cat([_crop(frame, to_crop) for frame, to_crop in each])
        opening = opening_mask(crop_points, dilation_px=_DILATION_PX)
        inside = self._inpaint(crops, opening, crop_points)
        alpha = opening * visibility[is_open, None, None, None]
        for (frame, to_crop), colours, share in zip(each, inside, alpha, strict=True):
            _blend(frame, colours[None], share[None], to_crop)

    def _inpaint(self, crops: Tensor, opening: Tensor, points: Tensor) -> Tensor:
        """Return the inside of mouths, `(B, 3, 80, 112)`."""
        fits = is_inner(opening)
        inside = torch.empty_like(crops)
        for inner in (True, False):
            chosen = fits if inner else ~fits
            if count := int(chosen.sum()):
                teeth = self._teeth.expand(count, -1, -1, -1)
                inside[chosen] = self._painter(
                    crops[chosen], opening[chosen], points[chosen], teeth, inner=inner
                )
        return inside


def _crop(frame: Tensor, transform: CropTransform) -> Tensor:
    """Crop the mouth from a frame `(H, W, 3)` uint8: `(1, 3, 80, 112)` in [-1, 1]."""
    rows, columns = _extent(frame, transform)
    part = frame[rows, columns].permute(2, 0, 1)[None].float() / 127.5 - 1
    transform = _from_part(transform, rows, columns)
    factor = int(1 / float(transform.scale))
    if factor > 1:  # average first: sampling single pixels of a larger frame would flicker
        part = F.avg_pool2d(part, factor, ceil_mode=True)
        transform = CropTransform(transform.rotation * factor, transform.shift)
    return resample(part, transform)


def _blend(frame: Tensor, colours: Tensor, alpha: Tensor, transform: CropTransform) -> None:
    """Blend colours `(1, 3, 80, 112)` in [-1, 1] into a frame `(H, W, 3)` uint8, in place."""
    rows, columns = _extent(frame, transform, alpha)
    part = frame[rows, columns]
    to_frame = _from_part(transform, rows, columns).inverse()
    size = (part.shape[0], part.shape[1])
    painted = resample(torch.cat([colours, alpha], 1), to_frame, size)[0].permute(1, 2, 0)
    pixels = torch.lerp(part.float(), painted[..., :3] * 127.5 + 127.5, painted[..., 3:])
    part.copy_((pixels + 0.5).clamp_(0, 255))


def _extent(
    frame: Tensor, transform: CropTransform, alpha: Tensor | None = None
) -> tuple[slice, slice]:
    """Return the rows and columns of a frame that a crop covers, or the part where alpha > 0."""
    left, top, right, bottom = 0, 0, CROP_WIDTH, CROP_HEIGHT
    if alpha is not None:
        down, across = (alpha[0, 0] > 0).any(1).nonzero(), (alpha[0, 0] > 0).any(0).nonzero()
        if len(down):
            top, bottom = int(down[0]) - 1, int(down[-1]) + 2
            left, right = int(across[0]) - 1, int(across[-1]) + 2
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
