"""The lower face of a crop, masked: what a model that generates it must not see.

The mask is placed by landmarks that speech does not move. One that followed the jaw would tell how
far the mouth is open.

Source: masked frames as a condition: DiffTalk, arXiv:2301.03786.
"""

import torch
from torch import Tensor

from letstalk_rt.models.geometry.mouth_crop import RIGID

_ABOVE, _BELOW, _BESIDE = 0.1, 1.6, 1.05
"""How far the mask extends from the base of the nose, in distances between the eyes: up, down over
the chin of an open mouth, and to each side."""

_EYES, _NOSE = RIGID[:4], RIGID[4:]


def lower_face_box(points: Tensor) -> Tensor:
    """Return left, top, right and bottom of the mask, `(..., 4)`, for landmarks `(..., L, 2)`."""
    eyes, nose = points[..., _EYES, :], points[..., _NOSE, :].mean(-2)
    right, left = eyes[..., :2, :].mean(-2), eyes[..., 2:, :].mean(-2)
    size = (left - right).norm(dim=-1, keepdim=True)
    corner = nose - size * nose.new_tensor([_BESIDE, _ABOVE])
    return torch.cat([corner, nose + size * nose.new_tensor([_BESIDE, _BELOW])], -1)


def lower_face_mask(points: Tensor, size: int) -> Tensor:
    """Return a mask that is True on the lower face, `(..., size, size)`.

    Args:
        points: landmarks `(..., L, 2)` in [-1, 1].
        size: height and width of the mask.
    """
    left, top, right, bottom = lower_face_box(points)[..., None, None].unbind(-3)
    at = (torch.arange(size, device=points.device) + 0.5) * (2 / size) - 1
    x, y = at, at[:, None]
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def masked_frames(frames: Tensor, points: Tensor) -> Tensor:
    """Return frames `(..., 3, S, S)` in [-1, 1] with a grey lower face; landmarks as above."""
    mask = lower_face_mask(points, frames.shape[-1])
    return frames.masked_fill(mask[..., None, :, :], 0.0)
