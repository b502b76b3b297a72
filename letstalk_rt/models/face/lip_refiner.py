"""The lip refiner: reads the landmarks of a portrait's lips again, close up.

The autoencoder's heat maps have cells of 8 px. An error of 2 px in how far lips are parted is seen:
in silence they are pressed together, or stay apart. This network sees the mouth alone,
aligned, at the resolution of the portrait. It runs once per portrait.

Source: refinement of landmarks in a second stage, on a close crop: cascaded regression, CVPR 2013
(Sun et al.); expected coordinates of a heat map: arXiv:1711.08229.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.networks import soft_argmax
from letstalk_rt.models.geometry.landmarks import LIPS
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_HEIGHT,
    CROP_SIZE,
    CROP_WIDTH,
    align_mouths,
    aligned_centre,
    resample,
)
from letstalk_rt.models.layers.folded_conv import Block, conv, halved

_CELL = 4  # px of a cell of the heat maps
_PRIOR_PX = 10.0  # deviation of landmarks from their mean place


class LipRefiner(nn.Module):
    """Crops of mouths to landmarks of lips; knows nothing before it is trained.

    Attributes:
        mean_points: mean landmarks, `(len(LIPS), 2)` in pixels of the crop.
    """

    mean_points: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3 * _CELL**2, 48), nn.SiLU(), Block(48))
        self.coarse = nn.Sequential(halved(48, 64), Block(64), Block(64))
        self.whole = nn.Sequential(halved(64, 80), Block(80))
        self.back_coarse, self.back = conv(80, 64, 1), conv(64, 48, 1)
        self.fine_coarse, self.fine = Block(64), nn.Sequential(Block(48), Block(48))
        self.heat = nn.Conv2d(48, len(LIPS), 1)
        self.register_buffer("mean_points", torch.zeros(len(LIPS), 2))

    def forward(self, crops: Tensor) -> Tensor:
        """Return the landmarks of lips `(B, len(LIPS), 2)` in pixels of crops.

        Args:
            crops: `(B, 3, 80, 112)` in [-1, 1].
        """
        return expected_places(self.heatmaps(crops))

    def heatmaps(self, crops: Tensor) -> Tensor:
        """Return heat maps of logits, `(B, len(LIPS), 20, 28)`."""
        assert crops.shape[1:] == (3, *CROP_SIZE), crops.shape
        cells = F.pixel_unshuffle(crops, _CELL).contiguous(memory_format=torch.channels_last)
        fine = self.stem(cells)
        coarse = self.coarse(fine)
        up = self.fine_coarse(
            coarse + F.interpolate(self.back_coarse(self.whole(coarse)), scale_factor=2)
        )
        up = self.fine(fine + F.interpolate(self.back(up), scale_factor=2))
        heat: Tensor = self.heat(up).float()
        return heat + self._prior()

    def _prior(self) -> Tensor:
        x, y = cell_centres(self.mean_points.device)
        offset_x, offset_y = (
            (axis - self.mean_points[:, i, None]) ** 2 / (2 * _PRIOR_PX**2)
            for i, axis in enumerate((x, y))
        )
        return -offset_y[:, :, None] - offset_x[:, None, :]


def cell_centres(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the columns `(28,)` and the rows `(20,)` of cells, in pixels of a crop."""
    columns = torch.arange(CROP_WIDTH // _CELL, device=device)
    rows = torch.arange(CROP_HEIGHT // _CELL, device=device)
    return (columns + 0.5) * _CELL, (rows + 0.5) * _CELL


def expected_places(heat: Tensor) -> Tensor:
    """Return the mean places `(B, L, 2)`, in pixels of crops, of heat maps of logits."""
    return (soft_argmax(heat) + 1) / 2 * heat.new_tensor([CROP_WIDTH, CROP_HEIGHT])


@torch.no_grad()
def refined_lips(refiner: LipRefiner, images: Tensor, points: Tensor) -> Tensor:
    """Return landmarks whose lips were read again, `(B, L, 2)` in [-1, 1].

    Args:
        refiner: the network.
        images: `(B, 3, S, S)` in [-1, 1].
        points: landmarks `(B, L, 2)` in [-1, 1], of which those that do not move with expression
            align the crop.
    """
    half = images.shape[-1] / 2
    placed = (points.float() + 1) * half
    to_crop = align_mouths(placed, aligned_centre(placed))
    lips = to_crop.inverse()(refiner(resample(images.float(), to_crop)))
    refined = points.clone()
    refined[:, LIPS] = (lips / half - 1).to(points.dtype)
    return refined
