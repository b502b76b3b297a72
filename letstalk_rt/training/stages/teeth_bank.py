"""Chooses the bank of teeth: what the mouth painter shows of portraits with closed lips.

Taken are stills of the train split with a sharp front view of white, close teeth, as the trained
painter inpaints them, so that the bank consists of its own output.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from letstalk_rt.models.autoencoder.mouth_painter import MouthPainter, masked_teeth
from letstalk_rt.models.geometry.landmarks import INNER_CORNERS
from letstalk_rt.models.geometry.mouth_crop import (
    CROP_CENTRE,
    CROP_HEIGHT,
    CROP_WIDTH,
    lip_gap_px,
    opening_mask,
)
from letstalk_rt.training.data.mouth_crops import KINDS, MARGIN_PX, MouthCrops

GAP_PX = (9.0, 22.0)
"""Lip gaps of a smile that shows its teeth: below there is little to see, above the jaw is open."""

MAX_SATURATION = 0.3
BRIGHTNESS = (-0.1, 0.45)
"""Colours of teeth in daylight: the mean distance of the highest from the lowest channel, and the
mean of all, in [-1, 1]."""

MIN_SHARPNESS = 0.05
DARK = 0.45
"""Mean step between neighbouring pixels below which teeth are blurred; how much darker than the
mean of the opening a gap between teeth is."""

TINT_REMOVED = 0.5
"""Share of the colour of borrowed teeth that is removed: it is the light of another portrait."""

MAX_TILT = 0.12
MAX_OFFSET_PX = 6.0
"""How far the corners of the mouth may differ in height, over its width, and how far the middle of
the mouth may lie beside that of the face: beyond, the head is turned."""


@torch.no_grad()
def fit_bank(model: MouthPainter, mouths: MouthCrops) -> int:
    """Set the bank of a trained painter; return how many pictures of teeth were found for it.

    If fewer fit than the bank has places, they are repeated; if none does, it stays empty, and the
    painter inpaints as without teeth.

    Args:
        model: the trained painter.
        mouths: the crops of the train split.
    """
    rows = np.flatnonzero(mouths.kind == KINDS.index("portrait"))
    if not len(rows):
        return 0
    inner = slice(MARGIN_PX, MARGIN_PX + CROP_HEIGHT), slice(MARGIN_PX, MARGIN_PX + CROP_WIDTH)
    stored = np.stack([mouths.crops[i][inner] for i in rows])
    crops = torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 127.5 - 1
    points = torch.from_numpy(mouths.points[rows]) - MARGIN_PX
    score = rate_teeth(crops, points)
    chosen = score.argsort(descending=True)[: model.config.bank]
    chosen = chosen[score[chosen] > 0]
    if len(chosen):
        crops, points = crops[chosen], points[chosen]
        opening = opening_mask(points)
        painted = model(crops, opening, points, masked_teeth(crops, opening))
        places = torch.arange(model.config.bank) % len(chosen)
        # The painter deepens the gaps between teeth, and it will be applied to the bank again.
        whiter = soften(painted).lerp(soften(painted).mean(1, keepdim=True), TINT_REMOVED)
        model.set_bank(masked_teeth(whiter, opening)[places])
    return len(chosen)


def soften(crops: Tensor) -> Tensor:
    """Return crops averaged over three columns with the weights 1, 2, 1."""
    padded = F.pad(crops, (1, 1, 0, 0), mode="replicate")
    return (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4


def rate_teeth(crops: Tensor, points: Tensor) -> Tensor:
    """Return the share of an opening that is not dark, `(B,)`; 0 of what does not fit.

    Args:
        crops: `(B, 3, 80, 112)` in [-1, 1].
        points: landmarks `(B, L, 2)` in pixels of the crops.
    """
    opening = (opening_mask(points) > 0.5).float()

    def mean(values: Tensor) -> Tensor:
        return (values * opening).sum((1, 2, 3)) / opening.sum((1, 2, 3)).clamp(min=1)

    light = crops.mean(1, keepdim=True)
    saturation = mean(crops.amax(1, keepdim=True) - crops.amin(1, keepdim=True))
    brightness, sharpness = mean(light), mean(F.pad(light.diff(dim=3).abs(), (0, 1)))
    dark = mean((light < brightness[:, None, None, None] - DARK).float())
    left, right = (points[:, i] for i in INNER_CORNERS)
    tilt = (right - left)[:, 1].abs() / (right - left)[:, 0].clamp(min=1)
    offset = ((left + right)[:, 0] / 2 - CROP_CENTRE[0]).abs()
    gap = lip_gap_px(points)
    fits = (gap > GAP_PX[0]) & (gap < GAP_PX[1]) & (tilt < MAX_TILT) & (offset < MAX_OFFSET_PX)
    fits &= (saturation < MAX_SATURATION) & (sharpness > MIN_SHARPNESS)
    fits &= (brightness > BRIGHTNESS[0]) & (brightness < BRIGHTNESS[1])
    return (1 - dark) * fits
