"""Crops of eyes that are aligned by their corners, and maps of what an eye shows in them.

The corners of an eye stay in place while lids and iris move. Coordinates in a crop are x and y in
pixels, counted from its upper left corner. The crop of the left eye is mirrored, so that every crop
shows a right eye, whose outer corner is on the left.
"""

import torch
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import landmark_indices
from letstalk_rt.models.geometry.mouth_crop import CropTransform, height_at, pixel_centres

EYE_HEIGHT, EYE_WIDTH = 48, 64
EYE_SIZE = (EYE_HEIGHT, EYE_WIDTH)
EYE_CENTRE = (32.0, 28.0)
"""Position of the middle between the corners; there is more space above, for the crease."""

CORNER_DISTANCE_PX = 40.0

EYE_POINTS = (
    landmark_indices(
        (33, 246, 161, 160, 159, 158, 157, 173, 133, 33, 7, 163, 144, 145, 153, 154, 155, 133)
        + (468, 469, 470, 471, 472)
    ),
    landmark_indices(
        (263, 466, 388, 387, 386, 385, 384, 398, 362, 263, 249, 390, 373, 374, 380, 381, 382, 362)
        + (473, 474, 475, 476, 477)
    ),
)
"""The landmarks of the right and the left eye: upper lid and lower lid from the outer to the inner
corner, both with the corners, then the middle of the iris and four points of its edge."""

UPPER_LID, LOWER_LID, IRIS = slice(0, 9), slice(9, 18), slice(18, 23)
LID_MIDDLE = 4  # of the nine points of a lid

EYE_MAPS = 4
"""Channels of `eye_maps`."""

EYE_MOTION = 4
"""Values of `moved_eyes`."""

CLOSED_AT = 0.8
"""Where closed lids meet, from the open upper lid (0) to the lower one (1): the median of 750
frames of training clips; half of them are between 0.75 and 0.85."""

_DISTANCE_PX = 12.0
_EDGE_PX = 1.0
_HALF_WIDTH_PX, _ABOVE_PX, _BELOW_PX = 28.0, 18.0, 14.0  # of what is painted
_FADE = 0.3  # of these


def align_eyes(points: Tensor, eye: int) -> CropTransform:
    """Return the transforms from frames to crops of one eye; a left eye is not mirrored by them.

    Args:
        points: landmarks `(B, L, 2)`.
        eye: 0 for the right eye, which is left in the image, 1 for the left one.
    """
    outer, inner = points.float()[:, [EYE_POINTS[eye][0], EYE_POINTS[eye][8]]].unbind(1)
    left, right = (inner, outer) if eye else (outer, inner)
    along = right - left
    square = along.square().sum(-1, keepdim=True).clamp(min=1e-6)
    rotation = CORNER_DISTANCE_PX * along * along.new_tensor([1.0, -1.0]) / square
    turned = CropTransform(rotation, torch.zeros_like(left))
    middle = turned(((left + right) / 2)[:, None])[:, 0]
    centre = (EYE_WIDTH - EYE_CENTRE[0] if eye else EYE_CENTRE[0], EYE_CENTRE[1])
    return turned.shifted(middle.new_tensor(centre) - middle)


def eye_points(points: Tensor, eye: int, to_crop: CropTransform) -> Tensor:
    """Return the landmarks of one eye in its crop, `(B, 23, 2)`, in the order of `EYE_POINTS`.

    Args:
        points: landmarks `(B, L, 2)` of frames.
        eye: which eye.
        to_crop: from these frames to crops that are not mirrored.
    """
    found = to_crop(points.float()[:, EYE_POINTS[eye]])
    if eye:
        found = torch.stack([EYE_WIDTH - found[..., 0], found[..., 1]], -1)
    return found


def closed_by(eyes: Tensor, closure: Tensor) -> Tensor:
    """Return eyes whose lids are closed further.

    Args:
        eyes: landmarks `(B, 23, 2)` in crops.
        closure: how far, `(B,)`: 0 leaves them unchanged, 1 closes them.
    """
    upper, lower = eyes[:, UPPER_LID], eyes[:, LOWER_LID]
    share = closure[:, None, None]
    meet = torch.lerp(upper, lower, CLOSED_AT)
    lids = [torch.lerp(upper, meet, share), torch.lerp(lower, meet, share)]
    return torch.cat([*lids, eyes[:, IRIS]], 1)


