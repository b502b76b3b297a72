"""Crops of eyes that are aligned by their corners, and the lines of the lids in them.

The corners of an eye stay in place while the lids move, so a lid that was painted once fits in all
frames. Coordinates in a crop are x and y in pixels, counted from its upper left corner. The crop of
the left eye is mirrored, so that every crop shows a right eye.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import landmark_indices
from letstalk_rt.models.geometry.mouth_crop import CropTransform, height_at, pixel_centres

EYE_HEIGHT, EYE_WIDTH = 64, 80
EYE_SIZE = (EYE_HEIGHT, EYE_WIDTH)
EYE_CENTRE = (40.0, 34.0)
"""Position of the middle between the corners of an eye; there is more space above, for the brow."""

CORNER_DISTANCE_PX = 40.0

UPPER_LIDS = (
    landmark_indices((33, 246, 161, 160, 159, 158, 157, 173, 133)),
    landmark_indices((362, 398, 384, 385, 386, 387, 388, 466, 263)),
)
LOWER_LIDS = (
    landmark_indices((33, 7, 163, 144, 145, 153, 154, 155, 133)),
    landmark_indices((362, 382, 381, 380, 374, 373, 390, 249, 263)),
)
"""The lids of the right and of the left eye with both corners, from left to right in an image."""

CLOSED_AT = 0.8
"""Where closed lids meet, from the open upper lid (0) to the lower one (1): the median of 750
frames of training clips; half of them are between 0.75 and 0.85."""

_HALF_WIDTH_PX = 25.0  # of what a lid changes
_ABOVE_PX, _TOP_FADE_PX = 12.0, 6.0  # how far above the open upper lid, and over how much it fades


@dataclass(frozen=True)
class LidEdges:
    """The edges of the lids in B crops, in each column.

    Attributes:
        upper: heights of the upper lids in pixels of the crops, `(B, W)`.
        lower: those of the lower lids, `(B, W)`.
    """

    upper: Tensor
    lower: Tensor

    @property
    def closed(self) -> Tensor:
        """Where the lids would meet, `(B, W)`."""
        return torch.lerp(self.upper, self.lower, CLOSED_AT)


def align_eyes(points: Tensor, eye: int) -> CropTransform:
    """Return the transforms from frames to crops of one eye; a left eye is not mirrored by them.

    Args:
        points: landmarks `(B, L, 2)`.
        eye: 0 for the right eye, which is left in the image, 1 for the left one.
    """
    points = points.float()
    left, right = points[:, UPPER_LIDS[eye][0]], points[:, UPPER_LIDS[eye][-1]]
    along = right - left
    square = along.square().sum(-1, keepdim=True).clamp(min=1e-6)
    rotation = CORNER_DISTANCE_PX * along * along.new_tensor([1.0, -1.0]) / square
    turned = CropTransform(rotation, torch.zeros_like(left))
    middle = turned(((left + right) / 2)[:, None])[:, 0]
    centre = (EYE_WIDTH - EYE_CENTRE[0] if eye else EYE_CENTRE[0], EYE_CENTRE[1])
    return turned.shifted(middle.new_tensor(centre) - middle)


def lid_edges(points: Tensor, eye: int, resolution: int = 1) -> LidEdges:
    """Return the edges of the lids in crops, mirrored for a left eye.

    Args:
        points: landmarks `(B, L, 2)` in pixels of crops that are not mirrored.
        eye: which eye.
        resolution: columns per pixel of a crop.
    """
    columns = pixel_centres(EYE_WIDTH, resolution, points)
    upper, lower = (height_at(points[:, lids[eye]], columns) for lids in (UPPER_LIDS, LOWER_LIDS))
    lower = lower.maximum(upper)
    if eye:
        upper, lower = upper.flip(-1), lower.flip(-1)
    return LidEdges(upper, lower)


def lid_mask(upper: Tensor, closed: Tensor, below_px: float = 8.0) -> Tensor:
    """Return where a closed lid changes the picture, with soft edges: `(B, 1, r H, r W)`.

    Args:
        upper: heights of the open upper lid in each column, `(B, r W)`, in pixels of the crop.
        closed: heights of the line of lashes, likewise.
        below_px: how far below that line it reaches.
    """
    resolution = upper.shape[-1] // EYE_WIDTH
    y = pixel_centres(EYE_HEIGHT, resolution, upper)[:, None]
    x = pixel_centres(EYE_WIDTH, resolution, upper)
    across = (1 - ((x - EYE_CENTRE[0]) / _HALF_WIDTH_PX).abs() ** 4).clamp(0, 1)
    above = ((y - (upper[:, None] - _ABOVE_PX)) / _TOP_FADE_PX).clamp(0, 1)
    below = ((closed[:, None] + below_px - y) / (0.6 * below_px)).clamp(0, 1)
    return (above * below * across)[:, None]
