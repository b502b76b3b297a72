"""The eyelid painter: shows how the eyes of a portrait look when they are closed.

A portrait with open eyes shows no closed lid, and the skin above it, stretched down, is dark with
brows and lashes. This network has seen people blink: it paints the lid, its crease and the line of
lashes into a crop of the eye. It runs once per portrait; blinks move what it has painted.

The open eye itself is not an input, so that its white and iris cannot shine through.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from letstalk_rt.models.autoencoder.blocks import ResBlock
from letstalk_rt.models.geometry.eye_crop import EYE_HEIGHT, EYE_SIZE, EYE_WIDTH, LidEdges

_WIDTHS = (32, 48, 64)
_HALF = 2  # pixels of a crop along each side of a pixel of the network
_DISTANCE_PX = 12.0
_SKIN_ABOVE_PX, _SKIN_BELOW_PX = 5, 4  # where lashes end
_COLUMNS = slice(18, 63)  # from corner to corner
_SMOOTH_PX = 13


class EyelidPainter(nn.Module):
    """A small U-Net over the crop of an eye, at half its size."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = _WIDTHS
        self.stem = nn.Conv2d(_HALF**2 * (3 + 3 + 1), fine, 3, padding=1)
        self.fine_in = ResBlock(fine)
        self.down1 = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle_in = ResBlock(middle)
        self.down2 = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(ResBlock(coarse), ResBlock(coarse))
        self.up1 = nn.Conv2d(coarse, 4 * middle, 1)
        self.middle_out = ResBlock(middle)
        self.up2 = nn.Conv2d(middle, 4 * fine, 1)
        self.fine_out = ResBlock(fine)
        self.head = nn.Conv2d(fine, 3 * _HALF**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, crops: Tensor, lids: LidEdges, closed: Tensor) -> Tensor:
        """Paint closed eyes.

        Args:
            crops: open eyes, `(B, 3, 64, 80)` in [-1, 1].
            lids: the edges of their lids.
            closed: where the line of lashes shall be in each column, `(B, 80)`.

        Returns:
            `(B, 3, 64, 80)` float32; valid where `lid_mask` is not 0.
        """
        assert crops.shape[1:] == (3, *EYE_SIZE), crops.shape
        skin = without_eyes(crops, lids)
        y = torch.arange(EYE_HEIGHT, device=crops.device)[:, None] + 0.5
        places = [(y - line[:, None]) / _DISTANCE_PX for line in (lids.upper, lids.lower, closed)]
        x = (torch.arange(EYE_WIDTH, device=crops.device) + 0.5) / EYE_WIDTH * 2 - 1
        inputs = [skin, torch.stack(places, 1).clamp(-2, 2), x.expand(len(crops), 1, *EYE_SIZE)]
        return skin + self._change(torch.cat(inputs, 1))

    def _change(self, inputs: Tensor) -> Tensor:
        parts = F.pixel_unshuffle(inputs, _HALF).to(self.stem.weight.dtype)
        fine = self.fine_in(self.stem(parts.contiguous(memory_format=torch.channels_last)))
        middle = self.middle_in(self.down1(fine))
        coarse = self.coarse(self.down2(middle))
        middle = self.middle_out(middle + F.pixel_shuffle(self.up1(coarse), 2))
        fine = self.fine_out(fine + F.pixel_shuffle(self.up2(middle), 2))
        return F.pixel_shuffle(self.head(F.silu(fine)), _HALF).float()


def without_eyes(crops: Tensor, lids: LidEdges) -> Tensor:
    """Return crops in which what lies between the lids has colours between those of the skin."""
    top = (lids.upper - _SKIN_ABOVE_PX).floor().clamp(0, EYE_HEIGHT - 1)
    bottom = (lids.lower + _SKIN_BELOW_PX).floor().clamp(0, EYE_HEIGHT - 1)
    above, below = (_colours(crops, line.long()) for line in (top, bottom))
    y = torch.arange(EYE_HEIGHT, device=crops.device)[:, None]
    share = ((y - top[:, None]) / (bottom - top).clamp(min=1)[:, None])[:, None]
    inside = torch.zeros_like(share)
    inside[..., _COLUMNS] = ((share > 0) & (share < 1)).float()[..., _COLUMNS]
    return torch.lerp(crops, torch.lerp(above, below, share), inside)


def _colours(crops: Tensor, rows: Tensor) -> Tensor:
    """Return smoothed colours of each column at its row, `(B, 3, 1, W)`, given rows `(B, W)`."""
    index = rows[:, None, None].expand(-1, crops.shape[1], 1, -1)
    line = crops.gather(2, index)
    side = _SMOOTH_PX // 2
    return F.avg_pool2d(F.pad(line, (side, side, 0, 0), mode="replicate"), (1, _SMOOTH_PX), 1)
