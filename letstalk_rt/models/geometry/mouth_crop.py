"""Crops of mouths that are aligned by the skull, and the mask of the opening between the lips.

Crops are aligned by the parts of a face that do not deform (corners of the eyes, base of the nose),
not by the lips. Upper teeth therefore stay in place while lips and jaw move, and the same teeth can
be inpainted there in every frame. Coordinates in a crop are x and y in pixels, counted from its
upper left corner.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.geometry.landmarks import (
    INNER_CORNERS,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LOWER_LIP,
    MOUTH_LEFT,
    MOUTH_RIGHT,
    UPPER_LIP,
    landmark_indices,
)

CROP_HEIGHT, CROP_WIDTH = 80, 112
CROP_SIZE = (CROP_HEIGHT, CROP_WIDTH)
FINE = 2
"""Inpainted colours have this many pixels per pixel of a crop, along each side."""

FINE_SIZE = (FINE * CROP_HEIGHT, FINE * CROP_WIDTH)
CROP_CENTRE = (56.0, 34.0)
"""Position of the centre of a mouth in its crop; there is more space below, for an open jaw."""

RIGID = landmark_indices((33, 133, 362, 263, 20, 60, 240, 250, 290, 460))
"""Landmarks that do not move with expression: corners of the eyes, base of the nose."""

_RIGID_TARGET_PX = (
    (-57.57, -90.99), (-22.43, -88.86), (22.43, -88.86), (57.57, -90.99), (-7.23, -34.87),
    (-12.13, -34.76), (-19.21, -34.68), (7.23, -34.87), (12.13, -34.76), (19.21, -34.68),
)  # fmt: skip
"""Positions of `RIGID` in the mean face of the training clips, relative to the mouth's centre, in
pixels of a crop; a mouth of average width is 68 px wide."""

_EDGE_PX = 1.5
"""Width of the soft edge of the opening."""


@dataclass
class CropTransform:
    """Similarity transforms that map B frames to their crops.

    Attributes:
        rotation: `(B, 2)`: cosine and sine of the angle, times the scale.
        shift: `(B, 2)` in pixels of the crop.
    """

    rotation: Tensor
    shift: Tensor

    def __call__(self, points: Tensor) -> Tensor:
        """Map points `(B, L, 2)` of the frames to the crops."""
        return _rotate(points, self.rotation[:, None]) + self.shift[:, None]

    def __getitem__(self, items: list[int]) -> "CropTransform":
        """Return the transforms of some of the frames."""
        return CropTransform(self.rotation[items], self.shift[items])

    @property
    def scale(self) -> Tensor:
        """Pixels of the crop per pixel of the frame, `(B,)`."""
        scale: Tensor = self.rotation.norm(dim=-1)
        return scale

    def inverse(self) -> "CropTransform":
        """Return the inverse, from the crops to the frames."""
        rotation = self.rotation * self.rotation.new_tensor([1.0, -1.0])
        rotation = rotation / self.rotation.square().sum(-1, keepdim=True)
        return CropTransform(rotation, -_rotate(self.shift, rotation))

    def scaled(self, by: float) -> "CropTransform":
        """Return the transforms to crops that are larger by a factor."""
        return CropTransform(self.rotation * by, self.shift * by)

    def shifted(self, by: Tensor) -> "CropTransform":
        """Return the transforms with the result shifted by `(B, 2)` pixels of the crop."""
        return CropTransform(self.rotation, self.shift + by)


def _rotate(points: Tensor, rotation: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    cos, sin = rotation.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def align_heads(points: Tensor) -> CropTransform:
    """Align heads to the mean face, by least squares over the landmarks that do not deform.

    Args:
        points: `(B, L, 2)` in any unit; the transform takes points in the same unit.

    Returns:
        Transforms that map the centre of an average mouth to (0, 0).
    """
    return align_rigid(points, _rigid_target(points.device))


def align_rigid(points: Tensor, target: Tensor) -> CropTransform:
    """Align heads by least squares over the landmarks that do not deform.

    Args:
        points: `(B, L, 2)` in any unit; the transform takes points in the same unit.
        target: where the transform should map `RIGID`, `(len(RIGID), 2)`.
    """
    rigid = points.float()[:, RIGID]
    centre, goal = rigid.mean(1, keepdim=True), target.mean(0)
    (x, y), (u, v) = (rigid - centre).unbind(-1), (target - goal).unbind(-1)
    size = (x * x + y * y).sum(1).clamp(min=1e-8)
    rotation = torch.stack([(x * u + y * v).sum(1), (x * v - y * u).sum(1)], -1) / size[:, None]
    return CropTransform(rotation, goal - _rotate(centre[:, 0], rotation))


@functools.cache
def _rigid_target(device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(_RIGID_TARGET_PX, device=device)


def mouth_centre(points: Tensor) -> Tensor:
    """Return the centres of the mouths of landmarks `(B, L, 2)`: `(B, 2)`."""
    return points[:, [MOUTH_LEFT, MOUTH_RIGHT, UPPER_LIP, LOWER_LIP]].mean(1)


def aligned_centre(points: Tensor) -> Tensor:
    """Return the centres of mouths after `align_heads`, `(B, 2)`.

    A person's mouth is not exactly where it is in the mean face. The centre of one frame is
    used for all frames of that person, so that the crop does not follow the lips.
    """
    return mouth_centre(align_heads(points)(points.float()))


def align_mouths(points: Tensor, centre: Tensor) -> CropTransform:
    """Return the transforms from frames to crops of their mouths.

    Args:
        points: landmarks `(B, L, 2)`.
        centre: the result of `aligned_centre` for this person, `(B, 2)` or `(1, 2)`.
    """
    heads = align_heads(points)
    return heads.shifted(centre.new_tensor(CROP_CENTRE) - centre)


def lip_gap_px(points: Tensor) -> Tensor:
    """Return the distance of the lips, `(B,)`, of landmarks in a crop."""
    gap: Tensor = (points[:, UPPER_LIP] - points[:, LOWER_LIP]).norm(dim=-1)
    return gap


def opening_mask(
    points: Tensor,
    size: tuple[int, int] = CROP_SIZE,
    *,
    dilation_px: Tensor | float = 0.0,
    resolution: int = 1,
) -> Tensor:
    """Return the mask of open mouths: `(B, 1, H, W)`, 1 between the lips, 0 elsewhere, soft edges.

    Args:
        points: landmarks `(B, L, 2)` in pixels of a crop.
        size: height and width of the crop.
        dilation_px: how far the mask extends onto the lips; `(B,)`, or one value for all.
        resolution: pixels of the mask per pixel of the crop, along each side.
    """
    height, width = size
    upper, lower, within = lip_edges(points, width, resolution)
    if isinstance(dilation_px, Tensor):
        dilation_px = dilation_px[:, None]
    y = pixel_centres(height, resolution, points)[:, None]
    middle = (upper + lower) / 2  # pressed lips cross
    upper, lower = upper.minimum(middle) - dilation_px, lower.maximum(middle) + dilation_px
    below_upper = ((y - upper[:, None]) / _EDGE_PX + 0.5).clamp(0, 1)
    above_lower = ((lower[:, None] - y) / _EDGE_PX + 0.5).clamp(0, 1)
    parted = ((lower - upper) / _EDGE_PX).clamp(0, 1) * within
    return (below_upper * above_lower * parted[:, None])[:, None]


def lip_edges(
    points: Tensor, width: int = CROP_WIDTH, resolution: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inner edges of the lips in each column of a crop.

    Args:
        points: landmarks `(B, L, 2)` in pixels of a crop.
        width: width of the crop.
        resolution: columns per pixel of the crop.

    Returns:
        Heights of the upper and the lower edge in pixels, `(B, W)`, and `(B, W)` with 1 for columns
        between the corners of the mouth and 0 for others, with soft edges.
    """
    columns = pixel_centres(width, resolution, points)
    left, right = (points[:, i : i + 1] for i in INNER_CORNERS)
    edges = []
    for lip in (INNER_UPPER_LIP, INNER_LOWER_LIP):
        line = torch.cat([left, points[:, lip], right], 1)
        edges.append(height_at(line, columns))
    within = ((columns - left[..., 0]) / _EDGE_PX + 0.5).clamp(0, 1)
    within = within * ((right[..., 0] - columns) / _EDGE_PX + 0.5).clamp(0, 1)
    return edges[0], edges[1], within


