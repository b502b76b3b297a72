"""The pose reader: how far a face has turned and nodded, from the picture itself.

Landmarks of the tracker lie in cells of 8 px, and their noise hides small nods. This network sees
the face levelled, centred and in one size by those landmarks, and says two angles, whose difference
from those of the person's neutral look is the turn: people differ at rest, so the angles themselves
mean little. Landmarks and picture err independently, so both together are better than either.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.face.head_pose import average_head
from letstalk_rt.models.geometry.landmarks import landmark_indices
from letstalk_rt.models.layers.folded_conv import Block, conv, halved

CROP_PX = 80

HIDDEN = 64

_HALF, _BELOW = 1.9, 0.12  # half side of a crop, and its middle below the pivot, in face sizes
_CELL = 4  # px that are one cell of the first layer
_LEAST_CONTRAST = 0.05
_EYE_CORNERS = landmark_indices((33, 263))


class PoseReader(nn.Module):
    """Grey crops of levelled faces to yaw and pitch; knows nothing before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        side = CROP_PX // (4 * _CELL)
        self.fine = nn.Sequential(conv(_CELL**2, 32), nn.SiLU(), Block(32))
        self.middle = nn.Sequential(halved(32, 48), Block(48))
        self.coarse = nn.Sequential(halved(48, 48), Block(48))
        self.few = conv(48, 16, 1)
        self.dropout = nn.Dropout(0.2)
        self.whole = nn.Linear(16 * side**2, HIDDEN)
        self.angles = nn.Linear(HIDDEN, 2)

    def forward(self, crops: Tensor) -> Tensor:
        """Return yaw and pitch in radians, `(B, 2)`, of crops `(B, 1, 80, 80)`: see `level_faces`.

        They count only in comparison with those of the same person in another frame.
        """
        out: Tensor = self.angles(self.features(crops))
        return out

    def features(self, crops: Tensor) -> Tensor:
        """Return what is seen in crops, `(B, HIDDEN)`."""
        assert crops.shape[1:] == (1, CROP_PX, CROP_PX), crops.shape
        cells = F.pixel_unshuffle(crops, _CELL).contiguous(memory_format=torch.channels_last)
        seen = F.silu(self.few(self.coarse(self.middle(self.fine(cells)))))
        return F.silu(self.whole(self.dropout(seen.flatten(1))))


@torch.no_grad()
def read_turns(reader: PoseReader, image: Tensor, points: np.ndarray) -> np.ndarray:
    """Return yaw and pitch of a face, `(2,)`, for comparison with its neutral look.

    The face and its mirror image are read, which takes out a part of the noise.

    Args:
        reader: the network.
        image: the frame, `(1, 3, H, W)` in [-1, 1].
        points: landmarks of the face, `(L, 2)` in pixels.
    """
    place = torch.from_numpy(face_places(points[None])).to(image.device)
    crop = even(level_faces(image, place).mean(1, keepdim=True))
    seen = reader(torch.cat([crop, crop.flip(-1)])).float().cpu().numpy()
    return np.asarray((seen[0] + seen[1] * [-1, 1]) / 2)


def face_places(points: np.ndarray) -> np.ndarray:
    """Return where faces are in an image: pivot, size and roll of landmarks, `(B, 4)` float32.

    Args:
        points: landmarks, `(B, L, 2)` in pixels.
    """
    rigid = points[:, average_head().rigid].astype(np.float64)
    centre = rigid.mean(1)
    size = np.sqrt(((rigid - centre[:, None]) ** 2).sum(-1).mean(-1))
    x, y = (points[:, _EYE_CORNERS[1]] - points[:, _EYE_CORNERS[0]]).T
    places = np.stack([*centre.T, np.maximum(size, 1e-3), np.arctan2(y, x)], 1)
    return np.asarray(places, np.float32)


def level_faces(images: Tensor, places: Tensor) -> Tensor:
    """Return crops of faces, levelled, centred and in one size, `(B, C, 80, 80)`.

    Args:
        images: `(B, C, H, W)`.
        places: where the faces are, `(B, 4)`: see `face_places`.
    """
    x, y, size, roll = places.unbind(1)
    along, across = size * roll.cos(), size * roll.sin()
    middle = torch.stack([x - _BELOW * across, y + _BELOW * along], 1)
    turned = torch.stack([along, -across, across, along], 1).view(-1, 2, 2)
    half = images.new_tensor([images.shape[-1], images.shape[-2]]) / 2
    shift = (middle - half) / half
    affine = torch.cat([_HALF * turned / half[:, None], shift[..., None]], 2)
    shape = [*images.shape[:2], 2 * CROP_PX, 2 * CROP_PX]  # twice as fine, against aliasing
    grid = F.affine_grid(affine, shape, align_corners=False)
    return F.avg_pool2d(F.grid_sample(images, grid, padding_mode="border", align_corners=False), 2)


def even(crops: Tensor) -> Tensor:
    """Return crops `(B, 1, H, W)` with mean 0 and contrast 1, whatever the light."""
    mean = crops.mean((1, 2, 3), keepdim=True)
    return (crops - mean) / (crops.std((1, 2, 3), keepdim=True) + _LEAST_CONTRAST)