def moved_eyes(portrait: Tensor, motion: Tensor, eye: int) -> Tensor:
    """Return the landmarks of a portrait's eye that has moved, `(B, 23, 2)`.

    Args:
        portrait: its landmarks, `(23, 2)` in its crop.
        motion: how far upper lid and lower lid are lower than the portrait's, and how far the iris
            is further right and further down, in the image whose corners of the eye are level; over
            the width of the eye, `(B, 4)`.
        eye: which eye; crops of the left one are mirrored.
    """
    upper, lower, across, down = (CORNER_DISTANCE_PX * motion).unbind(-1)
    arch = (torch.linspace(0, torch.pi, 9, device=motion.device)).sin()
    still = torch.zeros_like(arch)
    lids = [
        torch.stack([still.expand(len(motion), -1), line[:, None] * arch], -1)
        for line in (upper, lower)
    ]
    iris = torch.stack([-across if eye else across, down], -1)[:, None].expand(-1, 5, -1)
    moved = portrait + torch.cat([*lids, iris], 1)
    middle = (moved[:, UPPER_LID, 1] + moved[:, LOWER_LID, 1]) / 2  # lids do not cross
    heights = [moved[:, UPPER_LID, 1].minimum(middle), moved[:, LOWER_LID, 1].maximum(middle)]
    y = torch.cat([*heights, moved[:, IRIS, 1]], 1)
    return torch.stack([moved[..., 0], y], -1)


def eye_motion(eyes: Tensor, eye: int) -> Tensor:
    """Return where lids and iris are, `(B, 4)`: the differences are those of `moved_eyes`.

    Args:
        eyes: landmarks `(B, 23, 2)` in crops.
        eye: which eye.
    """
    lids = [eyes[:, lid][:, LID_MIDDLE, 1] for lid in (UPPER_LID, LOWER_LID)]
    across, down = eyes[:, IRIS][:, 0].unbind(-1)
    return torch.stack([*lids, -across if eye else across, down], 1) / CORNER_DISTANCE_PX


OPENING = slice(2, 3)
"""The opening among the maps of `eye_maps`."""


def eye_maps(eyes: Tensor) -> Tensor:
    """Return maps of what eyes show: `(B, 4, 48, 64)`.

    Args:
        eyes: landmarks `(B, 23, 2)` in pixels of crops.

    Returns:
        The distance below the upper lid and below the lower lid, from -1 to 1 within 12 px; the
        opening; the iris, of which what the lids cover is fainter.
    """
    columns = pixel_centres(EYE_WIDTH, 1, eyes)
    y = pixel_centres(EYE_HEIGHT, 1, eyes)[:, None]
    upper, lower = (height_at(eyes[:, lid], columns)[:, None] for lid in (UPPER_LID, LOWER_LID))
    lower = lower.maximum(upper)
    opening = ((y - upper) / _EDGE_PX + 0.5).clamp(0, 1) * ((lower - y) / _EDGE_PX + 0.5).clamp(
        0, 1
    )
    opening = opening * ((lower - upper) / _EDGE_PX).clamp(0, 1)
    iris = eyes[:, IRIS]
    radius = (iris[:, 1:] - iris[:, :1]).norm(dim=-1).mean(1)[:, None, None]
    across, down = (columns - iris[:, :1, 0])[:, None], y - iris[:, :1, 1:]
    disc = (radius - torch.hypot(across, down) + 0.5).clamp(0, 1)
    below = [((y - line) / _DISTANCE_PX).clamp(-1, 1) for line in (upper, lower)]
    return torch.stack([*below, opening, disc * (0.2 + 0.8 * opening)], 1)


def iris_flow(portrait: Tensor, wanted: Tensor) -> Tensor:
    """Return how far from each pixel of a wanted eye's iris the portrait shows it, px.

    A painter that had to find the way of an iris by itself would show a quarter of it.

    Args:
        portrait: landmarks of the portrait's eye, `(B, 23, 2)` or `(1, 23, 2)`.
        wanted: those of the eye to be shown, `(B, 23, 2)`.

    Returns:
        `(B, 2, 48, 64)`; 0 beside the iris.
    """
    centre, before = wanted[:, IRIS][:, 0], portrait[:, IRIS][:, 0]
    radius = (wanted[:, IRIS][:, 1:] - centre[:, None]).norm(dim=-1).mean(1)[:, None, None]
    x = pixel_centres(EYE_WIDTH, 1, wanted)
    y = pixel_centres(EYE_HEIGHT, 1, wanted)[:, None]
    distance = torch.hypot(x - centre[:, None, :1], y - centre[:, None, 1:])
    inside = (radius - distance + 1).clamp(0, 1)
    flow: Tensor = (before - centre)[:, :, None, None] * inside[:, None]
    return flow


def painted_part(like: Tensor, resolution: int = 1) -> Tensor:
    """Return how much of each pixel of a crop is painted, `(1, 1, r 48, r 64)`, with soft edges."""
    y = pixel_centres(EYE_HEIGHT, resolution, like)[:, None] - EYE_CENTRE[1]
    x = pixel_centres(EYE_WIDTH, resolution, like) - EYE_CENTRE[0]
    reach = torch.where(y < 0, -y / _ABOVE_PX, y / _BELOW_PX)
    distance = (reach**4 + (x.abs() / _HALF_WIDTH_PX) ** 4) ** 0.25
    return ((1 - distance) / _FADE).clamp(0, 1)[None, None]