def pixel_centres(extent: int, resolution: int, like: Tensor) -> Tensor:
    """Return the positions of pixels along a side of a crop, in pixels of the crop."""
    return (torch.arange(extent * resolution, device=like.device) + 0.5) / resolution


def height_at(line: Tensor, columns: Tensor) -> Tensor:
    """Return the height of a polyline `(B, P, 2)`, left to right, in each column: `(B, W)`."""
    x, y = line.unbind(-1)
    x = torch.cummax(x, 1).values  # at the corners of a mouth the line may turn back
    run = (x[:, 1:] - x[:, :-1]).clamp(min=1e-3)
    share = ((columns - x[:, :-1, None]) / run[..., None]).clamp(0, 1)
    return y[:, :1] + (share * (y[:, 1:] - y[:, :-1])[..., None]).sum(1)


def resample(images: Tensor, transform: CropTransform, size: tuple[int, int] = CROP_SIZE) -> Tensor:
    """Resample images `(B, C, h, w)` to crops `(B, C, H, W)`.

    Args:
        images: the images to sample, bilinearly.
        transform: from pixels of the images to pixels of the crops.
        size: height and width of the crops.
    """
    height, width = size
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) + 0.5,
        torch.arange(width, device=images.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y], -1).view(1, -1, 2).expand(len(images), -1, -1)
    sources = transform.inverse()(pixels)
    extent = sources.new_tensor([images.shape[-1], images.shape[-2]])
    grid = (sources / extent * 2 - 1).view(len(images), height, width, 2)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)
